"""Samples are kept however a benchmark ends."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from rich.console import Console

from remuslike.bench.errors import BenchEnvironmentError, MeasurementError
from remuslike.bench.figures import Measure, Report, Sample
from remuslike.bench.output import take_samples
from remuslike.bench.view import View

MEASURES = (Measure("speed", "speed", "1/s"),)


class Bench:
    """One that takes a sample, and then does something else."""

    def __init__(self, then: Callable[[], Awaitable[None]], path: Path, *, count: int = 1) -> None:
        self.then = then
        self.path = path
        self.count = count
        self.samples: list[Sample] = []
        self.output = io.StringIO()

    async def measure(self) -> None:
        for number in range(self.count):
            self.samples.append(Sample("speed", "one", number + 1, 7.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.then)

    def take(self) -> int:
        report = Report("fake", {}, {}, MEASURES, {}, self.samples, timely=True)
        return take_samples(self.measure, report, View(Console(file=self.output), MEASURES), self.path)

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


async def nothing() -> None:
    pass


async def interrupted() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    await trio.sleep_forever()


async def interrupted_with_its_tools() -> None:
    try:
        await interrupted()
    finally:
        raise MeasurementError("iperf3 has heard the signal, too")


async def fails() -> None:
    raise MeasurementError("nothing gets through")


def test_a_whole_run_is_kept(tmp_path: Path) -> None:
    bench = Bench(nothing, tmp_path / "r.json")
    assert bench.take() == 0
    assert bench.document["complete"] is True
    assert [sample["value"] for sample in bench.document["samples"]] == [7.0]


@pytest.mark.parametrize("then", [interrupted, interrupted_with_its_tools])
def test_one_that_is_interrupted_keeps_what_it_has(
    tmp_path: Path, then: Callable[[], Awaitable[None]]
) -> None:
    bench = Bench(then, tmp_path / "r.json", count=3)
    assert bench.take() == 128 + signal.SIGINT
    assert bench.document["complete"] is False
    assert len(bench.document["samples"]) == 3
    assert "speed" in bench.output.getvalue()
    assert "interrupted" in bench.output.getvalue()


def test_one_that_fails_keeps_what_it_has(tmp_path: Path) -> None:
    bench = Bench(fails, tmp_path / "r.json")
    with pytest.raises(MeasurementError, match="nothing gets through"):
        bench.take()
    assert bench.document["complete"] is False
    assert len(bench.document["samples"]) == 1


def test_one_that_has_nothing_leaves_an_earlier_file_alone(tmp_path: Path) -> None:
    bench = Bench(interrupted, tmp_path / "r.json", count=0)
    bench.path.write_text("earlier")
    assert bench.take() == 128 + signal.SIGINT
    assert bench.path.read_text() == "earlier"


def test_a_defect_is_no_interruption(tmp_path: Path) -> None:
    async def broken() -> None:
        try:
            await interrupted()
        finally:
            raise ZeroDivisionError

    with pytest.raises(BaseExceptionGroup):
        Bench(broken, tmp_path / "r.json").take()


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchEnvironmentError, match="can't be written"):
        Bench(nothing, tmp_path).take()
