"""remuslike.cli.logs in a process of its own, whose logging it changes for good."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

LEVELS = ("debug", "info", "warning", "error")

PROGRAM = """
import logging, sys, time
import structlog
from remuslike.cli.logs import configure_logs
from remuslike.config import LogSettings

configure_logs(LogSettings(level=sys.argv[1], format=sys.argv[2]))
print(time.monotonic())
log = structlog.get_logger("remuslike.test")
for level in ("debug", "info", "warning", "error"):
    getattr(log, level)(f"ours.{level}", epoch=7, reason="two\\nlines")
    getattr(logging.getLogger("library"), level)(f"library.{level}")
    getattr(logging.getLogger("pyroute2"), level)(f"pyroute2.{level}")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("ours.exception")
print(time.monotonic())
"""


def logged(level: str, form: str) -> tuple[list[str], tuple[float, float]]:
    """The lines on standard error, and the monotonic times between which they were written."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, form], capture_output=True, text=True, timeout=60, check=True
    )
    began, ended = map(float, done.stdout.split())
    return done.stderr.splitlines(), (began, ended)


@pytest.mark.parametrize("level", LEVELS)
def test_each_line_is_json_with_level_and_times(level: str) -> None:
    lines, (began, ended) = logged(level, "json")
    records = [json.loads(line) for line in lines]
    shown = LEVELS[LEVELS.index(level) :]
    expected = [
        (f"{source}.{each}", each)
        for each in shown
        for source in ("ours", "library", "pyroute2")
        if source != "pyroute2" or each in ("warning", "error")
    ]
    told = [(record["event"], record["level"]) for record in records]
    assert told == [*expected, ("ours.exception", "error")]
    for record in records:
        assert began - 1e-6 <= record["monotonic"] <= ended + 1e-6
        assert datetime.fromisoformat(record["time"]).utcoffset() == timedelta(0)


def test_values_are_told_as_they_are_and_a_traceback_is_one_line() -> None:
    lines, _ = logged("error", "json")
    records = {record["event"]: record for record in map(json.loads, lines)}
    ours, exception = records["ours.error"], records["ours.exception"]
    assert (ours["epoch"], ours["reason"]) == (7, "two\nlines")
    assert "ZeroDivisionError: division by zero" in exception["exception"]


def test_the_console_format_is_for_people() -> None:
    lines, _ = logged("warning", "console")
    assert not any(line.startswith("{") for line in lines)
    assert not any("\x1b" in line for line in lines), "colours where there is no terminal"
    (ours,) = [line for line in lines if "ours.warning" in line]
    assert "epoch" in ours
    assert "7" in ours
    assert not any("ours.info" in line for line in lines)
