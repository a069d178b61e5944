from __future__ import annotations

import json
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import copy

import pytest
import trio
from diskbuf_fakes import FakeStore

from diskbuf.buffer import DiskBuffer
from diskbuf.contract import State
from diskbuf.errors import (
    DiskbufError,
    JournalFormatError,
    SocketError,
    StoreFullError,
    StoreIOError,
    UnreleasedError,
)
from diskbuf.service import RETRY_S, Disk, Service

SIZE = 1 << 20
LIMIT = 64 << 10
NEVER_S = 1e6
EVERY_S = 0.05


class SyncedStore(FakeStore):
    """Tells in trio's thread when it has been synced, which is how a release ends; fails `failures` times."""

    def __init__(self, size_bytes: int = SIZE, *, read_only: bool = False) -> None:
        super().__init__(size_bytes, read_only=read_only)
        self.uri = "fake:disk"
        self.failures = 0
        self.reason: DiskbufError = StoreFullError("store fake:disk: write failed; make room, then try again")
        self.failed = trio.Event()
        self._told, self.syncs = trio.open_memory_channel[bytes](1000)

    def write(self, offset: int, pieces: object) -> None:
        if self.failures:
            self.failures -= 1
            trio.from_thread.run_sync(self.failed.set)
            raise copy(self.reason)
        super().write(offset, pieces)  # type: ignore[arg-type]

    def sync(self) -> None:
        super().sync()
        trio.from_thread.run_sync(self._told.send_nowait, bytes(self.image[:5]))


class Served:
    """A service in a test: what it reports, and how to signal to it."""

    def __init__(self, stores: dict[str, SyncedStore], every_s: float) -> None:
        self.disks = [
            Disk(name, store, DiskBuffer(store, limit_bytes=LIMIT, sync_releases=True))
            for name, store in stores.items()
        ]
        self.reports: list[str] = []
        self.serving = trio.Event()
        self.service = Service(self.disks, self._listen, every_s, self.reports.append)
        self.signals, self._signals = trio.open_memory_channel[int](10)
        self.buffer = self.disks[0].buffer

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        self.serving.set()
        await trio.sleep_forever()

    async def run(self) -> None:
        await self.service.run(self._signals)


@asynccontextmanager
async def serving(every_s: float = NEVER_S, **stores: SyncedStore) -> AsyncIterator[Served]:
    """Serves while inside; then tells the service to end, as an operator does, but doesn't finish it."""
    served = Served(stores, every_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.run)
        await served.serving.wait()
        yield served
        served.signals.send_nowait(signal.SIGTERM)


async def test_writes_wait_for_the_timer(autojump_clock: trio.testing.MockClock) -> None:
    store = SyncedStore()
    async with serving(EVERY_S, disk=store) as served:
        served.buffer.write(0, b"first")
        assert store.operations == []
        assert await store.syncs.receive() == b"first"
        assert trio.current_time() >= EVERY_S
        served.buffer.write(0, b"other")
        while await store.syncs.receive() != b"other":
            pass


async def test_a_disk_that_is_half_full_is_released_early(autojump_clock: trio.testing.MockClock) -> None:
    store = SyncedStore()
    async with serving(disk=store) as served:
        for offset in (0, LIMIT):
            served.buffer.write(offset, b"early" * (LIMIT // 8))
            assert await store.syncs.receive() == b"early"
        assert trio.current_time() < NEVER_S


async def test_all_disks_are_sealed_at_one_instant(autojump_clock: trio.testing.MockClock) -> None:
    one, other = SyncedStore(), SyncedStore()
    async with serving(EVERY_S, one=one, other=other) as served:
        for disk in served.disks:
            disk.buffer.write(0, b"first")
        one.stall()
        while await other.syncs.receive() != b"first":
            pass
        for disk in served.disks:
            disk.buffer.write(0, b"later")
        one.proceed()
        assert await one.syncs.receive() == b"first"
        while (await one.syncs.receive(), await other.syncs.receive()) != (b"later", b"later"):
            pass


async def test_a_store_that_fails_is_tried_until_it_works(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = SyncedStore()
    store.failures = 3
    with caplog.at_level(logging.WARNING, "diskbuf"):
        async with serving(EVERY_S, disk=store) as served:
            served.buffer.write(0, b"at it")
            assert await store.syncs.receive() == b"at it"
            assert trio.current_time() >= 3 * RETRY_S
    held, released = (record.getMessage() for record in caplog.records)
    assert held.startswith("export 'disk': epoch 1 is held and tried again every 1 s: store fake:disk: write")
    assert released == "export 'disk': epoch 1 is released after all"


@pytest.mark.parametrize("reason", [StoreFullError("no room"), JournalFormatError("damaged by design")])
async def test_a_store_that_fails_holds_up_no_other_disk(
    autojump_clock: trio.testing.MockClock, reason: DiskbufError
) -> None:
    broken, sound = SyncedStore(), SyncedStore()
    broken.failures = 100
    broken.reason = reason
    async with serving(EVERY_S, broken=broken, sound=sound) as served:
        broken_buffer, sound_buffer = (disk.buffer for disk in served.disks)
        broken_buffer.write(0, b"at it")
        await broken.failed.wait()
        for data in (b"first", b"other"):
            sound_buffer.write(0, data)
            while await sound.syncs.receive() != data:
                pass
        broken_buffer.write(3, b"more")
        broken.failures = 0
        while await broken.syncs.receive() != b"at mo":
            pass
    assert broken_buffer.statistics().held_items == sound_buffer.statistics().held_items == 0


async def test_a_second_signal_is_let_through_before_a_store_is_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SyncedStore()
    served = Served({"disk": store}, EVERY_S)
    ended: list[bool] = []

    def ending() -> None:
        ended.append(True)
        store.proceed()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(served.service.run, served._signals, ending)
        await served.serving.wait()
        store.stall()
        served.buffer.write(0, b"stuck")
        served.signals.send_nowait(signal.SIGTERM)
    assert ended == [True]


async def test_the_end_releases_what_is_open(autojump_clock: trio.testing.MockClock) -> None:
    store = SyncedStore()
    async with serving(disk=store) as served:
        served.buffer.write(0, b"at last")
        served.signals.send_nowait(signal.SIGUSR1)
    assert store.operations == []
    await served.service.finish()
    assert store.image[:7] == b"at last"
    assert store.operations[-1] == ("sync",)
    before, after = (json.loads(line) for line in served.reports)
    assert (before["epochs"], after["epochs"]) == (0, 1)
    assert before["exports"]["disk"]["held_items"] == after["exports"]["disk"]["released_items"] == 1
    assert after["exports"]["disk"]["store"] == "fake:disk"


async def test_the_end_releases_what_was_sealed_and_not_released(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = SyncedStore()
    async with serving(EVERY_S, disk=store) as served:
        store.failures = 1
        served.buffer.write(0, b"older")
        await store.failed.wait()
        assert served.buffer.statistics().sealed_epochs == (1,)
        served.buffer.write(3, b"newer")
    assert store.operations == []
    await served.service.finish()
    assert store.image[:8] == b"oldnewer"


async def test_what_no_store_takes_is_told_and_the_others_are_saved(
    autojump_clock: trio.testing.MockClock,
) -> None:
    broken, sound = SyncedStore(), SyncedStore()
    async with serving(broken=broken, sound=sound) as served:
        for disk in served.disks:
            disk.buffer.write(0, b"x" * 1000)
    broken.failures = 9
    lost = r"export 'broken': 1000 bytes that clients had written are lost: store fake:disk: write failed"
    with pytest.raises(UnreleasedError, match=lost):
        await served.service.finish()
    assert sound.image[:1000] == b"x" * 1000
    assert json.loads(served.reports[-1])["exports"]["broken"]["held_bytes"] == 1000


async def test_every_broken_store_is_told(autojump_clock: trio.testing.MockClock) -> None:
    stores = {"one": SyncedStore(), "other": SyncedStore()}
    async with serving(**stores) as served:
        for disk in served.disks:
            disk.buffer.write(0, b"x")
    for store in stores.values():
        store.failure = StoreIOError("broken")
    with pytest.raises(ExceptionGroup) as caught:
        await served.service.finish()
    assert [type(error) for error in caught.value.exceptions] == [UnreleasedError] * 2


async def test_a_store_that_cannot_be_synced_is_told(autojump_clock: trio.testing.MockClock) -> None:
    store = SyncedStore()
    async with serving(0, disk=store) as served:
        pass
    store.failure = StoreIOError("sync failed")
    with pytest.raises(StoreIOError, match="sync failed"):
        await served.service.finish()


async def test_without_an_interval_writes_pass(autojump_clock: trio.testing.MockClock) -> None:
    store = SyncedStore()
    async with serving(0, disk=store) as served:
        assert served.buffer.state is State.OPEN
        await trio.to_thread.run_sync(served.buffer.write, 0, b"at once")
        assert store.image[:7] == b"at once"


async def test_a_read_only_disk_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    store = SyncedStore(read_only=True)
    async with serving(EVERY_S, disk=store) as served:
        assert bytes(served.buffer.read(0, 3)) == b"\0\0\0"
        await trio.sleep(10 * EVERY_S)
    await served.service.finish()
    assert ("sync",) not in store.operations


async def test_a_place_where_nobody_can_listen_ends_it() -> None:
    async def refuse(*, task_status: trio.TaskStatus[None]) -> None:
        raise SocketError("socket /x: no")

    service = Service([], refuse, 0, lambda _line: None)
    _, signals = trio.open_memory_channel[int](0)
    with pytest.raises(ExceptionGroup) as caught:
        await service.run(signals)
    assert caught.group_contains(SocketError, match="socket /x: no")
