"""remuslike.guest.page_table on a process of ours: what any kernel can show. Soft-dirty bits: tests/lab."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fakes.writing_process import PAGE_BYTES, WritingProcess
from structlog.testing import capture_logs

from remuslike.errors import GuestError, MissingToolError
from remuslike.guest.page_table import ProcessPageTable

PAGES = 16


@pytest.fixture
def process() -> Iterator[WritingProcess]:
    with WritingProcess(PAGES) as made:
        yield made


@pytest.fixture
def table(process: WritingProcess) -> Iterator[ProcessPageTable]:
    with closing(ProcessPageTable(process.pid, process.start, process.length)) as made:
        yield made


def end(process: WritingProcess) -> None:
    """It is a zombie on return, as QEMU before its reaping."""
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def stop(process: WritingProcess) -> None:
    """As an operator does."""
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def test_an_entry_is_there_for_each_page_of_the_region(
    process: WritingProcess, table: ProcessPageTable
) -> None:
    process.write([3, 15], 1)
    entries = table.read()
    assert entries.shape == (PAGES,)
    assert entries.dtype == np.uint64
    assert np.flatnonzero(entries >> np.uint64(63)).tolist() == [3, 15]


def test_a_part_of_a_region_is_that_part(process: WritingProcess) -> None:
    process.write([3, 15], 1)
    with closing(ProcessPageTable(process.pid, process.start + 3 * PAGE_BYTES, 5 * PAGE_BYTES)) as table:
        assert np.flatnonzero(table.read() >> np.uint64(63)).tolist() == [0]


def test_no_thread_runs_while_it_is_stopped(process: WritingProcess, table: ProcessPageTable) -> None:
    process.begin_write([*range(PAGES)] * 2000, 7, threads=4)
    with table.stopped() as stopped:
        assert stopped
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{process.pid}/task").iterdir()
        ]
        assert set(states) == {"T"}
    process.finish()
    assert (process.pages[:, 0] == 7).all()


def test_it_can_be_stopped_again_and_again(process: WritingProcess, table: ProcessPageTable) -> None:
    for value in range(1, 30):
        process.begin_write(range(PAGES), value, threads=2)
        with table.stopped() as stopped:
            assert stopped
        process.finish()
        assert (process.pages[:, 0] == value).all()


def test_it_goes_on_after_an_error(process: WritingProcess, table: ProcessPageTable) -> None:
    with pytest.raises(ZeroDivisionError), table.stopped():
        raise ZeroDivisionError
    process.write([1], 3)


def test_what_somebody_else_stopped_stays_stopped(process: WritingProcess, table: ProcessPageTable) -> None:
    """They may let it go on at any instant, so it does not count."""
    stop(process)
    with table.stopped() as stopped:
        assert not stopped
    assert process.state() == "T"
    process.send_signal(signal.SIGCONT)
    process.write([1], 3)
    with table.stopped() as stopped:
        assert stopped


def test_a_stop_that_takes_too_long_is_called_off(process: WritingProcess, table: ProcessPageTable) -> None:
    with capture_logs() as logs, process.one_thread_deaf():
        for value in (3, 4):
            with table.stopped() as stopped:
                assert not stopped
            process.write([1], value)
    with table.stopped() as stopped:
        assert stopped
    assert [(line["event"], line["pid"]) for line in logs] == [("tracker.cannot_stop", process.pid)]


def test_a_process_that_has_ended_is_gone(process: WritingProcess, table: ProcessPageTable) -> None:
    end(process)
    with pytest.raises(GuestError, match=rf"QEMU \(process {process.pid}\) is gone"):
        table.read()
    with pytest.raises(GuestError, match="is gone"), table.stopped():
        pass


def test_a_process_that_was_reaped_is_gone(process: WritingProcess, table: ProcessPageTable) -> None:
    process.kill()
    with pytest.raises(GuestError, match="is gone"):
        table.clear()
    with pytest.raises(GuestError, match="is gone"), table.stopped():
        pass


def test_a_process_that_ends_while_it_stands_still_is_gone(
    process: WritingProcess, table: ProcessPageTable
) -> None:
    with pytest.raises(GuestError, match="is gone"), table.stopped() as stopped:
        assert stopped
        process.kill()
        table.read()


@pytest.mark.parametrize("pid", [1 << 22, os.getpid()], ids=["that never was", "that is no child"])
def test_a_process_that_cannot_be_stopped_is_refused(pid: int) -> None:
    before = sorted(entry.name for entry in Path("/proc/self/fd").iterdir())
    with pytest.raises(MissingToolError, match=f"the dirty pages of process {pid} can't be read"):
        ProcessPageTable(pid, 0, PAGE_BYTES)
    assert sorted(entry.name for entry in Path("/proc/self/fd").iterdir()) == before


def test_a_process_that_ended_before_is_refused(process: WritingProcess) -> None:
    end(process)
    with pytest.raises(MissingToolError, match=f"the dirty pages of process {process.pid} can't be read"):
        ProcessPageTable(process.pid, process.start, process.length)


def test_nothing_is_left_open(process: WritingProcess) -> None:
    before = sorted(entry.name for entry in Path("/proc/self/fd").iterdir())
    ProcessPageTable(process.pid, process.start, process.length).close()
    assert sorted(entry.name for entry in Path("/proc/self/fd").iterdir()) == before
