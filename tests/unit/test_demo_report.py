"""Figures, JSON shape and verdict of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from remuslike.demo.messages import Sample, Takeover
from remuslike.demo.report import (
    Check,
    Distribution,
    Examination,
    Observation,
    Result,
    Summary,
    conclude,
    distribution,
    outage_ms,
)
from remuslike.demo.workload import Finding

ISSUE_KEYS = {
    *("acked_writes", "lost_acked_writes", "connection_resets", "client_outage_ms", "detection_ms"),
    *("activation_ms", "checkpoints", "checkpoint_rate_hz", "pause_ms", "dirty_pages", "wire_ratio"),
    *("fsck_clean", "aof_clean", "seed"),
}


def sample(epoch: int, **changes: Any) -> Sample:
    figures: dict[str, Any] = {
        **{"epoch": epoch, "at": 100 + epoch * 0.025, "dirty_pages": 500, "pause_ms": 4.0 + epoch % 3},
        **{"stop_ms": 1.0, "scan_ms": 0.5, "copy_ms": 0.7, "devices_ms": 1.8, "resume_ms": 0.5},
        **{"seal_ms": 0.1, "gap_ms": 0.1},
        **{"raw_bytes": 500 * 4096, "wire_bytes": 40_960, "commit_ms": 8.0},
    }
    return Sample(**(figures | changes))


CLEAN = Examination(Check(True, ""), Check(True, ""), ())
SEEN = Observation(
    seed=9,
    acknowledged_writes=100,
    acknowledged_before_kill=60,
    failures=(),
    findings=(),
    read_back_complete=True,
    load_limited=False,
    reply_times=(100.0, 100.5, 101.0, 101.2, 102.0),
    samples=tuple(sample(epoch) for epoch in range(1, 42)),
    load_started_at=100.0,
    killed_at=101.05,
    takeover=Takeover(cause="silence", decided_at=101.16, activation_ms=12.345),
    baseline_pause_ms=(4.0, 4.0, 5.0),
    examination=CLEAN,
    timings_s={"set-up": 12.3456},
)


def test_a_clean_run() -> None:
    result = conclude(SEEN)
    assert result.problems == ()
    assert (result.acked_writes, result.lost_acked_writes, result.connection_resets) == (100, 0, 0)
    assert result.client_outage_ms == 800.0
    assert result.detection_ms == 110.0
    assert result.activation_ms == 12.35
    assert result.checkpoints == 41
    assert result.checkpoint_rate_hz == 40.0
    assert result.pause_ms == Distribution(median=5.0, p99=6.0, max=6.0)
    assert result.pause_ratio == 1.25
    assert result.wire_ratio == 0.02
    assert result.pause_parts_ms == {"stop": 1.0, "scan": 0.5, "copy": 0.7, "devices": 1.8, "resume": 0.5}


def test_the_json_file_has_the_promised_keys() -> None:
    document = json.loads(json.dumps(conclude(SEEN).document()))
    assert document.keys() >= ISSUE_KEYS
    assert document["pause_ms"].keys() == {"median", "p99", "max"}
    assert document["dirty_pages"].keys() >= {"median", "max"}
    assert document["timings_s"] == {"set-up": 12.35}


LOST = Finding("missing", 1, 2, acknowledged=True)
CHANGED = Finding("changed", 1, 7, acknowledged=True)
CHANGED_UNANSWERED = Finding("changed", 1, 8, acknowledged=False)
TWICE = Finding("duplicate", 0, 3, acknowledged=True)


@pytest.mark.parametrize(
    ("change", "lost", "resets", "twice"),
    [
        (lambda seen: replace(seen, findings=(LOST,)), 1, 0, 0),
        (lambda seen: replace(seen, findings=(CHANGED,)), 1, 0, 0),
        (lambda seen: replace(seen, findings=(CHANGED_UNANSWERED,)), 0, 0, 0),
        (lambda seen: replace(seen, examination=replace(CLEAN, findings=(LOST,))), 1, 0, 0),
        (lambda seen: replace(seen, examination=replace(CLEAN, findings=(TWICE,))), 0, 0, 1),
        (lambda seen: replace(seen, failures=("[Errno 104] Connection reset by peer",)), 0, 1, 0),
        (lambda seen: replace(seen, read_back_complete=False), 0, 0, 0),
        (lambda seen: replace(seen, acknowledged_before_kill=0), 0, 0, 0),
        (lambda seen: replace(seen, reply_times=(100.0, 101.0)), 0, 0, 0),
        (lambda seen: replace(seen, examination=replace(CLEAN, filesystem=Check(False, "x"))), 0, 0, 0),
        (lambda seen: replace(seen, examination=replace(CLEAN, append_only_file=Check(False, "x"))), 0, 0, 0),
    ],
)
def test_each_broken_promise_is_a_problem(
    change: Callable[[Observation], Observation], lost: int, resets: int, twice: int
) -> None:
    result = conclude(change(SEEN))
    assert len(result.problems) == 1
    assert (result.lost_acked_writes, result.connection_resets, result.duplicated_writes) == (
        lost,
        resets,
        twice,
    )


def test_a_write_found_lost_twice_is_one_write() -> None:
    seen = replace(SEEN, findings=(LOST,), examination=replace(CLEAN, findings=(LOST,)))
    assert conclude(seen).lost_acked_writes == 1


def test_a_run_without_checkpoints_has_zeros() -> None:
    result = conclude(replace(SEEN, samples=(), baseline_pause_ms=()))
    assert (result.checkpoints, result.checkpoint_rate_hz, result.wire_ratio) == (0, 0.0, 0.0)
    assert result.pause_ratio is None
    assert conclude(replace(SEEN, samples=(sample(1),))).checkpoint_rate_hz == 0.0


def test_percentiles_are_nearest_ranks() -> None:
    assert distribution([]) == Distribution(0.0, 0.0, 0.0)
    assert distribution([3.0]) == Distribution(3.0, 3.0, 3.0)
    assert distribution([float(n) for n in range(1, 101)]) == Distribution(50.5, 99.0, 100.0)
    assert distribution([float(n) for n in range(1, 201)]).p99 == 198.0


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((9.9, 10.25, 10.3), 350.0),
        ((5.0, 9.0, 9.95, 10.2), 950.0),  # a gap just before the kill may be part of it
        ((1.0, 5.0, 9.9, 10.1), 4900.0),
        ((1.0, 4.0, 9.0, 9.9, 10.1), 900.0),  # too early to be of the kill
        ((9.9, 10.2, 15.1, 17.0), 4900.0),
        ((9.9, 10.2, 11.0, 15.9, 18.0), 4900.0),  # the last gap begins too late
        ((10.2, 9.9), 300.0),
        ((), None),
        ((9.0, 9.9), None),
        ((10.2,), None),
    ],
)
def test_the_outage_is_the_longest_gap_around_the_kill(
    times: tuple[float, ...], expected: float | None
) -> None:
    assert outage_ms(times, 10.0) == (None if expected is None else pytest.approx(expected))


def with_outage(outage: float | None, lost: int = 0) -> Result:
    return replace(conclude(SEEN), client_outage_ms=outage, lost_acked_writes=lost)


def test_a_summary_has_medians_sums_and_all_runs() -> None:
    summary = Summary((with_outage(100.0), with_outage(300.0, lost=2), with_outage(None)))
    document = json.loads(json.dumps(summary.document()))
    assert document["medians"]["client_outage_ms"] == 200.0
    assert document["medians"]["pause_ms.median"] == 5.0
    assert document["lost_acked_writes"] == 2
    assert document["acked_writes"] == 300
    assert document["fsck_clean"] is True
    assert len(document["runs"]) == 3
    assert "seed" not in document["medians"]
