"""remuslike.guest.standby: the wait, the activation, and what can be wrong with it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from fakes.started_qemu import Started, running_fake_qemu
from trio.testing import MockClock

from remuslike.errors import GuestError
from remuslike.guest.standby import _ACTIVATION_LIMIT_S, QemuStandby


@asynccontextmanager
async def standing_by(directory: Path, wishes: str = "") -> AsyncIterator[tuple[QemuStandby, Started]]:
    """Prepared, as the secondary's daemon does it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with running_fake_qemu(directory, wishes, incoming=theirs) as qemu:
            standby = QemuStandby(qemu.process, ours)
            await standby.prepare(theirs.fileno())
            theirs.close()
            yield standby, qemu


async def test_the_device_state_makes_it_run(tmp_path: Path) -> None:
    async with standing_by(tmp_path) as (standby, qemu):
        assert await qemu.process.qmp.execute("query-status") == {"status": "inmigrate"}
        await standby.activate(b"devices of a paused guest")
        assert await qemu.process.qmp.execute("query-status") == {"status": "running"}


async def test_large_device_state_is_sent_whole(tmp_path: Path) -> None:
    async with standing_by(tmp_path) as (standby, qemu):
        await standby.activate(b"devices" + bytes(4 << 20))
        assert await qemu.process.qmp.execute("query-status") == {"status": "running"}


async def test_its_ram_is_ours_to_write(tmp_path: Path) -> None:
    async with standing_by(tmp_path) as (standby, qemu):
        standby.ram[3] = 5
        assert (qemu.process.memory.pages[3] == 5).all()


@pytest.mark.parametrize(("wishes", "state"), [("", b"garbage"), ("die-late", b"devices")])
async def test_state_that_qemu_does_not_take_is_told_in_its_words(
    tmp_path: Path, wishes: str, state: bytes
) -> None:
    async with standing_by(tmp_path, wishes) as (standby, _):
        with pytest.raises(
            GuestError, match=r"QEMU did not take the device state: .*error while loading state"
        ):
            await standby.activate(state)


async def test_a_qemu_that_takes_it_and_does_not_run_is_given_up(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = float("inf")  # its start takes real time
    async with standing_by(tmp_path, "deaf") as (standby, _):
        autojump_clock.autojump_threshold = 0
        began = trio.current_time()
        with pytest.raises(GuestError, match=f"did not run within {_ACTIVATION_LIMIT_S:.0f} s"):
            await standby.activate(b"devices")
        assert trio.current_time() - began == pytest.approx(_ACTIVATION_LIMIT_S)


async def test_a_qemu_that_refuses_to_wait_is_named(tmp_path: Path) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(GuestError, match="migrate-set-capabilities: QEMU says: no migrate-set"),
        flatten_subgroups=True,
    ):
        async with standing_by(tmp_path, "refuse"):
            pass


async def test_a_standby_that_has_died_is_named(tmp_path: Path) -> None:
    async with standing_by(tmp_path) as (standby, _):
        await standby.destroy()
        with pytest.raises(GuestError, match=r"QEMU (stopped reading|did not take) the device state"):
            await standby.activate(b"devices" + bytes(4 << 20))
