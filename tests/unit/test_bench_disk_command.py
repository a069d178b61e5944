"""`remuslike bench disk`: options, refusals before anything is measured, and the part that needs no tool."""

from __future__ import annotations

import io
import json
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from remuslike.bench import disk
from remuslike.bench.disk import MEASURES, SEAL, SEAL_WRITES, DiskOptions, run_disk_bench
from remuslike.bench.diskseal import longest_seal_us, scattered
from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError
from remuslike.cli.bench import bench


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[DiskOptions]:
    """Runs of the benchmark, which only note what they were asked for."""
    calls: list[DiskOptions] = []
    monkeypatch.setattr(disk, "run_disk_bench", lambda options, console: calls.append(options) or 0)
    return calls


def test_defaults_are_those_of_the_options(asked: list[DiskOptions]) -> None:
    assert CliRunner().invoke(bench, ["disk"]).exit_code == 0
    assert asked == [DiskOptions()]


def test_every_option_arrives(asked: list[DiskOptions]) -> None:
    line = (
        "disk --seconds 3 --repeat 7 --json out.json --directory images --part seal --part nbd --disk-mib 300"
    )
    CliRunner().invoke(bench, line.split())
    assert asked == [DiskOptions(3, 7, ("seal", "nbd"), Path("images"), Path("out.json"), 300)]


@pytest.mark.parametrize(
    "line", ["disk --seconds 0", "disk --repeat x", "disk --part tcp", "disk --json /", "disk --disk-mib 255"]
)
def test_what_is_out_of_range_is_refused(asked: list[DiskOptions], line: str) -> None:
    assert CliRunner().invoke(bench, line.split()).exit_code == 2
    assert asked == []


@pytest.mark.parametrize("option", ["json_path", "directory"])
def test_a_folder_that_is_missing_is_the_users_mistake(tmp_path: Path, option: str) -> None:
    options = DiskOptions(**{option: tmp_path / "missing" / "x"})  # type: ignore[arg-type]
    with pytest.raises(BenchOptionError, match=r"--\w+ .*missing.*create it first"):
        run_disk_bench(options, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("part", "tool"), [("nbd", "nbdkit"), ("connections", "fio"), ("guest", "qemu-system-x86_64")]
)
def test_a_missing_tool_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, part: str, tool: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else f"/usr/bin/{name}")
    with pytest.raises(BenchEnvironmentError, match=rf"{tool} isn't installed.*apt-get install"):
        run_disk_bench(DiskOptions(parts=(part,)), Console(file=io.StringIO()))


def test_every_measure_has_a_title_of_its_own_or_continues_the_one_before() -> None:
    titles = [measure.title for measure in MEASURES if not measure.title.startswith("...")]
    assert len(titles) == len({*titles})


async def test_a_seal_is_timed_and_its_epoch_let_out() -> None:
    assert await longest_seal_us(scattered(10, 4096)) > 0


def test_scattered_writes_touch_nowhere() -> None:
    extents = sorted(scattered(100, 4096), key=lambda extent: extent.offset)
    assert len(extents) == 100
    for before, after in pairwise(extents):
        assert before.end < after.offset


def test_the_seals_are_reported_as_a_table_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SEAL_WRITES", dict.fromkeys(SEAL_WRITES, (3, 4096)))
    written, path = io.StringIO(), tmp_path / "report.json"
    run_disk_bench(DiskOptions(repeat=2, parts=("seal",), json_path=path), Console(file=written))
    assert "median ≤ 100" in written.getvalue()
    document = json.loads(path.read_text())
    assert {figure["setting"] for figure in document["figures"]} == {*SEAL_WRITES}
    assert [sample["measure"] for sample in document["samples"]] == [SEAL] * 2 * len(SEAL_WRITES)


def test_what_was_measured_before_a_signal_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 2.0])

    async def longest_seal_us(_writes: object) -> float:
        if (value := next(values, None)) is None:
            signal.raise_signal(signal.SIGINT)
            await trio.sleep_forever()
        assert value is not None
        return value

    monkeypatch.setattr(disk.diskseal, "longest_seal_us", longest_seal_us)
    path = tmp_path / "report.json"
    options = DiskOptions(repeat=9, parts=("seal",), json_path=path)
    assert run_disk_bench(options, Console(file=io.StringIO())) == 128 + signal.SIGINT
    assert [sample["value"] for sample in json.loads(path.read_text())["samples"]] == [1.0, 2.0]
