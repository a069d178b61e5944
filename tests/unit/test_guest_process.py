"""remuslike.guest.process, with a fake QEMU that starts or doesn't, says things, and ends."""

# ruff: noqa: ASYNC240  (a test may block for a small file)

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from fakes.started_qemu import Started, running_fake_qemu, start_fake_qemu
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from remuslike.engine.events import GuestEnd
from remuslike.errors import GuestError, MissingToolError
from remuslike.guest.process import DeviceState


def our_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def wait_ended(qemu: Started) -> tuple[GuestEnd, str]:
    """The first end that was reported."""
    with trio.fail_after(10):
        while not qemu.ends:
            await trio.lowlevel.checkpoint()
    return qemu.ends[0]


# --- device state ---------------------------------------------------------------------------------


def test_device_state_is_written_by_one_and_read_by_the_other() -> None:
    state = DeviceState()
    os.write(state.writable, b"first")
    assert state.read() == b"first"
    state.clear()
    assert state.read() == b""
    os.write(state.writable, b"second")
    assert state.read() == b"second"
    state.close()


def test_device_state_is_handed_out_for_writing_only() -> None:
    state = DeviceState()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(state.writable, 1)
    assert not os.get_inheritable(state.writable)
    state.close()


# --- a start --------------------------------------------------------------------------------------


async def test_a_started_qemu_is_negotiated_with_and_named(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        assert qemu.process.version == "7.2.99"
        assert await qemu.process.qmp.execute("query-status") == {"status": "prelaunch"}
        assert qemu.ends == []


async def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    before = our_descriptors()
    async with running_fake_qemu(tmp_path) as qemu:
        pid = qemu.process.pid
        memory = qemu.process.memory.pages.ctypes.data
    assert is_gone(pid)
    del qemu
    assert memory
    leftover = {
        str(Path(f"/proc/self/fd/{name}").readlink())
        for name in our_descriptors() - before
        if Path(f"/proc/self/fd/{name}").is_symlink()
    }
    assert leftover <= {"/memfd:remuslike-ram (deleted)"}  # mmap's own, until its arrays are gone


@pytest.mark.parametrize("qemu", ["qemu-of-nobody", "/nonexistent/qemu"])
async def test_a_missing_program_is_named_with_its_package(tmp_path: Path, qemu: str) -> None:
    with pytest.raises(MissingToolError, match=f"'{qemu}' is not installed.*qemu-system-x86"):
        start_fake_qemu(tmp_path, qemu=qemu)


async def test_a_place_for_its_log_that_is_missing_is_named(tmp_path: Path) -> None:
    before = our_descriptors()
    with pytest.raises(GuestError, match=r"can't be started: .*No such file"):
        start_fake_qemu(tmp_path / "missing")
    assert len(our_descriptors()) <= len(before) + 1  # mmap's own


async def test_a_qemu_that_ends_at_once_is_told_in_its_own_words(tmp_path: Path) -> None:
    started = start_fake_qemu(tmp_path, "die")
    with pytest.raises(GuestError, match="QEMU's last words: qemu: this machine doesn't start"):
        await started.process.run()
    assert is_gone(started.process.pid)
    started.process.close()


async def test_a_qemu_that_says_nothing_is_ended(tmp_path: Path, autojump_clock: MockClock) -> None:
    started = start_fake_qemu(tmp_path, "mute")
    with pytest.raises(GuestError, match="did not answer within 120 s; QEMU's last words: "):
        await started.process.run()
    assert is_gone(started.process.pid)
    started.process.close()


# --- what it says ---------------------------------------------------------------------------------


async def test_a_guests_own_power_off_is_reported_once(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        await qemu.process.qmp.execute(
            "event", event="SHUTDOWN", data={"guest": True, "reason": "guest-shutdown"}
        )
        assert await wait_ended(qemu) == (GuestEnd.SHUTDOWN, "guest-shutdown")
    assert len(qemu.ends) == 1


@pytest.mark.parametrize("name", ["RESET", "GUEST_PANICKED", "WATCHDOG"])
async def test_what_an_operator_must_know_is_logged(tmp_path: Path, name: str) -> None:
    with capture_logs() as logs:
        async with running_fake_qemu(tmp_path) as qemu:
            await qemu.process.qmp.execute("event", event=name, data={"reason": "it did"})
    (log,) = [log for log in logs if log["event"] == "guest.event"]
    assert (log["event_name"], log["reason"], log["log_level"]) == (name, "it did", "warning")
    assert qemu.ends == []


async def test_the_first_resume_is_waited_for(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu, trio.open_nursery() as nursery:
        results: list[bool] = []

        async def wait() -> None:
            results.append(await qemu.process.wait_resumed())

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert results == []
        await qemu.process.qmp.execute("cont")
        assert await qemu.process.wait_resumed()
    assert results == [True]


# --- an end ---------------------------------------------------------------------------------------


async def test_an_exit_is_reported_with_its_status_and_fails_commands(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        with pytest.raises(GuestError, match=r"closed its monitor|broke off"):
            await qemu.process.qmp.execute("exit", status=7)
        end, detail = await wait_ended(qemu)
        assert end is GuestEnd.DIED
        assert detail.startswith("QEMU ended with exit status 7: ")
        assert not await qemu.process.wait_resumed()


async def test_a_kill_is_reported_with_its_signal(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        os.kill(qemu.process.pid, signal.SIGKILL)
        assert await wait_ended(qemu) == (GuestEnd.DIED, "QEMU ended with signal 9: (none)")


async def test_an_end_that_was_asked_for_is_no_news(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        await qemu.process.destroy()
        assert is_gone(qemu.process.pid)
        await qemu.process.destroy()
    assert qemu.ends == []


async def test_destroy_cannot_be_cancelled_half_way(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        with trio.CancelScope() as scope:
            scope.cancel()
            await qemu.process.destroy()
        assert is_gone(qemu.process.pid)


async def test_several_may_wait_for_the_end_at_once(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(qemu.process.destroy)
    assert is_gone(qemu.process.pid)


async def test_last_words_are_the_end_of_the_log_on_one_line(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        assert qemu.process.last_words() == "(none)"
        (tmp_path / "qemu.log").write_bytes(b"x" * 5000 + b"\none\ntwo\xff\nthree\nfour\n")
        assert qemu.process.last_words() == "one / two\ufffd / three / four"
        (tmp_path / "qemu.log").unlink()
        assert qemu.process.last_words() == "(none)"
