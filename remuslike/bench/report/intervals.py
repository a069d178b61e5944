"""Medians with confidence intervals, by bootstrap. Pure: the same numbers always give the same interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SEED = 2008
"""Of all resampling; every report prints it."""
LEVEL = 0.95
_RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median of `count` values; `low` and `high` bound it with LEVEL confidence.

    One value has no interval, and both are None. Of two to five values it is their whole range.
    """

    median: float
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value."""
    assert values, "nothing to estimate from"
    middle = float(np.median(values))
    if len(values) == 1:
        return Estimate(middle, None, None, 1)
    low, high = _bounds(_resampled_medians(values, stream=0))
    return Estimate(middle, low, high, len(values))


def estimate_quotient(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    """The median of the former over that of the latter, which share no rounds; None over zero.

    `count` is the smaller number of values.
    """
    below = float(np.median(denominators))
    if not below:
        return None
    middle = float(np.median(numerators)) / below
    count = min(len(numerators), len(denominators))
    if count == 1:
        return Estimate(middle, None, None, 1)
    # Two streams of one seed: resampled alike, values that drift alike would seem to say more than they do.
    divisors = _resampled_medians(denominators, stream=1)
    if not divisors.all():
        return Estimate(middle, None, None, count)
    low, high = _bounds(_resampled_medians(numerators, stream=0) / divisors)
    return Estimate(middle, low, high, count)


def _resampled_medians(values: Sequence[float], stream: int) -> Floats:
    resampled: Floats = np.median(np.asarray(values, dtype=float)[_choices(len(values), stream)], axis=1)
    return resampled


def _bounds(medians: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return float(low), float(high)


@lru_cache(maxsize=64)
def _choices(count: int, stream: int) -> NDArray[np.int64]:
    """Shared by all figures of as many values: a figure doesn't depend on which others are asked for."""
    return np.random.default_rng((SEED, stream)).integers(0, count, (_RESAMPLES, count))
