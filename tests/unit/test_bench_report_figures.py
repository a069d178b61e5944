"""From cells to figures, against values computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from remuslike.bench.report.intervals import Estimate, estimate, estimate_quotient
from remuslike.bench.report.measures import measure_of, pause_shares, takeover_parts, values_of
from remuslike.bench.report.summary import Run, Summary, differences, order
from remuslike.bench.results import Cell, Header, Load, Results, Variant

BARE = Variant(guest="q35", workload="redis", parameters={"clients": 16}, mode="unprotected")
EPOCH = BARE.model_copy(update={"mode": "epoch", "epoch_ms": 25.0})


def cell(variant: Variant, number: int, rate: float, **fields: Any) -> Cell:
    return Cell(
        variant=variant, round=number, at="2026-11-25", load=Load(unit="requests/s", rate=rate), **fields
    )


def run(*cells: Cell, name: str = "a.jsonl", **environment: Any) -> Run:
    return Run(name, Results(header=Header(environment=environment, options={}), cells=cells))


def test_a_ratio_is_to_the_unprotected_cell_of_its_own_round() -> None:
    cells = [cell(BARE, n, rate) for n, rate in ((1, 100), (2, 200), (3, 400))]
    cells += [cell(EPOCH, n, rate) for n, rate in ((1, 80), (2, 180), (3, 280))]
    figure = Summary([run(*cells)]).get(EPOCH, "throughput")
    assert figure is not None
    assert figure.value == Estimate(180, 80, 280, 3)
    assert figure.ratios == pytest.approx((0.8, 0.9, 0.7))
    assert figure.ratio is not None
    assert (figure.ratio.median, figure.ratio.low, figure.ratio.high) == pytest.approx((0.8, 0.7, 0.9))
    assert figure.unit == "requests/s"


def test_rounds_of_different_runs_are_never_paired() -> None:
    one = run(cell(BARE, 1, 100), cell(EPOCH, 1, 50))
    other = run(cell(BARE, 1, 1000), cell(EPOCH, 1, 900))
    alone = run(cell(EPOCH, 1, 7))
    figure = Summary([one, other, alone]).get(EPOCH, "throughput")
    assert figure is not None
    assert figure.ratios == pytest.approx((0.5, 0.9))
    assert figure.values == (50, 900, 7)


def test_other_loads_and_guests_are_no_baseline() -> None:
    other = BARE.model_copy(update={"parameters": {"clients": 1}})
    guest = BARE.model_copy(update={"guest": "microvm"})
    figure = Summary([run(cell(other, 1, 1), cell(guest, 1, 2), cell(EPOCH, 1, 50))]).get(EPOCH, "throughput")
    assert figure is not None
    assert figure.ratios == ()
    assert figure.ratio is None


def test_unprotected_has_no_ratio() -> None:
    figure = Summary([run(cell(BARE, 1, 100))]).get(BARE, "throughput")
    assert figure is not None
    assert figure.ratio is None


def test_a_cell_that_was_measured_again_counts_once() -> None:
    failed = Cell(variant=EPOCH, round=1, at="", error="died")
    summary = Summary([run(failed, cell(EPOCH, 1, 5), Cell(variant=BARE, round=1, at="", error="no tap"))])
    figure = summary.get(EPOCH, "throughput")
    assert figure is not None
    assert figure.values == (5,)
    assert [(name, each.error) for name, each in summary.failed] == [("a.jsonl", "no tap")]


def test_latency_and_what_protection_adds_to_it() -> None:
    def with_latencies(variant: Variant, shift: float) -> Cell:
        latencies = tuple(float(each) + shift for each in range(1, 102))
        return Cell(
            variant=variant, round=1, at="", load=Load(unit="requests/s", rate=1, latencies_ms=latencies)
        )

    summary = Summary([run(with_latencies(BARE, 0), with_latencies(EPOCH, 49))])
    values = {name: figure.values[0] for (key, name), figure in summary.figures.items() if key == EPOCH.key}
    assert values["latency_p50"] == 100
    assert values["latency_p95"] == 145
    assert values["latency_p99"] == 149
    assert "latency_p99.9" not in values  # of 101 operations it would be the slowest
    assert values["added_latency_p50"] == 49
    assert values["added_latency_p99"] == 49
    ratio = summary.figures[EPOCH.key, "latency_p50"].ratio
    assert ratio is not None
    assert ratio.median == pytest.approx(100 / 51)


def test_what_checkpoints_say() -> None:
    values = values_of(
        Cell(
            variant=EPOCH,
            round=1,
            at="",
            seconds=2.0,
            checkpoints={
                "pause_ms": (4.0, 6.0, 8.0),
                "commit_ms": (1.0, 5.0, None),
                "stop_ms": (1.0, 2.0, 3.0),
                "dirty_pages": (10, 30, 20),
                "raw_bytes": (2**20, 2**20, 2**21),
                "wire_bytes": (2**18, 2**18, 2**19),
            },
            cores={"qemu": 0.5},
            memory_mib={"primary": 600.0},
            takeover_ms={"decided": 100.0, "running": 112.0},
            lost=0,
        )
    )
    assert values["pause_p50"] == 6
    assert values["pause_p99"] == pytest.approx(7.96)
    assert values["pause_max"] == 8
    assert values["pause_stop"] == 2
    assert values["commit_p50"] == 3
    assert values["output_wait_p50"] == 8  # of 5 and 11; the third is outstanding
    assert values["checkpoint_rate"] == 1.5
    assert values["dirty_pages"] == 20
    assert values["wire_ratio"] == 0.25
    assert values["wire_rate"] == 0.5
    assert values["cores_qemu"] == 0.5
    assert values["memory_primary"] == 600
    assert values["takeover"] == 112
    assert values["takeover_running"] == 12
    assert values["lost"] == 0
    assert "throughput" not in values
    assert all(measure_of(name).title for name in values)


def test_what_an_operation_takes_over_the_least_that_its_own_checkpoint_would() -> None:
    load = Load(unit="requests/s", rate=1, latencies_ms=(9.0, 10.0, 11.0))
    found = Cell(
        variant=EPOCH, round=1, at="", load=load, checkpoints={"pause_ms": (3.0, 3.5, 9.0)}, link_ms=0.5
    )
    assert values_of(found)["latency_multiple"] == 2.5
    assert values_of(found)["link_round_trip"] == 0.5
    for missing in ({"link_ms": None}, {"checkpoints": {}}, {"load": None}):
        assert "latency_multiple" not in values_of(found.model_copy(update=missing))


def test_a_pause_that_lasts_until_the_acknowledgement_has_the_commit_in_it() -> None:
    checkpoints = {
        "pause_ms": (10.0, 12.0, 14.0),
        "commit_ms": (4.0, 6.0, 20.0),
        "devices_ms": (3.0, 3.0, 3.0),
        "resume_ms": (1.0, 1.0, 1.0),
    }
    tapped = EPOCH.model_copy(update={"mode": "event-tap", "epoch_ms": None})
    found = Cell(variant=tapped, round=1, at="", checkpoints=checkpoints)
    assert values_of(found)["output_wait_p50"] == 12
    shares = pause_shares(found)
    assert shares is not None
    assert (shares["commit"], shares["gap"]) == pytest.approx((20 / 3, 4 / 3))
    assert sum(shares.values()) == pytest.approx(12)


def test_the_shares_of_a_pause_add_up_to_it() -> None:
    shares = pause_shares(
        Cell(
            variant=EPOCH,
            round=1,
            at="",
            checkpoints={
                "pause_ms": (10.0, 10.0),
                "stop_ms": (1.0, 1.0),
                "scan_ms": (2.0, 2.0),
                "copy_ms": (1.0, 1.0),
                "devices_ms": (5.0, 1.0),  # two beyond scan and copy, or none
                "resume_ms": (2.0, 2.0),
            },
        )
    )
    assert shares == {
        "stop": 1,
        "seal": 0,
        "scan": 2,
        "copy": 1,
        "devices": 1,
        "resume": 2,
        "commit": 0,
        "gap": 3,
    }


def test_a_cell_without_checkpoints_has_no_pause() -> None:
    assert pause_shares(cell(BARE, 1, 1)) is None


def test_the_parts_of_a_takeover_add_up_to_it() -> None:
    steps = {"decided": 100.0, "opened": 105.0, "first_reply": 200.0}
    assert takeover_parts(Cell(variant=EPOCH, round=1, at="", takeover_ms=steps)) == {
        "decided": 100,
        "opened": 5,
        "first_reply": 95,
    }


def test_one_value_has_no_interval_and_many_have_a_narrow_one() -> None:
    assert estimate([3.0]) == Estimate(3, None, None, 1)
    many = estimate(np.random.default_rng(1).normal(10, 1, 400).tolist())
    assert many.low is not None
    assert many.high is not None
    # The median of 400 has a standard error of 1.25/20.
    assert 9.8 < many.low < many.median < many.high < 10.2
    assert estimate([1.0, 2.0, 9.0]) == estimate([1.0, 2.0, 9.0])


def test_a_quotient_is_the_first_over_the_second() -> None:
    assert estimate_quotient([6.0], [2.0]) == Estimate(3, None, None, 1)
    assert estimate_quotient([1.0], [0.0]) is None
    found = estimate_quotient([6.0, 6.0, 6.0], [2.0, 3.0, 2.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (3, 2, 3, 3)


def test_variants_are_in_a_readers_order() -> None:
    some = [
        BARE.model_copy(update={"parameters": {"clients": clients}, "mode": mode, "epoch_ms": epoch_ms})
        for clients in (1, 16, 256)
        for mode, epoch_ms in (
            ("unprotected", None),
            ("epoch", 10.0),
            ("epoch", 100.0),
            ("event-tap", None),
            ("adaptive", None),
        )
    ]
    assert sorted([*some[5:], *some[:5]], key=order) == some


def test_environments_that_differ_are_named() -> None:
    a = run(cpu="EPYC", kernel="6.18", tools={"qemu": "7.2"})
    b = run(cpu="Xeon", kernel="6.18", tools={"qemu": "9.0"}, name="b.jsonl")
    assert differences([a, b]) == [
        "cpu: EPYC (a.jsonl); Xeon (b.jsonl)",
        "qemu: 7.2 (a.jsonl); 9.0 (b.jsonl)",
    ]
    assert differences([a]) == []


def test_guests_of_different_sizes_are_named() -> None:
    results = [
        Results(header=Header(environment={}, options={"memory_mib": size, "vcpus": 1}), cells=())
        for size in (512, 4096)
    ]
    runs = [Run(name, each) for name, each in zip(("a", "b"), results, strict=True)]
    assert differences(runs) == ["memory_mib: 512 (a); 4096 (b)"]
