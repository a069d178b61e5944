"""`remuslike bench run` from its command line, as short as it gets: structure and sanity, never a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuslike.bench.results import Results, decode_untrusted
from remuslike.demo.plan import Namespaces
from remuslike.demo.processes import processes_in
from remuslike.demo.topology import NAMESPACE_DIRECTORY

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 isn't installed"
    ),
]

LIMIT_S = 240
COMMAND = str(Path(sys.executable).with_name("remuslike"))
TINY = ["--modes", "epoch", "--workloads", "redis:clients=4", "--seconds", "1", "--memory-mib", "256"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a short name, for unix sockets; nothing may be left in it."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name:
        yield Path(name)


class Run:
    """A run as a process of its own, whose temporary files are in a folder of the test."""

    def __init__(self, path: Path, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.path = path
        command = [COMMAND, "bench", "run", *TINY, "--json", str(self.path), *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )

    def lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        return iter(self.process.stdout.readline, "")

    def finish(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=LIMIT_S)
        assert "Traceback" not in output, output
        assert list(self.folder.iterdir()) == []
        assert [
            name for name in Namespaces(self.process.pid).all if (NAMESPACE_DIRECTORY / name).exists()
        ] == []
        return self.process.returncode, output

    @property
    def results(self) -> Results:
        with self.path.open(newline="\n") as lines:
            return decode_untrusted(lines, str(self.path))

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=LIMIT_S)


def test_guests_are_measured_with_and_without_protection(tmp_path: Path, folder: Path) -> None:
    with Run(tmp_path / "results.jsonl", folder, "--repeat", "1") as run:
        status, output = run.finish()
    assert status == 0, output
    plain, protected = run.results.cells
    assert (plain.variant.setting, protected.variant.setting) == ("unprotected", "epoch 25 ms")
    assert plain.cores.keys() == {"qemu", "client"}
    assert protected.cores.keys() == {"primary", "qemu", "secondary", "standby", "client"}
    assert plain.checkpoints == {}
    assert len(protected.checkpoints["pause_ms"]) > 5
    assert {
        "stop_ms",
        "scan_ms",
        "copy_ms",
        "devices_ms",
        "resume_ms",
        "encode_ms",
    } <= protected.checkpoints.keys()
    for cell in (plain, protected):
        assert cell.load is not None
        assert cell.load.rate > 1
        assert len(cell.load.latencies_ms) == cell.load.rate + cell.load.details["late"]
        assert cell.memory_mib["qemu"] > 50
        assert cell.link_ms is not None
        assert 0 < cell.link_ms < 100
    assert run.results.header.environment["cpu"]
    with Run(tmp_path / "results.jsonl", folder, "--repeat", "1") as run:
        status, output = run.finish()
    assert (status, "nothing is left to measure" in output) == (0, True)


def test_a_guest_that_dies_is_recorded_and_ctrl_c_keeps_the_rest(tmp_path: Path, folder: Path) -> None:
    with Run(tmp_path / "results.jsonl", folder, "--repeat", "9") as run:
        lines = run.lines()
        assert "18 cells" in next(line for line in lines if "cells" in line)
        os.kill(first_qemu(run), signal.SIGKILL)
        assert "unprotected: failed: the guest ended early with status -9" in next(lines)
        assert "requests/s" in next(lines)
        run.process.send_signal(signal.SIGINT)
        status, output = run.finish()
    assert status == 130, output
    assert "interrupted; 2 cells more are in" in output
    dead, alive = run.results.cells
    assert dead.error is not None
    assert dead.load is None
    assert alive.error is None
    assert run.results.done() == {(alive.variant.key, 1)}


def first_qemu(run: Run) -> int:
    """The baseline's QEMU, once it is there."""
    namespace = NAMESPACE_DIRECTORY / Namespaces(run.process.pid).hosts["primary"]
    limit = time.monotonic() + LIMIT_S
    while time.monotonic() < limit:
        for process in processes_in(namespace):
            if Path(f"/proc/{process}/comm").read_text().startswith("qemu-system"):
                return process
        time.sleep(0.05)
    raise AssertionError("no guest was started")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "remus"], "the known ones are unprotected, epoch, event-tap, adaptive"),
        (["--workloads", "mysql"], "the known ones are redis, redis-pipeline, redis-steps, oltp, "),
        (["--guest", "arm"], "the known ones are q35, microvm"),
        (["--seconds", "0"], "--seconds 0 is out of range"),
    ],
)
def test_what_is_unknown_is_answered_with_what_is_known(
    tmp_path: Path, folder: Path, arguments: list[str], message: str
) -> None:
    with Run(tmp_path / "results.jsonl", folder, *arguments) as run:
        status, output = run.finish()
    assert status == 2
    assert message in output
    assert not run.path.exists()
