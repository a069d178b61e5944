"""What the benchmarks have in common when they begin and end: their report's file, and a failure's cause."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError, MeasurementError
from remuslike.bench.figures import Report
from remuslike.demo.interruption import Interrupted, run_interruptibly


def check_json_path(path: Path | None) -> None:
    """Find out before measuring that a report can be kept. Raises BenchOptionError."""
    if path is not None and not path.absolute().parent.is_dir():
        raise BenchOptionError(f"--json {path}: its directory doesn't exist; create it first")


def write_json(path: Path | None, report: Report) -> None:
    """Keep the report, if a path was given. Raises BenchEnvironmentError."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(report.document(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise BenchEnvironmentError(f"--json {path}: can't be written: {error.strerror}") from error


def check_root() -> None:
    """Raises BenchEnvironmentError."""
    if os.geteuid() != 0:
        raise BenchEnvironmentError("the benchmark makes network namespaces and needs root; run it with sudo")


def check_tools(packages: Mapping[str, str]) -> None:
    """`packages` are the Debian packages by the tool each is needed for. Raises BenchEnvironmentError."""
    for tool, package in packages.items():
        if shutil.which(tool) is None:
            raise BenchEnvironmentError(f"{tool} isn't installed; install it with: apt-get install {package}")


def run_to_end(run: Callable[[], Awaitable[None]]) -> int | None:
    """Run a benchmark to its end, or to a signal that ends it, whose number is returned: what was measured by
    then is worth a report. Raises MeasurementError."""
    try:
        run_interruptibly(run)
    except Interrupted as interruption:
        return interruption.number
    return None


async def first_cause(run: Callable[[], Awaitable[None]]) -> None:
    """Run a benchmark; if a measurement fails, the rest of it was cancelled: raise that MeasurementError.

    A defect of ours stays a group, with all its tracebacks.
    """
    try:
        await run()
    except BaseExceptionGroup as group:
        expected = group.subgroup(MeasurementError)
        if expected is not None and group.split(MeasurementError)[1] is None:
            raise _leaf(expected) from group
        raise


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
