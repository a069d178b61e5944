"""Medians, ratios and verdicts of benchmarks, and their JSON."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from remuslike.bench.figures import FORMAT_VERSION, Figure, Measure, Of, Report, Sample, Wanted, conclude
from remuslike.bench.view import View

SPEED = Measure("speed", "Speed", "Gbit/s", "bare", {"held": Wanted(Of.RATIO, at_least=0.9)})
DELAY = Measure("delay", "Delay", "µs", wanted={"held": Wanted(Of.MEDIAN, at_most=50)})


def samples(setting: str, *values: float, measure: str = "speed", **cores: float) -> list[Sample]:
    return [Sample(measure, setting, number, value, cores) for number, value in enumerate(values, 1)]


def figure(found: list[Figure], setting: str) -> Figure:
    (only,) = [each for each in found if each.setting == setting]
    return only


def test_a_ratio_is_the_median_over_the_rounds_each_to_its_own_baseline() -> None:
    """The machine slowed down by half in the third round, which must not count against what is compared."""
    taken = samples("held", 9.0, 9.5, 4.5) + samples("bare", 10.0, 10.0, 5.0)
    found = figure(conclude([SPEED], taken, timely=True), "held")
    assert (found.median, found.ratio, found.ratio_min, found.ratio_max) == (9.0, 0.9, 0.9, 0.95)
    assert (found.samples, found.unit, found.wanted, found.met) == (3, "Gbit/s", "ratio ≥ 0.9", True)


def test_a_ratio_below_what_is_wanted_is_missed() -> None:
    taken = samples("bare", 10, 10) + samples("held", 8.9, 8.9)
    assert figure(conclude([SPEED], taken, timely=True), "held").met is False


def test_the_baseline_comes_first_and_has_no_ratio() -> None:
    found = conclude([SPEED], samples("held", 1) + samples("bare", 2), timely=True)
    assert [each.setting for each in found] == ["bare", "held"]
    assert (found[0].ratio, found[0].wanted, found[0].met) == (None, None, None)


def test_a_setting_may_be_divided_by_another_than_the_baseline() -> None:
    wanted = {"epochs": Wanted(Of.RATIO, at_least=0.85)}
    measure = replace(SPEED, wanted=wanted, baselines={"epochs": "held"})
    taken = samples("bare", 10, 10) + samples("held", 5, 4) + samples("epochs", 4.5, 3.6)
    found = figure(conclude([measure], taken, timely=True), "epochs")
    assert (found.baseline, found.ratio, found.met) == ("held", 0.9, True)


@pytest.mark.parametrize("baseline", [[], samples("bare", 0.0), [Sample("speed", "bare", 7, 10.0)]])
def test_without_a_baseline_of_the_same_round_there_is_no_verdict(baseline: list[Sample]) -> None:
    found = figure(conclude([SPEED], [*baseline, *samples("held", 9.0)], timely=True), "held")
    assert (found.median, found.ratio, found.met) == (9.0, None, None)


def test_times_of_an_emulated_processor_are_not_judged_but_ratios_are() -> None:
    taken = samples("held", 60.0, measure="delay") + samples("bare", 10) + samples("held", 5)
    assert [each.met for each in conclude([DELAY], taken, timely=True)] == [False]
    assert [each.met for each in conclude([DELAY], taken, timely=False)] == [None]
    assert [each.met for each in conclude([replace(DELAY, counted=True)], taken, timely=False)] == [False]
    assert figure(conclude([SPEED], taken, timely=False), "held").met is False


@pytest.mark.parametrize(
    ("wanted", "inside", "outside", "text"),
    [
        (Wanted(Of.RATIO, at_least=0.9), 0.9, 0.89, "≥ 0.9"),
        (Wanted(Of.MEDIAN, at_most=2), 2, 2.1, "≤ 2"),
        (Wanted(Of.RATIO, at_least=1, at_most=2), 1.5, 0.5, "≥ 1 ≤ 2"),
    ],
)
def test_limits_include_their_ends(wanted: Wanted, inside: float, outside: float, text: str) -> None:
    assert (wanted.met_by(inside), wanted.met_by(outside), str(wanted)) == (True, False, text)


def test_shares_of_processors_are_medians_part_by_part() -> None:
    taken = [
        Sample("speed", "bare", number, 1.0, {"hold": share}) for number, share in enumerate((0.1, 0.4, 0.2))
    ]
    assert conclude([SPEED], taken, timely=True)[0].cores == {"hold": 0.2}


REPORT = Report(
    benchmark="net",
    environment={"kernel": "6.18"},
    options={"repeat": 1},
    measures=(SPEED, DELAY),
    skipped={"plug": "no sch_plug"},
    samples=samples("bare", 10.0, hold=0.0, relay=0.5) + samples("held", 8.0, hold=0.25, relay=0.5),
    timely=False,
)


def test_the_document_has_the_raw_samples_and_a_version() -> None:
    document = json.loads(json.dumps(REPORT.document()))
    assert (document["format"], document["version"]) == ("remuslike-bench", FORMAT_VERSION)
    assert document["samples"][1] == {
        "measure": "speed",
        "setting": "held",
        "round": 1,
        "value": 8.0,
        "cores": {"hold": 0.25, "relay": 0.5},
    }
    assert document["figures"][1]["ratio"] == 0.8
    assert document["skipped"] == {"plug": "no sch_plug"}


def test_the_table_shows_ratios_verdicts_and_what_was_skipped() -> None:
    written = io.StringIO()
    view = View(Console(file=written), REPORT.measures)
    view.sample(REPORT.samples[1], 1)
    view.report(REPORT)
    said = written.getvalue()
    for part in (
        "round 1 of 1: Speed, held: 8 Gbit/s  hold 0.25  relay 0.50",
        "ratio ≥ 0.9 missed",
        "(0.800 to 0.800)",
        "0.75 (0.25)",
        "plug was skipped: no sch_plug",
        "emulated",
    ):
        assert part in said
