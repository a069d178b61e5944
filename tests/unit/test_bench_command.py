"""`remuslike bench net`: options, and refusals before anything is measured."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from remuslike.bench import net
from remuslike.bench.errors import BenchEnvironmentError, BenchError, BenchOptionError
from remuslike.bench.net import NetOptions, run_net_bench
from remuslike.cli.bench import bench
from remuslike.errors import UsageError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[NetOptions]:
    """Runs of the benchmark, which only note what they were asked for."""
    calls: list[NetOptions] = []
    monkeypatch.setattr(net, "run_net_bench", lambda options, console: calls.append(options))
    return calls


def test_defaults_are_those_of_the_options(asked: list[NetOptions]) -> None:
    assert CliRunner().invoke(bench, ["net"]).exit_code == 0
    assert asked == [NetOptions()]


def test_every_option_arrives(asked: list[NetOptions]) -> None:
    CliRunner().invoke(
        bench, "net --seconds 3 --repeat 7 --no-qemu --json out.json --part seal --part udp".split()
    )
    assert asked == [NetOptions(3, 7, False, ("seal", "udp"), Path("out.json"))]


@pytest.mark.parametrize("line", ["net --seconds 0", "net --repeat 0", "net --seconds x", "net --json /"])
def test_what_is_out_of_range_is_refused(asked: list[NetOptions], line: str) -> None:
    assert CliRunner().invoke(bench, line.split()).exit_code == 2
    assert asked == []


def test_a_folder_that_is_missing_is_the_users_mistake(tmp_path: Path) -> None:
    options = NetOptions(json_path=tmp_path / "missing" / "out.json")
    with pytest.raises(BenchOptionError, match=r"--json .*missing.*create it first") as caught:
        run_net_bench(options, Console(file=io.StringIO()))
    assert isinstance(caught.value, UsageError)


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BenchEnvironmentError, match="needs root"):
        run_net_bench(NetOptions(), Console(file=io.StringIO()))


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def which(tool: str) -> Any:
        return None if tool == "nsenter" else f"/usr/bin/{tool}"

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", which)
    with pytest.raises(BenchEnvironmentError, match=r"nsenter isn't installed.*apt-get install util-linux"):
        run_net_bench(NetOptions(), Console(file=io.StringIO()))


def test_the_root_of_the_errors_is_never_raised() -> None:
    assert {error.__name__ for error in BenchError.__subclasses__()} == {
        *("BenchOptionError", "BenchEnvironmentError", "MeasurementError", "ResultsError"),
    }
