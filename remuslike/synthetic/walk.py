"""In which order places are written, and what each must contain, given how much was written. Pure.

The n-th write goes to slot n modulo the number of slots. So the count of writes says how often each slot was
written, its *version*, and slot and version say what it contains. Nothing is remembered: whoever knows the
count can check every place.
"""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

_GOLDEN = 0.6180339887498949

# splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)
_GAMMA = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def stride_of(slots: int) -> int:
    """A step that visits every one of `slots` places before any again, neighbours far apart."""
    stride = max(1, int(slots * _GOLDEN))
    while gcd(stride, slots) != 1:
        stride -= 1
    return stride


def versions(slots_asked: Integers, slots: int, written: int) -> Integers:
    """How often each of the slots was written when `written` writes were done; 0: never."""
    return (written + slots - 1 - slots_asked) // slots


def keys(places: Integers, versions_asked: Integers, seed: int) -> Words:
    """The word that each place is filled with in its version; 0 where it was never written."""
    word = (
        (places.astype(np.uint64) << np.uint64(32))
        + versions_asked.astype(np.uint64)
        + np.uint64(seed * _GAMMA & _MASK)
    )
    word = (word ^ (word >> np.uint64(30))) * _MIX_1
    word = (word ^ (word >> np.uint64(27))) * _MIX_2
    word ^= word >> np.uint64(31)
    # Odd, so that nothing written looks as if it never was.
    return np.where(versions_asked == 0, np.uint64(0), word | np.uint64(1))
