"""Whether a later run is worse than an earlier one, figure by figure. Pure.

Figures that are ratios to unprotected are compared as such: what differs between two days, or two machines,
has cancelled within each run. The others are absolute and mean something on one machine only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from remuslike.bench.report.intervals import LEVEL, Estimate, estimate_quotient
from remuslike.bench.report.measures import LOST, THROUGHPUT, Better, Measure, latency_name
from remuslike.bench.report.summary import Figure, Run, Summary, differences, forced, same_machine
from remuslike.bench.results import UNPROTECTED, Variant

ROUNDS_MIN = 3
"""Fewer say nothing, and three not much: see `by_chance`."""


class Verdict(StrEnum):
    """Of one figure of one variant."""

    WORSE = "worse"
    BETTER = "better"
    SAME = "same"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`ratio` is B over A, None where there is none (a zero, a negative difference). `relative`: of ratios
    to unprotected."""

    variant: Variant
    measure: Measure
    relative: bool
    a: float
    b: float
    ratio: Estimate | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a whole comparison. `broken`: variants that A measured and that failed in every round of B;
    `faltering`: that failed in some of B's rounds, in none of A's. `missing`: figures that A has and B lacks,
    of variants that both measured; `silent`: those of them that tell that nothing was done.
    `unmatched`: those that only one of the two has. `withheld`: absolute figures of different machines that
    were not compared. `by_chance`: how many of the comparisons to expect beyond their interval if nothing has
    changed. `forced`: what cells of the files were measured with, and not all of them were."""

    comparisons: tuple[Comparison, ...]
    broken: tuple[Variant, ...]
    faltering: tuple[Variant, ...]
    missing: tuple[Figure, ...]
    silent: tuple[Figure, ...]
    unmatched: tuple[Variant, ...]
    differences: tuple[str, ...]
    withheld: int
    by_chance: float
    forced: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether anything is."""
        return bool(self.broken or self.silent) or any(
            each.verdict is Verdict.WORSE for each in self.comparisons
        )


def compare(a: Run, b: Run, threshold: float, *, force: bool, only: Collection[str] = ()) -> Outcome:
    """B against A. A figure is worse if its ratio is off by more than `threshold`, in the bad direction, and
    its interval excludes 1. `force` compares absolute figures of different machines, too; `only` names the
    figures to compare, all if empty."""
    before, after = Summary([a]), Summary([b])
    absolute = force or same_machine(a.results, b.results)
    matched = [
        (figure, other)
        for key, figure in before.figures.items()
        if (other := after.figures.get(key)) is not None and _tells(figure, only)
    ]
    allowed = [(x, y) for x, y in matched if absolute or _relative(x, y) or x.measure.name == LOST]
    comparisons = tuple(_compared(x, y, threshold) for x, y in allowed)
    keys = {variant.key for variant in before.variants} ^ {variant.key for variant in after.variants}
    broken = tuple(_broken(before, after))
    missing = tuple(_missing(before, after, only))
    return Outcome(
        comparisons=comparisons,
        broken=broken,
        faltering=tuple(_faltering(before, after)),
        missing=missing,
        silent=tuple(figure for figure in missing if _is_silent(figure, after)),
        unmatched=tuple(
            variant
            for variant in (*before.variants, *after.variants)
            if variant.key in keys and variant not in broken
        ),
        differences=tuple(differences([a, b])),
        withheld=len(matched) - len(allowed),
        by_chance=sum(by_chance(each.ratio.count) for each in comparisons if each.ratio is not None),
        forced=tuple(forced([a, b])),
    )


def by_chance(rounds: int) -> float:
    """How often the interval of a ratio of two times so many values of the same thing excludes 1.

    Of three, when their ranges lie apart, as in 2 of the 20 orders in which they can come. Of four, 6 or 7 in
    a hundred by trial; of more, what the level leaves out at most. No correction is made for it (of three
    rounds, Holm's or Bonferroni's would call nothing worse, whatever it was): it is told, and who looks for
    one thing names that figure.
    """
    if rounds < ROUNDS_MIN:
        return 0.0
    return {3: 0.1, 4: 0.065}.get(rounds, 1 - LEVEL)


def _tells(figure: Figure, only: Collection[str]) -> bool:
    """Unprotected changes with the machine, not with us."""
    if figure.variant.mode == UNPROTECTED or figure.measure.better == "neither":
        return False
    return not only or figure.measure.name in only


def _relative(a: Figure, b: Figure) -> bool:
    return bool(a.ratios and b.ratios)


def _compared(a: Figure, b: Figure, threshold: float) -> Comparison:
    relative = _relative(a, b)
    of_a, of_b = (a.ratios, b.ratios) if relative else (a.values, b.values)
    if a.measure.name == LOST:
        return _compared_losses(a, b)
    value_a = (a.ratio if relative and a.ratio else a.value).median
    value_b = (b.ratio if relative and b.ratio else b.value).median
    if value_a == value_b == 0:
        return Comparison(a.variant, a.measure, relative, 0, 0, None, Verdict.SAME)
    # Of what more is wanted of, nothing is no measuring error, however few the rounds.
    stopped = a.measure.better == "more" and value_a > 0 and value_b == 0
    ratio = estimate_quotient(of_b, of_a) if value_a > 0 and (value_b > 0 or stopped) else None
    return Comparison(
        variant=a.variant,
        measure=a.measure,
        relative=relative,
        a=value_a,
        b=value_b,
        ratio=ratio,
        verdict=Verdict.WORSE if stopped else judge(ratio, a.measure.better, threshold),
    )


def _compared_losses(a: Figure, b: Figure) -> Comparison:
    """One lost operation is a broken promise, whatever the other rounds say."""
    mean_a, mean_b = _mean(a.values), _mean(b.values)
    verdict = Verdict.SAME
    if mean_a != mean_b:
        verdict = Verdict.WORSE if mean_b > mean_a else Verdict.BETTER
    return Comparison(a.variant, a.measure, False, mean_a, mean_b, None, verdict)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def judge(ratio: Estimate | None, better: Better, threshold: float) -> Verdict:
    """What a ratio of B to A means for a figure of which `better` is wanted."""
    if ratio is None:
        return Verdict.UNCLEAR
    if abs(ratio.median - 1) <= threshold:
        return Verdict.SAME
    if ratio.low is None or ratio.high is None or ratio.count < ROUNDS_MIN or ratio.low <= 1 <= ratio.high:
        return Verdict.UNCLEAR
    grew = ratio.median > 1
    return Verdict.BETTER if grew == (better == "more") else Verdict.WORSE


def _broken(before: Summary, after: Summary) -> Iterator[Variant]:
    failed = {cell.variant.key for _, cell in after.failed} - {variant.key for variant in after.variants}
    return (variant for variant in before.variants if variant.key in failed)


def _faltering(before: Summary, after: Summary) -> Iterator[Variant]:
    failed = {cell.variant.key for _, cell in after.failed} - {cell.variant.key for _, cell in before.failed}
    measured = {variant.key for variant in before.variants}
    return (variant for variant in after.variants if variant.key in failed & measured)


def _missing(before: Summary, after: Summary, only: Collection[str]) -> Iterator[Figure]:
    measured = {variant.key for variant in after.variants}
    for (key, name), figure in before.figures.items():
        if key in measured and (key, name) not in after.figures and _tells(figure, only):
            yield figure


def _is_silent(figure: Figure, after: Summary) -> bool:
    """A high percentile may only lack samples; without a median nothing was answered."""
    if not figure.measure.relative:
        return False
    return figure.measure.name == THROUGHPUT or after.get(figure.variant, latency_name(50)) is None
