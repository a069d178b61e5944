"""What a workload is given, as far as it needs no guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from remuslike.bench.errors import MeasurementError
from remuslike.bench.stage import ShellSession, Stage
from remuslike.bench.takeover import parts_of
from remuslike.demo.messages import Takeover


def stage(**processes: int) -> Stage:
    return Stage("nowhere", Path("/dev/null"), processes)


def test_a_window_has_the_costs_of_its_processes() -> None:
    measured = stage(qemu=os.getpid())
    with measured.measured():
        subprocess.run(["true"], check=True)
    window = measured.take_window()
    assert window.cores.keys() == {"qemu", "client"}
    assert window.cores["client"] > 0
    assert window.memory_mib["qemu"] > 1
    assert window.seconds > 0


# Takes a third of a second of a processor at a line, says so, and ends at another.
BUSY = "import sys, time\ninput()\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"


@pytest.mark.parametrize("ends", ["within", "behind"])
def test_a_tools_time_counts_whether_it_ends_within_the_window_or_behind(ends: str) -> None:
    measured = stage()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=-1, stdout=-1, text=True) as tool:
        assert tool.stdin is not None
        assert tool.stdout is not None
        measured.tools.add(tool.pid)
        with measured.measured():
            print(file=tool.stdin, flush=True)
            tool.stdout.readline()
            if ends == "within":
                tool.stdin.close()
                tool.wait()
        window = measured.take_window()
        assert 0.2 < window.cores["client"] * window.seconds < 2


def test_a_process_was_only_as_large_as_while_it_was_measured() -> None:
    large = np.ones(256 << 20, np.uint8)
    measured = stage(qemu=os.getpid())
    with measured.measured():
        pass
    before = measured.take_window()
    del large
    with measured.measured():
        pass
    assert measured.take_window().memory_mib["qemu"] < before.memory_mib["qemu"] - 200


def test_a_cell_has_one_window() -> None:
    measured = stage()
    with measured.measured():
        pass
    with pytest.raises(AssertionError, match="one window"), measured.measured():
        pass
    measured.take_window()
    with pytest.raises(AssertionError, match="nothing was measured"):
        measured.take_window()


def test_a_process_that_ends_while_it_is_measured_is_an_error() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        measured = stage(qemu=process.pid)
        ended = pytest.raises(MeasurementError, match="a process ended while it was measured")
        with ended, measured.measured():
            process.kill()
            process.wait()


async def test_a_session_reads_lines_however_they_are_cut() -> None:
    here, there = trio.testing.memory_stream_pair()
    session = ShellSession(here)
    for part in (b"rea", b"dy\n10", b" 20\nla", b"st"):
        await there.send_all(part)
    await there.send_eof()
    await session.expect("ready")
    await session.expect("10 20")
    assert await session.rest() == "last"


@pytest.mark.parametrize(("said", "quoted"), [(b"perl: not found\n", "'perl: not found'"), (b"", "None")])
async def test_a_session_that_says_something_else_is_an_error(said: bytes, quoted: str) -> None:
    here, there = trio.testing.memory_stream_pair()
    if said:
        await there.send_all(said)
    await there.send_eof()
    with pytest.raises(MeasurementError, match=f"expected 'ready', got {quoted}"):
        await ShellSession(here).expect("ready")


def test_the_parts_of_a_takeover_are_counted_from_the_kill() -> None:
    takeover = Takeover(
        cause="silence", decided_at=10.1, granted_at=10.102, opened_at=10.11, running_at=10.12
    )
    parts = parts_of(takeover, 10.0, [9.9, 10.001, 10.3, 10.4])
    assert parts == pytest.approx(
        {"decided": 100, "granted": 102, "opened": 110, "running": 120, "first_reply": 300}
    )
    assert parts_of(Takeover(cause="silence", decided_at=10.1), 10.0, []) == pytest.approx({"decided": 100})
