"""What the benchmarks have in common when they begin and end: what they need, and where samples go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError
from remuslike.bench.figures import Report
from remuslike.bench.view import View
from remuslike.demo.interruption import Interrupted, run_interruptibly
from remuslike.errors import expected_errors


def check_json_path(path: Path | None) -> None:
    """Find out before measuring that a report can be kept. Raises BenchOptionError."""
    if path is not None and not path.absolute().parent.is_dir():
        raise BenchOptionError(f"--json {path}: its directory doesn't exist; create it first")


def check_root() -> None:
    """Raises BenchEnvironmentError."""
    if os.geteuid() != 0:
        raise BenchEnvironmentError("the benchmark makes network namespaces and needs root; run it with sudo")


def check_tools(packages: Mapping[str, str]) -> None:
    """`packages` are the Debian packages by the tool each is needed for. Raises BenchEnvironmentError."""
    for tool, package in packages.items():
        if shutil.which(tool) is None:
            raise BenchEnvironmentError(f"{tool} isn't installed; install it with: apt-get install {package}")


def take_samples(
    measure: Callable[[], Awaitable[None]], report: Report, view: View, path: Path | None
) -> int:
    """Have `measure` add to the samples of `report` to its end, or to a signal; then show and keep it.

    Returns the exit status: 0, or 128 plus the signal's number. When a measurement fails its error is raised
    behind the report.
    """
    try:
        run_interruptibly(measure)
    except Interrupted as interruption:
        _conclude(replace(report, complete=False), view, path)
        view.say("interrupted")
        return 128 + interruption.number
    except expected_errors():
        _conclude(replace(report, complete=False), view, path)
        raise
    _conclude(report, view, path)
    return 0


def _conclude(report: Report, view: View, path: Path | None) -> None:
    if report.samples:  # an earlier run's file is worth more than none
        view.report(report)
        _write_json(path, report)


def _write_json(path: Path | None, report: Report) -> None:
    """Raises BenchEnvironmentError."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(report.document(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise BenchEnvironmentError(f"--json {path}: can't be written: {error.strerror}") from error
