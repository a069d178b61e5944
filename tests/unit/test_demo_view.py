"""What is shown: gauges, stages, tables."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from test_demo_report import SEEN, sample

from remuslike.demo.load import Progress
from remuslike.demo.messages import PrimaryStatistics, SecondaryStatistics
from remuslike.demo.observer import Observer
from remuslike.demo.report import Summary, conclude
from remuslike.demo.view import Gauges, View


def recording(terminal: bool) -> tuple[View, io.StringIO]:
    output = io.StringIO()
    return View(Console(file=output, force_terminal=terminal, width=140)), output


def observer() -> Observer:
    seen = Observer(samples=[sample(epoch) for epoch in range(1, 42)])
    seen.primary_said = PrimaryStatistics.model_validate(
        {
            **{
                "role": "primary",
                "phase": "protected",
                "protected": True,
                "generation": 1,
                "checkpoints": 41,
            },
            "held": {
                "network0": {"held_items": 3, "held_bytes": 300},
                "network1": {"held_items": 1, "held_bytes": 60},
                "disk0": {"held_items": 2, "held_bytes": 8192},
            },
        }
    )
    seen.secondary_said = SecondaryStatistics(role="secondary", phase="standby")
    return seen


def test_gauges_are_of_the_last_two_seconds() -> None:
    gauges = Gauges(observer(), started_at=90.0)
    snapshot = gauges.read(101.1, Progress(at=101.0, acknowledged=50))
    assert snapshot.epochs_per_s == 20.5
    assert snapshot.wire_ratio == 0.02
    assert snapshot.held_network == (4, 360)
    assert snapshot.held_disk == (2, 8192)
    assert snapshot.pause_median_ms == 5.0
    later = gauges.read(102.1, Progress(at=102.0, acknowledged=150))
    assert later.acknowledged_per_s == 100.0
    assert gauges.read(200.0, Progress(at=102.0, acknowledged=150)).epochs_per_s == 0.0


def test_gauges_before_anything_is_known() -> None:
    snapshot = Gauges(Observer(), started_at=1.0).read(1.0, Progress())
    assert (snapshot.primary, snapshot.epochs_per_s, snapshot.acknowledged_per_s) == ("-", 0.0, 0.0)


def test_without_a_terminal_there_is_a_plain_line_every_two_seconds() -> None:
    view, output = recording(terminal=False)
    gauges = Gauges(observer(), started_at=100.0)
    with view.stage("secondary waiting") as tell, view.load():
        tell("pass 1")
        for tenth in range(50):
            view.show(gauges.read(100 + tenth / 10, Progress()))
    lines = output.getvalue().replace("\n ", " ").count("elapsed")
    assert lines == 2
    assert "secondary waiting: done in" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_a_terminal_has_a_live_view() -> None:
    view, output = recording(terminal=True)
    with view.stage("secondary waiting") as tell:
        tell("pass 1")
    with view.load():
        view.show(Gauges(observer(), started_at=100.0).read(101.0, Progress()))
    for word in ("elapsed", "pause", "dirty pages", "on the wire", "held frames"):
        assert word in output.getvalue()


def test_a_result_says_what_is_good_and_what_is_not() -> None:
    view, output = recording(terminal=False)
    view.result(conclude(SEEN))
    assert "Nothing that was acknowledged is lost." in output.getvalue()
    view, output = recording(terminal=False)
    view.result(conclude(replace(SEEN, failures=("[Errno 104] Connection reset by peer",))))
    assert "a connection ended: [Errno 104] Connection reset by peer" in output.getvalue()
    assert "Nothing that was acknowledged" not in output.getvalue()


def test_a_summary_has_a_row_for_each_run_and_medians() -> None:
    view, output = recording(terminal=False)
    view.summary(Summary((conclude(SEEN), replace(conclude(SEEN), seed=10, client_outage_ms=None))))
    assert "2 runs" in output.getvalue()
    assert "medians: client_outage_ms 800" in output.getvalue()
