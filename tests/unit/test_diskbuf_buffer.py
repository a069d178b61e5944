from __future__ import annotations

from hashlib import blake2b

import pytest
import trio
from diskbuf_fakes import FakeStore
from trio.testing import wait_all_tasks_blocked

from diskbuf.buffer import DiskBuffer
from diskbuf.chunks import CHUNK_BYTES
from diskbuf.contract import Pressure, State
from diskbuf.errors import (
    ChunkError,
    HoldError,
    OpenError,
    ReleaseError,
    SealError,
    StateError,
    StoreFullError,
    UnknownEpochError,
    WriteRefusedError,
)
from diskbuf.extents import Extent
from diskbuf.sealed import SealedWrites, decode_writes_untrusted, encode_writes

SIZE = 2 * CHUNK_BYTES + 1024
LIMIT = 8192


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(SIZE)


@pytest.fixture
def buffer(store: FakeStore) -> DiskBuffer:
    return DiskBuffer(store, limit_bytes=LIMIT)


async def entered(store: FakeStore) -> None:
    """Return when a store operation has begun in its thread."""
    await trio.to_thread.run_sync(store.entered.acquire)


# --- states -----------------------------------------------------------------------------------------


async def test_closed_refuses_writes_and_serves_reads(buffer: DiskBuffer, store: FakeStore) -> None:
    store.image[10:14] = b"base"
    assert buffer.state is State.CLOSED
    with pytest.raises(WriteRefusedError, match="write of 1 bytes at 0 refused: the buffer is closed"):
        await buffer.write(0, b"x")
    with pytest.raises(WriteRefusedError):
        await buffer.zero(0, 1, punch_hole=True)
    await buffer.flush()
    assert await buffer.read(10, 4) == b"base"
    assert store.operations == []


async def test_holding_shows_writes_but_keeps_them_from_the_store(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    buffer.hold(1)
    await buffer.write(100, b"held")
    await buffer.zero(102, 1, punch_hole=False)
    await buffer.flush()
    assert await buffer.read(99, 6) == b"\0he\0d\0"
    assert buffer.try_read(100, 1) == b"h"
    assert store.operations == []


async def test_open_passes_writes_and_flushes_through(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    await buffer.write(0, b"through")
    await buffer.zero(2, 2, punch_hole=True)
    await buffer.zero(4, 1, punch_hole=False)
    await buffer.flush()
    assert store.operations == [("write", 0, b"through"), ("hole", 2, 2), ("zero", 4, 1), ("sync",)]
    assert await buffer.read(0, 8) == b"th\0\0\0gh\0"
    assert buffer.statistics().released_items == 3
    await buffer.open()
    assert buffer.state is State.OPEN


async def test_discarded_drops_everything_for_ever(buffer: DiskBuffer, store: FakeStore) -> None:
    store.image[:4] = b"base"
    buffer.hold(1)
    await buffer.write(0, b"held")
    buffer.seal(1)
    await buffer.write(8, b"held")
    buffer.discard()
    buffer.discard()
    assert await buffer.read(0, 4) == b"base"
    with pytest.raises(WriteRefusedError, match="discarded"):
        await buffer.write(0, b"late")
    with pytest.raises(ReleaseError):
        await buffer.release(1)
    with pytest.raises(OpenError):
        await buffer.open()
    with pytest.raises(HoldError):
        buffer.hold(2)
    with pytest.raises(SealError):
        buffer.seal(2)
    assert store.operations == []
    found = buffer.statistics()
    assert (found.state, found.held_items, found.dropped_items, found.sealed_epochs) == (
        "discarded",
        0,
        2,
        (),
    )


async def test_read_only_store_takes_no_writes_in_any_state() -> None:
    buffer = DiskBuffer(FakeStore(SIZE, read_only=True), limit_bytes=LIMIT)
    buffer.hold(1)
    with pytest.raises(WriteRefusedError, match="read-only"):
        await buffer.write(0, b"x")
    await buffer.open()
    with pytest.raises(WriteRefusedError, match="read-only"):
        await buffer.write(0, b"x")


# --- epochs -----------------------------------------------------------------------------------------


async def test_release_lets_out_its_epoch_only(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(5)
    await buffer.write(0, b"five")
    buffer.seal(5)
    await buffer.write(2, b"SIX")
    buffer.seal(6)
    await buffer.write(3, b"7")
    await buffer.release(5)
    assert store.operations == [("write", 0, b"five")]
    assert await buffer.read(0, 6) == b"fiS7X\0"
    await buffer.release(6)
    assert bytes(store.image[:6]) == b"fiSIX\0"
    found = buffer.statistics()
    assert (found.open_epoch, found.sealed_epochs, found.held_items) == (7, (), 1)
    assert (found.released_items, found.held_bytes, found.limit_bytes) == (2, 512, LIMIT)
    assert (found.released_bytes, found.peak_bytes) == (1024, 1536)


async def test_order_is_enforced(buffer: DiskBuffer, store: FakeStore) -> None:
    with pytest.raises(SealError, match="while closed"):
        buffer.seal(1)
    buffer.hold(1)
    with pytest.raises(HoldError, match="while holding"):
        buffer.hold(1)
    with pytest.raises(SealError, match="the open epoch is 1"):
        buffer.seal(2)
    await buffer.write(0, b"x")
    buffer.seal(1)
    buffer.seal(2)
    with pytest.raises(SealError, match=r"\(1, 2\) unreleased and depth 2"):
        buffer.seal(3)
    with pytest.raises(ReleaseError, match=r"release\(2\)"):
        await buffer.release(2)
    with pytest.raises(ReleaseError):
        await buffer.release(3)
    assert store.operations == []
    await buffer.release(1)
    with pytest.raises(ReleaseError):
        await buffer.release(1)
    await buffer.release(2)
    assert store.operations == [("write", 0, b"x")]


async def test_failed_release_keeps_the_epoch_and_can_be_repeated(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    buffer.hold(1)
    await buffer.write(0, b"kept")
    buffer.seal(1)
    store.failure = StoreFullError("full")
    with pytest.raises(StoreFullError):
        await buffer.release(1)
    assert buffer.statistics().sealed_epochs == (1,)
    assert await buffer.read(0, 4) == b"kept"
    store.failure = None
    await buffer.release(1)
    assert bytes(store.image[:4]) == b"kept"


async def test_reads_never_go_back_while_a_release_is_under_way(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    await buffer.write(0, b"new")
    buffer.seal(1)
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.release, 1)
        await entered(store)
        assert await buffer.read(0, 3) == b"new"
        await buffer.write(1, b"E")
        assert buffer.try_read(0, 3) == b"nEw"
        store.proceed()
    assert buffer.try_read(0, 3) == b"nEw"
    assert bytes(store.image[:3]) == b"new"


async def test_cancelled_release_is_done_or_not(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    await buffer.write(0, b"x")
    buffer.seal(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await buffer.release(1)
    assert store.operations == []
    assert buffer.statistics().sealed_epochs == (1,)
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.release, 1)
        await entered(store)
        nursery.cancel_scope.cancel()
        store.proceed()
    assert store.operations == [("write", 0, b"x")]
    assert buffer.statistics().sealed_epochs == ()


async def test_discard_stops_a_release_at_the_next_write(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    await buffer.write(0, b"first")
    await buffer.write(4096, b"second")
    buffer.seal(1)
    store.stall()

    async def release() -> None:
        with pytest.raises(ReleaseError, match=r"release of epoch 1 was stopped by discard"):
            await buffer.release(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release)
        await entered(store)
        buffer.discard()
        store.proceed()
    assert store.operations == [("write", 0, b"first")]


async def test_sealed_writes_travel_and_apply_on_a_standby(buffer: DiskBuffer) -> None:
    payload = bytearray(b"payload")
    buffer.hold(1)
    await buffer.write(7, payload)
    await buffer.zero(9, 2, punch_hole=True)
    buffer.seal(1)
    await buffer.write(0, b"next epoch's" * 2)
    writes = buffer.sealed(1)
    assert writes.extents[0].data.obj is payload or len(writes.extents[0].data) < len(payload)
    await buffer.release(1)
    received = decode_writes_untrusted(b"".join(encode_writes(writes)), SIZE)
    with pytest.raises(UnknownEpochError):
        buffer.sealed(1)

    standby_store = FakeStore(SIZE)
    standby = DiskBuffer(standby_store, limit_bytes=LIMIT)
    await standby.apply(received)
    await standby.apply(received)
    assert await standby.read(5, 12) == b"\0\0pa\0\0oad\0\0\0"
    await standby.open()
    with pytest.raises(StateError, match="while open"):
        await standby.apply(received)
    with pytest.raises(StateError, match="for a disk of"):
        await standby.apply(SealedWrites((Extent.of_data(SIZE, b"x"),)))


# --- the limit --------------------------------------------------------------------------------------


async def fill(buffer: DiskBuffer) -> None:
    await buffer.write(0, bytes(LIMIT))
    assert buffer.pressure is Pressure.FULL


async def test_write_at_the_limit_waits_for_a_release(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    await fill(buffer)
    buffer.seal(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.write, 0, b"late")
        await wait_all_tasks_blocked()
        assert await buffer.read(0, 4) == bytes(4)
        await buffer.release(1)
    assert await buffer.read(0, 4) == b"late"
    assert buffer.pressure is Pressure.NONE


async def test_prepare_admits_until_the_seal(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    await fill(buffer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.write, 0, b"waits")
        await wait_all_tasks_blocked()
        buffer.prepare()
    await buffer.write(8, b"passes")
    buffer.seal(1)
    assert await buffer.read(0, 14) == b"waits\0\0\0passes"
    with trio.move_on_after(0) as scope:
        await buffer.write(0, b"stalls")
    assert scope.cancelled_caught
    assert await buffer.read(0, 5) == b"waits"


async def test_discard_refuses_what_waits(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    await fill(buffer)

    async def late() -> None:
        with pytest.raises(WriteRefusedError):
            await buffer.write(0, b"late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await wait_all_tasks_blocked()
        buffer.discard()


async def test_pressure_is_told_when_it_rises(buffer: DiskBuffer) -> None:
    told: list[Pressure] = []
    buffer.on_pressure(told.append)
    buffer.hold(1)
    await buffer.write(0, bytes(LIMIT // 2 - 1))
    assert told == []
    await buffer.write(LIMIT, bytes(512))
    await buffer.write(LIMIT, bytes(512))
    assert told == [Pressure.SOON]
    await buffer.write(2 * LIMIT, bytes(LIMIT))
    assert told == [Pressure.SOON, Pressure.FULL]
    buffer.seal(1)
    await buffer.release(1)
    await buffer.write(0, bytes(LIMIT))
    assert told == [Pressure.SOON, Pressure.FULL, Pressure.FULL]


# --- opening ----------------------------------------------------------------------------------------


async def test_open_lets_out_in_order_and_then_passes(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    await buffer.write(0, b"one")
    buffer.seal(1)
    await buffer.write(0, b"two")
    buffer.seal(2)
    await buffer.write(0, b"open")
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.open)
        await entered(store)
        with pytest.raises(SealError, match="while opening"):
            buffer.seal(3)
        await buffer.write(2, b"meanwhile")
        assert await buffer.read(0, 11) == b"opmeanwhile"
        store.proceed()
    assert [operation[2] for operation in store.operations] == [b"one", b"two", b"opmeanwhile"]
    assert buffer.state is State.OPEN
    assert buffer.statistics().held_items == 0
    assert buffer.take_dirty_chunks().tolist() == [0]


async def test_write_at_the_end_of_opening_waits_and_comes_last(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    await buffer.write(0, b"old")
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.open)
        await entered(store)
        nursery.start_soon(buffer.write, 0, b"new")
        await wait_all_tasks_blocked()
        assert await buffer.read(0, 3) == b"old"
        store.proceed()
    assert store.operations == [("write", 0, b"old"), ("write", 0, b"new")]


async def test_failed_opening_holds_on(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    await buffer.write(0, b"kept")
    store.failure = StoreFullError("full")
    with pytest.raises(StoreFullError):
        await buffer.open()
    assert buffer.state is State.HOLDING
    store.failure = None
    await buffer.write(4, b"more")
    buffer.seal(1)
    await buffer.release(1)
    assert bytes(store.image[:8]) == b"keptmore"


async def test_write_that_has_not_begun_when_holding_begins_is_held(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(buffer.write, index * 512, b"begun")
            await entered(store)
        nursery.start_soon(buffer.write, 65536, b"queued")
        await wait_all_tasks_blocked()
        buffer.hold(1)
        store.proceed()
    assert len(store.operations) == 8
    assert await buffer.read(65536, 6) == b"queued"
    assert buffer.statistics().held_items == 1


async def test_release_waits_for_writes_on_their_way(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.write, 0, b"older")
        await entered(store)
        buffer.hold(1)
        await buffer.write(0, b"newer")
        buffer.seal(1)
        nursery.start_soon(buffer.release, 1)
        await wait_all_tasks_blocked()
        assert buffer._store_threads.statistics().borrowed_tokens == 1
        store.proceed()
    assert [operation[2] for operation in store.operations] == [b"older", b"newer"]


# --- synchronisation --------------------------------------------------------------------------------


async def test_dirty_chunks_are_marked_before_and_after_the_write(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.write, CHUNK_BYTES - 1, b"ab")
        await entered(store)
        assert buffer.take_dirty_chunks().tolist() == [0, 1]
        assert buffer.take_dirty_chunks().tolist() == []
        store.proceed()
    assert buffer.take_dirty_chunks().tolist() == [0, 1]
    buffer.hold(1)
    await buffer.write(0, b"held")
    assert buffer.take_dirty_chunks().tolist() == []


async def test_chunks_are_the_stores(buffer: DiskBuffer, store: FakeStore) -> None:
    store.image[-1] = 7
    buffer.hold(1)
    await buffer.write(SIZE - 4, b"held")
    last = await buffer.read_chunk(2)
    assert last == bytes(1023) + b"\x07"
    expected = [blake2b(chunk, digest_size=16).digest() for chunk in (bytes(CHUNK_BYTES), last)]
    assert await buffer.chunk_digests(1, 2) == b"".join(expected)
    for first, count in ((0, 4), (3, 1), (-1, 1), (0, 0)):
        with pytest.raises(ChunkError):
            await buffer.chunk_digests(first, count)
    with pytest.raises(ChunkError):
        await buffer.read_chunk(3)


async def test_standby_takes_chunks_only_while_closed(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.write_chunk(2, b"c" * 1024)
    assert store.operations == [("write", 2 * CHUNK_BYTES, b"c" * 1024)]
    with pytest.raises(ChunkError, match="chunk 2 has 1024 bytes, but 5"):
        await buffer.write_chunk(2, b"short")
    buffer.hold(1)
    with pytest.raises(StateError, match="while holding"):
        await buffer.write_chunk(2, b"c" * 1024)


async def test_uncached_read_goes_through_a_thread(buffer: DiskBuffer, store: FakeStore) -> None:
    store.cached = False
    store.image[:8] = b"uncached"
    buffer.hold(1)
    await buffer.write(2, b"HELD")
    assert buffer.try_read(0, 8) is None
    assert await buffer.read(0, 8) == b"unHELDed"
    assert buffer.try_read(2, 4) == b"HELD"


@pytest.mark.parametrize(("limit_bytes", "depth"), [(0, 1), (1, 0)])
def test_needs_a_limit_and_a_depth(store: FakeStore, limit_bytes: int, depth: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        DiskBuffer(store, limit_bytes=limit_bytes, depth=depth)
