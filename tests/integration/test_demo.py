"""The demo from its command line: once with real guests, and several times against daemons that fail."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from remuslike.demo.topology import NAMESPACE_DIRECTORY

pytestmark = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 isn't installed"
    ),
]

LIMIT_S = 300
COMMAND = str(Path(sys.executable).with_name("remuslike"))

ISSUE_KEYS = {
    *("acked_writes", "lost_acked_writes", "connection_resets", "client_outage_ms", "detection_ms"),
    *("activation_ms", "checkpoints", "checkpoint_rate_hz", "pause_ms", "dirty_pages", "wire_ratio"),
    *("fsck_clean", "aof_clean", "seed"),
}

# A demo whose daemons are the program given as arguments.
WITH_DAEMON = (
    "import sys\n"
    "from dataclasses import replace\n"
    "from rich.console import Console\n"
    "from remuslike.demo.options import DEFAULTS\n"
    "from remuslike.demo.runner import run_demo\n"
    "sys.exit(run_demo(replace(DEFAULTS, daemon=tuple(sys.argv[1:])), Console()))\n"
)


class Demo:
    """A demo as a process of its own, whose temporary files are in a folder of the test."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
        )

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate()

    def finish(self) -> tuple[int, str]:
        """Its exit status and what it said; afterwards nothing of it may be left."""
        try:
            output, _ = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not done after {LIMIT_S} s")
        assert list(NAMESPACE_DIRECTORY.glob(f"rl-{self.process.pid}-*")) == []
        assert list(self.folder.iterdir()) == []
        return self.process.returncode, output


@pytest.fixture
def folder() -> Iterator[Path]:
    """For the demo's files; unlike tmp_path short enough for unix sockets in it."""
    with tempfile.TemporaryDirectory(prefix="rl-") as name:
        yield Path(name)


def test_nothing_acknowledged_is_lost_when_the_host_dies(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    # A silence of 100 ms is no proof of death on a machine that runs tests beside it.
    line = f"demo --seed 5 --duration-s 4 --detect-ms 1000 --json {report}"
    with Demo([COMMAND, *line.split()], folder) as demo:
        status, output = demo.finish()
    assert status == 0, output
    figures = json.loads(report.read_text())
    assert figures.keys() >= ISSUE_KEYS
    assert figures["pause_ms"].keys() >= {"median", "p99", "max"}
    assert figures["dirty_pages"].keys() >= {"median", "max"}
    assert figures["problems"] == []
    assert figures["acked_writes"] > 100
    assert figures["checkpoints"] > 10
    assert (figures["lost_acked_writes"], figures["connection_resets"], figures["seed"]) == (0, 0, 5)
    assert figures["fsck_clean"]
    assert figures["aof_clean"]


def failing_demo(folder: Path, script: str) -> Demo:
    return Demo([sys.executable, "-c", WITH_DAEMON, "/bin/sh", "-c", script, "daemon"], folder)


def test_a_daemon_that_dies_early_is_quoted(folder: Path) -> None:
    with failing_demo(folder, "echo 'no such bridge' >&2; exit 3") as demo:
        status, output = demo.finish()
    assert status == 2
    assert "the secondary ended early with status 3" in output
    assert "no such bridge" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_demo_leaves_nothing(
    folder: Path, tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    pipe = os.open(started, os.O_RDWR)  # for writing as well, so that opening waits for nobody
    with failing_demo(folder, f"echo $$ > {started}; sleep 600 & wait") as demo, os.fdopen(pipe) as lines:
        assert select.select([pipe], [], [], LIMIT_S)[0]
        daemon = int(lines.readline())
        demo.process.send_signal(number)
        status, output = demo.finish()
    assert status == expected, output
    assert "Traceback" not in output
    assert not Path(f"/proc/{daemon}").exists()
