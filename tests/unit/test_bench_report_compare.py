"""The verdict on two runs; and that verdicts of broken comparators are found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from remuslike.bench.report import compare as comparator
from remuslike.bench.report import summary
from remuslike.bench.report.compare import Outcome, Verdict, by_chance, compare
from remuslike.bench.report.intervals import Estimate
from remuslike.bench.report.summary import Run
from remuslike.bench.results import Cell, Header, Load, Results, Variant

BARE = Variant(guest="q35", workload="redis", mode="unprotected")
EPOCH = BARE.model_copy(update={"mode": "epoch", "epoch_ms": 25.0})
DRIFT = (1.0, 3.0, 0.5, 2.0, 0.7)
"""Of the machine's speed from round to round: far more than what is looked for."""


def a_run(kept: float, pause_ms: float = 4.0, cpu: str = "EPYC", lost: int = 0) -> Run:
    cells = []
    for number, speed in enumerate(DRIFT, 1):
        wobble = 1 + 0.004 * (number - 3)
        cells.append(
            Cell(variant=BARE, round=number, at="", load=Load(unit="requests/s", rate=1000 * speed * wobble))
        )
        cells.append(
            Cell(
                variant=EPOCH,
                round=number,
                at="",
                load=Load(unit="requests/s", rate=1000 * speed * kept),
                checkpoints={"pause_ms": (pause_ms * wobble,)},
                lost=lost if number == 2 else 0,
            )
        )
    header = Header(environment={"cpu": cpu, "processors": 2}, options={})
    return Run(f"{kept}", Results(header=header, cells=tuple(cells)))


def verdicts(outcome: Outcome) -> dict[str, Verdict]:
    return {each.measure.name: each.verdict for each in outcome.comparisons}


def compared(a: Run, b: Run, **options: Any) -> dict[str, Verdict]:
    return verdicts(compare(a, b, 0.05, **{"force": False, **options}))


def check_a_slower_run_is_worse() -> None:
    assert compared(a_run(0.8), a_run(0.7))["throughput"] is Verdict.WORSE
    assert compared(a_run(0.8), a_run(0.8, pause_ms=5))["pause_p50"] is Verdict.WORSE


def check_a_faster_run_is_better() -> None:
    assert compared(a_run(0.7), a_run(0.8))["throughput"] is Verdict.BETTER
    assert compared(a_run(0.8), a_run(0.8, pause_ms=3))["pause_p50"] is Verdict.BETTER


def check_a_difference_below_the_threshold_is_none() -> None:
    assert set(compared(a_run(0.8), a_run(0.78, pause_ms=4.1)).values()) == {Verdict.SAME}


def check_noise_is_not_taken_for_a_difference() -> None:
    noisy, a = (0.5, 2.0, 4.0, 8.0, 0.7), a_run(0.8)
    cells = [
        cell.model_copy(update={"checkpoints": {"pause_ms": (4 * noisy[cell.round - 1],)}})
        for cell in a.results.cells
    ]
    b = Run("noisy", Results(header=a.results.header, cells=tuple(cells)))
    assert compared(a, b)["pause_p50"] is not Verdict.WORSE


CHECKS = (
    check_a_slower_run_is_worse,
    check_a_faster_run_is_better,
    check_a_difference_below_the_threshold_is_none,
    check_noise_is_not_taken_for_a_difference,
)


@pytest.mark.parametrize("check", CHECKS)
def test_verdicts(check: Callable[[], None]) -> None:
    check()


def _inverted(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    return _QUOTIENT(denominators, numerators)


def _certain(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate | None:
    found = _QUOTIENT(numerators, denominators)
    return found and Estimate(found.median, found.median, found.median, found.count)


def _of_another_round(results: Results) -> dict[tuple[str, int], Cell]:
    return {
        (key, number % len(DRIFT) + 1 if cell.variant.mode == "unprotected" else number): cell
        for (key, number), cell in _MEASURED(results).items()
    }


def _either_way(ratio: Estimate | None, better: Any, threshold: float) -> Verdict:
    return _JUDGE(ratio, "less" if better == "more" else "more", threshold)


def _without_threshold(ratio: Estimate | None, better: Any, _threshold: float) -> Verdict:
    return _JUDGE(ratio, better, 0.0)


_QUOTIENT, _MEASURED, _JUDGE = comparator.estimate_quotient, summary.measured_cells, comparator.judge


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (comparator, "estimate_quotient", _inverted),
        (comparator, "estimate_quotient", _certain),
        (summary, "measured_cells", _of_another_round),
        (comparator, "judge", _either_way),
        (comparator, "judge", _without_threshold),
    ],
)
def test_a_broken_comparator_is_caught(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(module, name, broken)
    caught = 0
    for check in CHECKS:
        try:
            check()
        except AssertionError:
            caught += 1
    assert caught, f"nothing noticed {broken.__name__}"


def test_few_rounds_say_nothing() -> None:
    def short(run: Run) -> Run:
        cells = tuple(cell for cell in run.results.cells if cell.round <= 2)
        return Run(run.name, Results(header=run.results.header, cells=cells))

    assert compared(short(a_run(0.8)), short(a_run(0.4)))["throughput"] is Verdict.UNCLEAR


def test_on_different_machines_only_ratios_to_unprotected_are_compared() -> None:
    a, b = a_run(0.8), a_run(0.6, pause_ms=9, cpu="Xeon")
    outcome = compare(a, b, 0.05, force=False)
    assert verdicts(outcome) == {"throughput": Verdict.WORSE, "lost": Verdict.SAME}
    assert outcome.withheld > 0
    assert outcome.differences == ("cpu: EPYC (0.8); Xeon (0.6)",)
    forced = compare(a, b, 0.05, force=True)
    assert verdicts(forced)["pause_p50"] is Verdict.WORSE
    assert forced.withheld == 0


def test_one_lost_operation_is_worse() -> None:
    assert compared(a_run(0.8), a_run(0.8, lost=1))["lost"] is Verdict.WORSE
    assert compared(a_run(0.8, lost=1), a_run(0.8))["lost"] is Verdict.BETTER


def test_a_setting_that_only_fails_now_is_worse() -> None:
    a = a_run(0.8)
    cells = [cell for cell in a.results.cells if cell.variant == BARE]
    cells.append(Cell(variant=EPOCH, round=1, at="", error="the guest died"))
    outcome = compare(a, Run("b", Results(header=a.results.header, cells=tuple(cells))), 0.05, force=False)
    assert outcome.broken == (EPOCH,)
    assert outcome.worse
    assert outcome.unmatched == ()


def test_only_what_is_named_is_compared() -> None:
    assert set(compared(a_run(0.8), a_run(0.6), only=("pause_p99",))) == {"pause_p99"}


def test_unprotected_is_not_judged() -> None:
    outcome = compare(a_run(0.8), a_run(0.8), 0.05, force=False)
    assert {each.variant.key for each in outcome.comparisons} == {EPOCH.key}


def changed(run: Run, change: Callable[[Cell], Cell]) -> Run:
    """With other protected cells."""
    cells = tuple(change(cell) if cell.variant == EPOCH else cell for cell in run.results.cells)
    return Run("b", Results(header=run.results.header, cells=cells))


def loaded(run: Run, rate: float, latencies_ms: tuple[float, ...]) -> Run:
    load = Load(unit="requests/s", rate=rate, latencies_ms=latencies_ms)
    return changed(run, lambda cell: cell.model_copy(update={"load": load}))


@pytest.mark.parametrize("rounds", [1, 5])
def test_throughput_that_fell_to_nothing_is_worse(rounds: int) -> None:
    def short(run: Run) -> Run:
        cells = tuple(cell for cell in run.results.cells if cell.round <= rounds)
        return Run(run.name, Results(header=run.results.header, cells=cells))

    outcome = compare(short(a_run(0.8)), short(a_run(0)), 0.05, force=False)
    assert verdicts(outcome)["throughput"] is Verdict.WORSE
    assert outcome.worse


def test_nothing_in_both_is_the_same() -> None:
    assert compared(a_run(0), a_run(0))["throughput"] is Verdict.SAME


def test_what_force_went_over_is_told() -> None:
    b = changed(a_run(0.8), lambda cell: cell.model_copy(update={"forced": "commit: abc"}))
    (said,) = compare(a_run(0.8), b, 0.05, force=False).forced
    assert said.endswith("was gone on with by --force, in part with commit: abc")


def test_how_many_figures_lie_apart_by_chance_is_told() -> None:
    outcome = compare(a_run(0.8), a_run(0.8), 0.05, force=False)
    ratios = sum(each.ratio is not None for each in outcome.comparisons)
    assert ratios > 1
    assert outcome.by_chance == pytest.approx(ratios * 0.05)
    assert [by_chance(rounds) for rounds in (1, 2, 3)] == [0, 0, 0.1]


def test_where_nothing_is_answered_any_more_latency_is_worse() -> None:
    a, b = loaded(a_run(0.8), 800, (1.0,) * 100), loaded(a_run(0.8), 800, ())
    outcome = compare(a, b, 0.05, force=False)
    assert {figure.measure.name for figure in outcome.silent} >= {"latency_p50", "latency_p99"}
    assert outcome.worse
    assert compare(a, b, 0.05, force=False, only=("latency_p99",)).worse
    assert not compare(b, a, 0.05, force=False).worse


def test_a_percentile_that_lacks_samples_is_named_and_not_worse() -> None:
    a, b = loaded(a_run(0.8), 800, (1.0,) * 100), loaded(a_run(0.8), 800, (1.0,) * 99)
    outcome = compare(a, b, 0.05, force=False)
    assert [figure.measure.name for figure in outcome.missing] == ["latency_p99"]
    assert not outcome.worse


def test_a_setting_that_fails_in_some_rounds_only_is_named() -> None:
    a = a_run(0.8)
    b = changed(a, lambda cell: cell.model_copy(update={"error": "died"}) if cell.round == 2 else cell)
    assert compare(a, b, 0.05, force=False).faltering == (EPOCH,)
    assert compare(b, b, 0.05, force=False).faltering == ()


def with_accelerator(run: Run, accelerator: str) -> Run:
    environment = {**run.results.header.environment, "accelerator": accelerator}
    header = run.results.header.model_copy(update={"environment": environment})
    return Run(accelerator, run.results.model_copy(update={"header": header}))


def test_absolute_figures_of_different_accelerators_are_withheld_but_not_of_older_files() -> None:
    older = a_run(0.8)
    kvm, tcg = (with_accelerator(older, name) for name in ("kvm", "tcg"))
    outcome = compare(kvm, tcg, 0.05, force=False)
    assert outcome.withheld > 0
    assert outcome.differences == ("accelerator: kvm (kvm); tcg (tcg)",)
    assert compare(older, tcg, 0.05, force=False).withheld == 0
