"""remuslike.guest.running, with a fake QEMU whose memory is really tracked."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fakes.started_qemu import MEMORY_MIB, running_fake_qemu
from structlog.testing import capture_logs

from remuslike.engine.ports import PAGE_BYTES
from remuslike.errors import GuestError
from remuslike.guest.qmp import Command
from remuslike.guest.running import QemuGuest
from remuslike.guest.tracker import KINDS

PAGES = (MEMORY_MIB << 20) // PAGE_BYTES

traced = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace another process"),
]


@asynccontextmanager
async def guest_of(directory: Path, wishes: str = "", captures_in_use: int = 1) -> AsyncIterator[QemuGuest]:
    async with running_fake_qemu(directory, wishes) as qemu:
        guest = QemuGuest(qemu.process, captures_in_use)
        try:
            yield guest
        finally:
            await guest.destroy()


async def write(guest: QemuGuest, page: int, value: int) -> None:
    """The guest writes a page: in the fake, its QEMU does."""
    await guest._process.qmp.execute("remember", offset=page * PAGE_BYTES, value=value)


async def status(guest: QemuGuest) -> object:
    return (await guest._process.qmp.execute("query-status"))["status"]


async def test_pause_and_resume_are_idempotent(tmp_path: Path) -> None:
    async with guest_of(tmp_path) as guest:
        await guest.pause()
        assert await status(guest) == "prelaunch"  # it never ran: there is nothing to stop
        await guest.resume()
        await guest.resume()
        assert await status(guest) == "running"
        await guest.pause()
        await guest.pause()
        assert await status(guest) == "paused"


def policy(guest: QemuGuest) -> int:
    """QEMU's main thread's."""
    return os.sched_getscheduler(guest.pid) & ~os.SCHED_RESET_ON_FORK


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a real-time priority")
async def test_qemu_goes_first_while_it_is_asked_for_something_in_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guest_of(tmp_path) as guest:
        asked: list[tuple[str, int]] = []
        send = guest._process.qmp.send

        def note(command: str, **arguments: object) -> Command:
            asked.append((command, policy(guest)))
            return send(command, **arguments)

        monkeypatch.setattr(guest._process.qmp, "send", note)
        await guest.attach()
        await guest.resume()
        assert policy(guest) == os.SCHED_OTHER
        await guest.pause(capture_follows=True)
        assert policy(guest) == os.SCHED_RR
        await guest.capture()
        await guest.resume()
        assert policy(guest) == os.SCHED_OTHER
        assert [command for command, _ in asked] == ["cont", "stop", "xen-save-devices-state", "cont"]
        assert {asked_as for _, asked_as in asked} == {os.SCHED_RR}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a real-time priority")
async def test_qemu_of_a_guest_that_stays_paused_does_not_go_first(tmp_path: Path) -> None:
    async with guest_of(tmp_path) as guest:
        await guest.attach()
        await guest.resume()
        await guest.pause()
        assert policy(guest) == os.SCHED_OTHER
        await guest.resume()
        await guest.pause(capture_follows=True)
        await guest.capture()
        assert policy(guest) == os.SCHED_OTHER


async def test_a_guest_that_somebody_else_started_can_be_paused(tmp_path: Path) -> None:
    async with guest_of(tmp_path) as guest:
        guest.adopt_running()
        await guest.pause()
        assert await status(guest) == "paused"


async def test_qemus_refusal_is_told(tmp_path: Path) -> None:
    async with guest_of(tmp_path, "refuse") as guest:
        with pytest.raises(GuestError, match="cont: QEMU says: no cont today"):
            await guest.resume()


async def test_pages_are_read_as_a_copy(tmp_path: Path) -> None:
    async with guest_of(tmp_path) as guest:
        await write(guest, 5, 7)
        pages = guest.read_pages(np.array([4, 5]))
        await write(guest, 5, 8)
        assert pages[:, 0].tolist() == [0, 7]
        assert pages.shape == (2, PAGE_BYTES)


async def test_a_measured_pause_leaves_it_running(tmp_path: Path) -> None:
    async with guest_of(tmp_path) as guest:
        await guest.resume()
        assert await guest.measure_pause() > 0
        assert await status(guest) == "running"


async def test_destroy_is_idempotent(tmp_path: Path) -> None:
    async with guest_of(tmp_path) as guest:
        await guest.destroy()
        await guest.destroy()
        with pytest.raises(GuestError):
            await guest.resume()


class TestTracking:
    pytestmark = traced

    async def test_every_page_counts_as_written_at_first(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            guest.start_tracking()
            assert np.array_equal(await guest.dirty_pages(), np.arange(PAGES))
            assert (await guest.dirty_pages()).tolist() == []

    async def test_the_tracker_and_why_it_is_this_one_are_said(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            assert guest.tracker is None
            with capture_logs() as logs:
                await guest.attach()
            assert guest.tracker in [kind.name for kind in KINDS]
            (line,) = (line for line in logs if line["event"] == "tracker.chosen")
            assert line["tracker"] == guest.tracker
            assert line["reason"]
            guest.close()
            assert guest.tracker is None

    async def test_written_pages_are_reported_once(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            guest.start_tracking()
            await guest.dirty_pages()
            await write(guest, 9, 1)
            await write(guest, 3, 1)
            assert (await guest.dirty_pages()).tolist() == [3, 9]
            assert (await guest.dirty_pages()).tolist() == []

    async def test_a_new_session_starts_with_every_page(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            for _ in range(2):
                guest.start_tracking()
                assert len(await guest.dirty_pages()) == PAGES
                await write(guest, 1, 1)
                assert (await guest.dirty_pages()).tolist() == [1]

    async def test_a_capture_is_what_was_written_and_the_devices(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            guest.start_tracking()
            await guest.resume()
            await guest.dirty_pages()
            await write(guest, 2, 22)
            await write(guest, 70, 33)
            await guest.pause()
            capture = await guest.capture()
            assert capture.indices.tolist() == [2, 70]
            assert capture.pages[:, 0].tolist() == [22, 33]
            assert capture.devices == b"devices of a paused guest"
            assert min(capture.scan_ms, capture.copy_ms, capture.devices_ms) >= 0

    async def test_a_pause_that_a_capture_follows_begins_it(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            for value in (1, 2):
                await guest.resume()
                await write(guest, 2, value)
                await guest.pause(capture_follows=True)
                assert not guest.running
                capture = await guest.capture()
                assert capture.devices == b"devices of a paused guest"
                assert int(capture.pages[capture.indices.tolist().index(2), 0]) == value

    async def test_device_state_is_each_captures_own(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            first = await guest.capture()
            await guest.resume()
            await guest.pause()
            second = await guest.capture()
            assert first.devices == b"devices of a prelaunch guest"
            assert second.devices == b"devices of a paused guest"

    async def test_a_capture_needs_a_paused_guest(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.attach()
            await guest.resume()
            with pytest.raises(AssertionError, match="paused"):
                await guest.capture()

    async def test_captures_in_use_stay_as_they_were(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path, captures_in_use=2) as guest:
            await guest.attach()
            guest.start_tracking()
            await guest.dirty_pages()
            captures = []
            for value in (1, 2, 3):
                await write(guest, 4, value)
                captures.append(await guest.capture())
            assert [int(capture.pages[0, 0]) for capture in captures] == [1, 2, 3]

    async def test_a_capture_of_all_pages_grows_what_was_set_aside(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path, captures_in_use=0) as guest:
            await guest.attach()
            guest.start_tracking()
            await write(guest, PAGES - 1, 9)
            capture = await guest.capture()
            assert capture.pages.shape == (PAGES, PAGE_BYTES)
            assert capture.pages[-1, 0] == 9

    async def test_a_guest_whose_device_state_is_refused_is_told(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path, "refuse") as guest:
            await guest.attach()
            with pytest.RaisesGroup(GuestError, flatten_subgroups=True, allow_unwrapped=True):
                await guest.capture()

    async def test_a_guest_that_has_died_cannot_be_attached_to(self, tmp_path: Path) -> None:
        async with guest_of(tmp_path) as guest:
            await guest.destroy()
            with pytest.raises(GuestError):
                await guest.attach()
