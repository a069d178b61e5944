"""From raw samples to medians and ratios, and the JSON of a benchmark's run. Pure.

Everything is compared within one run: the settings of a measurement take turns, round by round, and each
sample is divided by the baseline's sample of its own round. So what drifts on the machine hits both alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

FORMAT = "remuslike-bench"
FORMAT_VERSION = 1
"""Counts up when a reader of the JSON would have to change."""


class Of(StrEnum):
    """What of a figure a limit is set to."""

    RATIO = "ratio"
    MEDIAN = "median"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a figure has to reach; an absolute one (`Of.MEDIAN`) binds only where `timely`, see `judge`."""

    of: Of
    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        """Whether `value` is within the limits."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        parts = [] if self.at_least is None else [f"≥ {self.at_least:g}"]
        return " ".join(parts if self.at_most is None else [*parts, f"≤ {self.at_most:g}"])


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that is measured in several settings; `baseline` is what the others are divided by, but for
    those that `baselines` has another one for."""

    name: str
    title: str
    unit: str
    baseline: str | None = None
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    counted: bool = False  # not timed, so it means the same on every machine
    baselines: Mapping[str, str] = field(default_factory=dict)

    def baseline_of(self, setting: str) -> str | None:
        """What `setting` is divided by; None for the baseline itself, and where there is none."""
        return None if setting == self.baseline else self.baselines.get(setting, self.baseline)


@dataclass(frozen=True, slots=True)
class Sample:
    """One raw value. `cores` is how much of a processor each part took meanwhile, 1.0 for a whole one."""

    measure: str
    setting: str
    round: int
    value: float
    cores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """What the samples of one measure in one setting come to.

    `ratio` is the median of the ratios to `baseline`, round by round; None for the baseline itself and where
    there is none. `met` is None where nothing is wanted, or the machine can't tell.
    """

    measure: str
    setting: str
    unit: str
    samples: int
    baseline: str | None
    median: float
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    cores: Mapping[str, float]
    wanted: str | None
    met: bool | None


def conclude(measures: Iterable[Measure], samples: Sequence[Sample], *, timely: bool) -> list[Figure]:
    """A figure for each measure and setting that has samples, the baseline's first.

    `timely` says whether times on this machine mean anything by themselves: on an emulated processor only
    ratios and counts do.
    """
    figures: list[Figure] = []
    for measure in measures:
        by_setting: dict[str, dict[int, Sample]] = {}
        for sample in samples:
            if sample.measure == measure.name:
                by_setting.setdefault(sample.setting, {})[sample.round] = sample
        figures += [
            _figure(measure, setting, rounds, by_setting.get(measure.baseline_of(setting) or "", {}), timely)
            for setting, rounds in sorted(by_setting.items(), key=lambda item: item[0] != measure.baseline)
        ]
    return figures


def _figure(
    measure: Measure,
    setting: str,
    rounds: Mapping[int, Sample],
    baseline: Mapping[int, Sample],
    timely: bool,
) -> Figure:
    ratios = [
        sample.value / baseline[number].value
        for number, sample in rounds.items()
        if number in baseline and baseline[number].value
    ]
    middle = median(sample.value for sample in rounds.values())
    ratio = median(ratios) if ratios else None
    wanted = measure.wanted.get(setting)
    met: bool | None = None
    if wanted is not None:
        judged = ratio if wanted.of is Of.RATIO else middle
        telling = timely or measure.counted or wanted.of is Of.RATIO
        met = wanted.met_by(judged) if telling and judged is not None else None
    return Figure(
        measure=measure.name,
        setting=setting,
        unit=measure.unit,
        samples=len(rounds),
        baseline=measure.baseline_of(setting),
        median=_short(middle),
        ratio=None if ratio is None else _short(ratio),
        ratio_min=_short(min(ratios)) if ratios else None,
        ratio_max=_short(max(ratios)) if ratios else None,
        cores=_cores(rounds.values()),
        wanted=None if wanted is None else f"{wanted.of} {wanted}",
        met=met,
    )


def _cores(samples: Iterable[Sample]) -> dict[str, float]:
    parts: dict[str, list[float]] = {}
    for sample in samples:
        for part, share in sample.cores.items():
            parts.setdefault(part, []).append(share)
    return {part: round(median(shares), 2) for part, shares in parts.items()}


def _short(value: float) -> float:
    """Four significant digits: what comes after is noise."""
    return float(f"{value:.4g}")


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a benchmark. `skipped` has the reason for each setting that could not be measured; one that
    isn't `complete` was broken off."""

    benchmark: str
    environment: Mapping[str, Any]
    options: Mapping[str, Any]
    measures: Sequence[Measure]
    skipped: Mapping[str, str]
    samples: Sequence[Sample]
    timely: bool
    complete: bool = True

    @property
    def figures(self) -> list[Figure]:
        """What the samples come to."""
        return conclude(self.measures, self.samples, timely=self.timely)

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "benchmark": self.benchmark,
            "complete": self.complete,
            "environment": dict(self.environment),
            "options": dict(self.options),
            "skipped": dict(self.skipped),
            "figures": [asdict(figure) for figure in self.figures],
            "samples": [asdict(sample) for sample in self.samples],
        }
