"""remuslike.daemon.outputs: what tests/conformance doesn't ask of several buffers as one."""

from __future__ import annotations

from typing import cast

import trio
import trio.testing
from unit.diskbuf_fakes import FakeStore

from diskbuf import DiskBuffer
from diskbuf.errors import StoreIOError
from netbuf import Hold
from netbuf.errors import InterfaceVanishedError
from remuslike.daemon.outputs import Outputs
from remuslike.engine.events import OutputKind, Pressure


def outputs_of(*stores: FakeStore, limit_bytes: int = 8 * 512) -> Outputs:
    return Outputs([], [DiskBuffer(store, limit_bytes=limit_bytes) for store in stores])


async def test_a_guest_without_outputs_is_always_held_and_released() -> None:
    outputs = Outputs([], [])
    outputs.hold(1)
    outputs.prepare()
    outputs.seal(1)
    await outputs.release(1)
    await outputs.open()
    outputs.discard()
    assert outputs.pressure is Pressure.NONE
    assert outputs.statistics() == {}


async def test_the_fullest_buffer_gives_the_pressure() -> None:
    outputs = outputs_of(FakeStore(1 << 20), FakeStore(1 << 20))
    told: list[Pressure] = []
    outputs.on_pressure(lambda: told.append(outputs.pressure))
    outputs.hold(1)
    for disk, blocks in ((1, range(4)), (0, range(4)), (0, range(4, 8))):
        for block in blocks:
            outputs.disks[disk].write(block * 512, bytes(512))
        await trio.testing.wait_all_tasks_blocked()  # levels are told in this thread, by its loop
    assert told == [Pressure.SOON, Pressure.SOON, Pressure.FULL]


async def test_flushes_are_no_outputs_of_a_guest_that_stands() -> None:
    outputs = outputs_of(FakeStore(1 << 20))
    told: list[tuple[OutputKind, int]] = []
    outputs.on_output(lambda kind, epoch: told.append((kind, epoch)))
    outputs.hold(1)
    for stands, expected in ((True, []), (False, [(OutputKind.DISK, 1)])):
        outputs.guest_stands(stands)
        await trio.to_thread.run_sync(outputs.disks[0].sync)
        await trio.testing.wait_all_tasks_blocked()
        assert told == expected


async def test_statistics_are_plain_and_named() -> None:
    outputs = outputs_of(FakeStore(1 << 20), FakeStore(1 << 20))
    outputs.hold(3)
    outputs.disks[1].write(0, b"x")
    statistics = outputs.statistics()
    assert list(statistics) == ["disk0", "disk1"]
    assert (statistics["disk0"]["held_items"], statistics["disk1"]["held_items"]) == (0, 1)
    assert statistics["disk0"]["state"] == "holding"
    assert type(statistics["disk0"]["state"]) is str


async def test_a_disk_that_cannot_be_made_durable_does_not_stop_the_others() -> None:
    stores = [FakeStore(4096), FakeStore(4096)]
    outputs = outputs_of(*stores)
    await outputs.open()
    stores[0].failure = StoreIOError("the first disk is broken; look into the kernel log")
    await outputs.flush()
    assert stores[1].operations == [("sync",)]


class RefusingHold:
    """A hold whose host can't send any more."""

    depth = 1

    def replay(self, frames: list[bytes]) -> None:
        raise InterfaceVanishedError("the interface is gone; find out who deletes it")


def test_frames_that_a_host_refuses_to_replay_are_lost_and_the_guest_is_not() -> None:
    outputs = Outputs([cast(Hold, RefusingHold())], [])
    assert not outputs.replay(0, [b"frame"])
