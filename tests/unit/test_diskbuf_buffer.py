from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from hashlib import blake2b
from pathlib import Path

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
    StoreIOError,
    UnknownEpochError,
    WriteRefusedError,
)
from diskbuf.extents import Extent
from diskbuf.gate import Admission
from diskbuf.journal import Journal
from diskbuf.sealed import SealedWrites, decode_writes_untrusted, encode_writes
from diskbuf.store import Allocation

SIZE = 2 * CHUNK_BYTES + 1024
WAIT_S = 10
"""Far beyond what anything takes: what hangs fails its test."""
LIMIT = 8192


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(SIZE)


@pytest.fixture
def buffer(store: FakeStore) -> DiskBuffer:
    return DiskBuffer(store, limit_bytes=LIMIT)


async def entered(store: FakeStore) -> None:
    """Return when a store operation has begun in its thread."""
    assert await trio.to_thread.run_sync(partial(store.entered.acquire, timeout=WAIT_S))


async def waiting(buffer: DiskBuffer, count: int) -> None:
    """Return when so many threads wait in the buffer."""
    with trio.fail_after(WAIT_S):
        while buffer.waiting != count:
            await trio.lowlevel.checkpoint()


def in_thread(function: Callable[..., object], *args: object) -> Callable[[], Awaitable[object]]:
    """As a client's thread does it."""
    return partial(trio.to_thread.run_sync, function, *args)


# --- states -----------------------------------------------------------------------------------------


async def test_closed_refuses_writes_and_serves_reads(buffer: DiskBuffer, store: FakeStore) -> None:
    store.image[10:14] = b"base"
    assert buffer.state is State.CLOSED
    with pytest.raises(WriteRefusedError, match="write of 1 bytes at 0 refused: the buffer is closed"):
        buffer.write(0, b"x")
    with pytest.raises(WriteRefusedError):
        buffer.zero(0, 1, punch_hole=True)
    await buffer.flush()
    assert buffer.read(10, 4) == b"base"
    assert store.operations == []


async def test_holding_shows_writes_but_keeps_them_from_the_store(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    buffer.hold(1)
    buffer.write(100, b"held")
    buffer.zero(102, 1, punch_hole=False)
    await buffer.flush()
    assert buffer.read(99, 6) == b"\0he\0d\0"
    assert buffer.try_read(100, 1) == b"h"
    assert store.operations == []


async def test_open_passes_writes_and_flushes_through(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    buffer.write(0, b"through")
    buffer.zero(2, 2, punch_hole=True)
    buffer.zero(4, 1, punch_hole=False)
    await buffer.flush()
    buffer.sync()
    assert store.operations == [
        ("write", 0, b"through"),
        ("hole", 2, 2),
        ("zero", 4, 1),
        ("sync",),
        ("sync",),
    ]
    assert buffer.read(0, 8) == b"th\0\0\0gh\0"
    assert buffer.statistics().released_items == 3
    await buffer.open()
    assert buffer.state is State.OPEN


async def test_discarded_drops_everything_for_ever(buffer: DiskBuffer, store: FakeStore) -> None:
    store.image[:4] = b"base"
    buffer.hold(1)
    buffer.write(0, b"held")
    buffer.seal(1)
    buffer.write(8, b"held")
    buffer.discard()
    buffer.discard()
    assert buffer.read(0, 4) == b"base"
    with pytest.raises(WriteRefusedError, match="discarded"):
        buffer.write(0, b"late")
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
        buffer.write(0, b"x")
    await buffer.open()
    with pytest.raises(WriteRefusedError, match="read-only"):
        buffer.write(0, b"x")


# --- epochs -----------------------------------------------------------------------------------------


async def test_release_lets_out_its_epoch_only(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(5)
    buffer.write(0, b"five")
    buffer.seal(5)
    buffer.write(2, b"SIX")
    buffer.seal(6)
    buffer.write(3, b"7")
    await buffer.release(5)
    assert store.operations == [("write", 0, b"five")]
    assert buffer.read(0, 6) == b"fiS7X\0"
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
    buffer.write(0, b"x")
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
    buffer.write(0, b"kept")
    buffer.seal(1)
    store.failure = StoreFullError("full")
    with pytest.raises(StoreFullError):
        await buffer.release(1)
    assert buffer.statistics().sealed_epochs == (1,)
    assert buffer.read(0, 4) == b"kept"
    store.failure = None
    await buffer.release(1)
    assert bytes(store.image[:4]) == b"kept"


async def test_reads_never_go_back_while_a_release_is_under_way(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    buffer.write(0, b"new")
    buffer.seal(1)
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.release, 1)
        await entered(store)
        assert buffer.read(0, 3) == b"new"
        buffer.write(1, b"E")
        assert buffer.try_read(0, 3) == b"nEw"
        store.proceed()
    assert buffer.try_read(0, 3) == b"nEw"
    assert bytes(store.image[:3]) == b"new"


async def test_cancelled_release_is_done_or_not(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    buffer.write(0, b"x")
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
    buffer.write(0, b"first")
    buffer.write(4096, b"second")
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
    buffer.write(7, payload)
    buffer.zero(9, 2, punch_hole=True)
    buffer.seal(1)
    buffer.write(0, b"next epoch's" * 2)
    writes = buffer.sealed(1)
    assert writes.extents[0].data.obj is payload or len(writes.extents[0].data) < len(payload)
    await buffer.release(1)
    received = decode_writes_untrusted(b"".join(encode_writes(writes)), SIZE)
    with pytest.raises(UnknownEpochError):
        buffer.sealed(1)

    standby_store = FakeStore(SIZE)
    standby = DiskBuffer(standby_store, limit_bytes=LIMIT)
    await standby.apply(1, received)
    await standby.apply(1, received)
    assert standby.read(5, 12) == b"\0\0pa\0\0oad\0\0\0"
    await standby.open()
    with pytest.raises(StateError, match="while open"):
        await standby.apply(1, received)
    with pytest.raises(StateError, match="for a disk of"):
        await standby.apply(2, SealedWrites((Extent.of_data(SIZE, b"x"),)))


# --- the limit --------------------------------------------------------------------------------------


def fill(buffer: DiskBuffer) -> None:
    buffer.write(0, bytes(LIMIT))
    assert buffer.pressure is Pressure.FULL


async def test_write_at_the_limit_waits_for_a_release(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    fill(buffer)
    buffer.seal(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.write, 0, b"late"))
        await waiting(buffer, 1)
        assert buffer.read(0, 4) == bytes(4)
        await buffer.release(1)
    assert buffer.read(0, 4) == b"late"
    assert buffer.pressure is Pressure.NONE


async def test_prepare_admits_until_the_seal(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    fill(buffer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.write, 0, b"waits"))
        await waiting(buffer, 1)
        buffer.prepare()
    buffer.write(8, b"passes")
    buffer.seal(1)
    assert buffer.read(0, 14) == b"waits\0\0\0passes"
    assert buffer.try_changes((Extent.of_data(0, b"stalls"),)) == (0, Admission.WAITS)
    assert buffer.read(0, 5) == b"waits"


async def test_write_that_was_abandoned_while_it_waited_has_not_happened(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    fill(buffer)
    gone = threading.Event()
    done: list[bool] = []

    def late() -> None:
        done.append(buffer.change(Extent.of_data(0, b"late"), gone.is_set))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(late))
        await waiting(buffer, 1)
        buffer.wake()
        await waiting(buffer, 1)
        gone.set()
        buffer.wake()
    assert done == [False]
    buffer.prepare()
    assert buffer.read(0, 4) == bytes(4)


async def test_discard_refuses_what_waits(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    fill(buffer)

    def late() -> None:
        with pytest.raises(WriteRefusedError):
            buffer.write(0, b"late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(late))
        await waiting(buffer, 1)
        buffer.discard()


async def test_pressure_is_told_in_the_engines_thread_when_it_rises(buffer: DiskBuffer) -> None:
    told: list[tuple[Pressure, bool]] = []
    engine = threading.get_ident()
    buffer.on_pressure(lambda level: told.append((level, threading.get_ident() == engine)))
    buffer.hold(1)

    async def write(offset: int, length: int) -> list[Pressure]:
        await trio.to_thread.run_sync(buffer.write, offset, bytes(length))
        await wait_all_tasks_blocked()
        assert all(here for _, here in told)
        return [level for level, _ in told]

    assert await write(0, LIMIT // 2 - 1) == []
    await write(LIMIT, 512)
    assert await write(LIMIT, 512) == [Pressure.SOON]
    assert await write(2 * LIMIT, LIMIT) == [Pressure.SOON, Pressure.FULL]
    buffer.seal(1)
    await buffer.release(1)
    assert await write(0, LIMIT) == [Pressure.SOON, Pressure.FULL, Pressure.FULL]


async def test_a_flush_while_holding_is_an_output_too(buffer: DiskBuffer) -> None:
    told: list[tuple[int, bool]] = []
    engine = threading.get_ident()
    buffer.on_output(lambda epoch: told.append((epoch, threading.get_ident() == engine)))
    buffer.hold(1)
    await trio.to_thread.run_sync(buffer.sync)
    await wait_all_tasks_blocked()
    assert told == [(1, True)]
    await trio.to_thread.run_sync(buffer.write, 0, bytes(512))
    buffer.seal(1)
    await wait_all_tasks_blocked()
    assert told == [(1, True)]
    await buffer.open()
    await trio.to_thread.run_sync(buffer.sync)
    await wait_all_tasks_blocked()
    assert told == [(1, True)]


# --- opening ----------------------------------------------------------------------------------------


async def test_open_lets_out_in_order_and_then_passes(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    buffer.write(0, b"one")
    buffer.seal(1)
    buffer.write(0, b"two")
    buffer.seal(2)
    buffer.write(0, b"open")
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.open)
        await entered(store)
        with pytest.raises(SealError, match="while opening"):
            buffer.seal(3)
        buffer.write(2, b"meanwhile")
        assert buffer.read(0, 11) == b"opmeanwhile"
        store.proceed()
    assert [operation[2] for operation in store.operations] == [b"one", b"two", b"opmeanwhile"]
    assert buffer.state is State.OPEN
    assert buffer.statistics().held_items == 0
    assert buffer.take_dirty_chunks().tolist() == [0]


async def test_write_at_the_end_of_opening_waits_and_comes_last(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    buffer.write(0, b"old")
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.open)
        await entered(store)
        nursery.start_soon(in_thread(buffer.write, 0, b"new"))
        await waiting(buffer, 1)
        assert buffer.read(0, 3) == b"old"
        store.proceed()
    assert store.operations == [("write", 0, b"old"), ("write", 0, b"new")]


async def test_failed_opening_holds_on(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    buffer.write(0, b"kept")
    store.failure = StoreFullError("full")
    with pytest.raises(StoreFullError):
        await buffer.open()
    assert buffer.state is State.HOLDING
    store.failure = None
    buffer.write(4, b"more")
    buffer.seal(1)
    await buffer.release(1)
    assert bytes(store.image[:8]) == b"keptmore"


async def test_release_waits_for_writes_on_their_way(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.write, 0, b"older"))
        await entered(store)
        buffer.hold(1)
        buffer.write(0, b"newer")
        buffer.seal(1)
        nursery.start_soon(buffer.release, 1)
        await waiting(buffer, 1)
        store.proceed()
    assert [operation[2] for operation in store.operations] == [b"older", b"newer"]


async def test_discard_does_not_wait_for_writes_on_their_way(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.write, 0, b"older"))
        await entered(store)
        buffer.hold(1)
        buffer.write(0, b"newer")
        buffer.seal(1)
        released = trio.Event()

        async def release() -> None:
            with pytest.raises(ReleaseError):
                await buffer.release(1)
            released.set()

        nursery.start_soon(release)
        await waiting(buffer, 1)
        buffer.discard()
        with trio.fail_after(WAIT_S):
            await released.wait()
        store.proceed()
    assert store.operations == [("write", 0, b"older")]


async def test_slow_store_delays_nobody_who_does_not_need_it(buffer: DiskBuffer, store: FakeStore) -> None:
    store.cached = False
    buffer.hold(1)
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.read, 0, 8))
        await entered(store)
        buffer.write(0, b"held")
        assert buffer.read(0, 4) == b"held"
        buffer.seal(1)
        assert buffer.statistics().sealed_epochs == (1,)
        store.proceed()


# --- synchronisation --------------------------------------------------------------------------------


async def test_dirty_chunks_are_marked_before_and_after_the_write(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.write, CHUNK_BYTES - 1, b"ab"))
        await entered(store)
        assert buffer.take_dirty_chunks().tolist() == [0, 1]
        assert buffer.take_dirty_chunks().tolist() == []
        store.proceed()
    assert buffer.take_dirty_chunks().tolist() == [0, 1]
    buffer.hold(1)
    buffer.write(0, b"held")
    assert buffer.take_dirty_chunks().tolist() == []


async def test_chunks_are_the_stores(buffer: DiskBuffer, store: FakeStore) -> None:
    store.image[-1] = 7
    buffer.hold(1)
    buffer.write(SIZE - 4, b"held")
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
    buffer.write(2, b"HELD")
    assert buffer.try_read(0, 8) is None
    assert buffer.read(0, 8) == b"unHELDed"
    assert buffer.try_read(2, 4) == b"HELD"


@pytest.mark.parametrize(("limit_bytes", "depth"), [(0, 1), (1, 0)])
def test_needs_a_limit_and_a_depth(store: FakeStore, limit_bytes: int, depth: int) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        DiskBuffer(store, limit_bytes=limit_bytes, depth=depth)


# --- reads and allocation ---------------------------------------------------------------------------


async def test_store_in_memory_is_read_without_a_copy(store: FakeStore) -> None:
    store.in_memory = True
    buffer = DiskBuffer(store, limit_bytes=LIMIT)
    view = buffer.try_read(0, 8)
    assert isinstance(view, memoryview)
    assert view.obj is store.image
    await buffer.open()
    assert buffer.try_changes((Extent.of_data(0, b"at once"),)) == (1, Admission.HELD)
    assert store.operations == [("write", 0, b"at once")]
    assert view[:7] == b"at once"
    buffer.hold(1)
    buffer.write(0, b"AT")
    held = buffer.try_read(0, 4)
    assert held == b"AT o"
    assert view[:2] == b"at"
    elsewhere = buffer.try_read(8, 4)
    assert isinstance(elsewhere, memoryview)
    assert elsewhere.obj is store.image


async def test_known_zeros_are_no_bytes_if_wanted(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    buffer.zero(0, 4096, punch_hole=True)
    buffer.zero(4096, 4096, punch_hole=False)
    assert buffer.try_read(100, 5000) == bytes(5000)
    assert buffer.try_read(100, 5000, holes=True) == b""
    buffer.write(200, b"x")
    assert buffer.try_read(100, 5000, holes=True) == bytes(100) + b"x" + bytes(4899)


@pytest.mark.parametrize("cached", [True, False])
async def test_long_read_of_many_pieces(buffer: DiskBuffer, store: FakeStore, cached: bool) -> None:
    store.cached = cached
    store.image[:] = b"s" * SIZE
    expected = bytearray(store.image)
    buffer.hold(1)
    buffer.prepare()
    for place in range(0, 40000, 100):
        buffer.write(place, b"held")
        expected[place : place + 4] = b"held"
        buffer.zero(place + 50, 10, punch_hole=place % 200 == 0)
        expected[place + 50 : place + 60] = bytes(10)
    assert buffer.try_read(10, 40000) is None
    assert buffer.read(10, 40000) == expected[10:40010]
    assert buffer.read(0, SIZE) == expected


async def test_allocation_is_what_is_held_and_what_the_store_has(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    buffer.write(0, bytes(10))
    buffer.zero(10, 10, punch_hole=True)
    buffer.seal(1)
    buffer.zero(15, 10, punch_hole=False)
    found = [(part.length, part.hole, part.zero) for part in buffer.allocation(5, 30)]
    data, hole, zeros = (False, False), (True, True), (False, True)
    assert found == [(5, *data), (5, *hole), (10, *zeros), (10, *data)]


async def test_allocation_goes_on_through_any_number_of_pieces(buffer: DiskBuffer) -> None:
    buffer.hold(1)
    buffer.prepare()
    for place in range(0, 4000, 20):
        buffer.zero(place, 10, punch_hole=True)
    found = [(part.length, part.hole) for part in buffer.allocation(0, SIZE)]
    assert found[:399] == ([(10, True), (10, False)] * 200)[:-1]
    assert not any(hole for _, hole in found[399:])
    assert sum(length for length, _ in found) == SIZE


async def test_store_that_says_less_than_asked_of_its_allocation_is_asked_again() -> None:
    class Terse(FakeStore):
        def allocation(self, offset: int, length: int) -> list[Allocation]:
            return [Allocation(min(length, 4096), hole=True, zero=True)]

    buffer = DiskBuffer(Terse(SIZE), limit_bytes=LIMIT)
    assert sum(part.length for part in buffer.allocation(0, SIZE)) == SIZE


# --- threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
async def test_clients_read_their_writes_while_epochs_come_and_go(in_memory: bool) -> None:
    """Each of four clients has a quarter of the disk; the engine seals and releases as fast as it can."""
    seed, clients, share = 20081117, 4, SIZE // 4
    store = FakeStore(SIZE)
    store.in_memory = in_memory
    buffer = DiskBuffer(store, limit_bytes=1 << 16)
    models = [bytearray(share) for _ in range(clients)]
    left = clients

    def work(number: int) -> None:
        generator, model, base = random.Random(seed + number), models[number], number * share
        for _ in range(400):
            length = generator.randint(1, 3000)
            place = generator.randrange(share - length)
            data = generator.randbytes(length)
            if generator.random() < 0.7:
                buffer.write(base + place, data)
            else:
                data = bytes(length)
                buffer.zero(base + place, length, punch_hole=True)
            model[place : place + length] = data
            start = generator.randrange(share - 4000)
            assert buffer.read(base + start, 4000) == model[start : start + 4000], f"seed {seed}"

    async def client(number: int) -> None:
        nonlocal left
        await trio.to_thread.run_sync(work, number)
        left -= 1

    buffer.hold(1)
    async with trio.open_nursery() as nursery:
        for number in range(clients):
            nursery.start_soon(client, number)
        epoch = 1
        while left:
            buffer.prepare()
            buffer.seal(epoch)
            await buffer.release(epoch)
            epoch += 1
    buffer.seal(epoch)
    await buffer.release(epoch)
    assert bytes(store.image[: clients * share]) == b"".join(models), f"seed {seed}"


# --- the journal ------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path, store: FakeStore) -> Iterator[Journal]:
    with closing(Journal.open(tmp_path / "journal", store, capacity_bytes=1 << 20)) as journal:
        store.operations.clear()
        yield journal


async def test_epochs_go_through_the_journal(store: FakeStore, journal: Journal) -> None:
    buffer = DiskBuffer(store, limit_bytes=LIMIT, journal=journal)
    buffer.hold(1)
    buffer.write(0, b"one")
    buffer.seal(1)
    buffer.write(1, b"two")
    await buffer.release(1)
    assert ("write", 0, b"one") in store.operations
    figures = journal.statistics()
    assert (figures.records, figures.committed_epochs) == (1, 1)
    await buffer.open()
    assert bytes(store.image[:4]) == b"otwo"
    figures = journal.statistics()
    assert (figures.records, figures.committed_epochs) == (0, 2)
    buffer.write(0, b"past it")
    assert journal.statistics().committed_epochs == 2


async def test_what_is_released_survives_the_store(tmp_path: Path, store: FakeStore) -> None:
    """The journal alone has it: a store that lost what wasn't synchronised gets it back."""
    journal = Journal.open(tmp_path / "journal", store, capacity_bytes=1 << 20)
    buffer = DiskBuffer(store, limit_bytes=LIMIT, journal=journal)
    buffer.hold(1)
    buffer.write(7, b"kept")
    buffer.seal(1)
    await buffer.release(1)
    journal.close()
    after_the_crash = FakeStore(SIZE)
    Journal.open(tmp_path / "journal", after_the_crash, capacity_bytes=1 << 20).close()
    assert bytes(after_the_crash.image[7:11]) == b"kept"


@pytest.mark.parametrize("again", ["open", "release"])
async def test_what_was_written_since_a_failed_opening_follows(
    store: FakeStore, journal: Journal, again: str
) -> None:
    buffer = DiskBuffer(store, limit_bytes=LIMIT, journal=journal)
    buffer.hold(1)
    buffer.write(0, b"one")
    buffer.seal(1)
    await buffer.release(1)
    buffer.write(0, b"two")
    store.failure = StoreFullError("full")
    with pytest.raises(StoreFullError):
        await buffer.open()
    assert journal.statistics().waiting_epochs == (2,)
    buffer.write(2, b"!!")
    with pytest.raises(StoreFullError):
        await buffer.open()
    buffer.write(3, b"?")
    store.failure = None
    if again == "open":
        await buffer.open()
    else:
        buffer.seal(2)
        await buffer.release(2)
    assert bytes(store.image[:4]) == b"tw!?"
    assert journal.statistics().waiting_epochs == ()


async def test_standby_logs_and_applies_once(store: FakeStore, journal: Journal) -> None:
    buffer = DiskBuffer(store, limit_bytes=LIMIT, journal=journal)
    await buffer.write_chunk(0, b"c" * CHUNK_BYTES)
    writes = SealedWrites((Extent.of_data(0, b"epoch"),))
    await buffer.log(5, writes)
    assert bytes(store.image[:5]) == b"ccccc"
    assert journal.statistics().waiting_epochs == (5,)
    await buffer.apply(5, writes)
    assert bytes(store.image[:5]) == b"epoch"
    figures = journal.statistics()
    assert (figures.waiting_epochs, figures.records) == ((), 1)
    await buffer.write_chunk(0, b"d" * CHUNK_BYTES)
    assert journal.statistics().records == 0
    with pytest.raises(StateError, match="for a disk of"):
        await buffer.log(6, SealedWrites((Extent.of_data(SIZE, b"x"),)))
    buffer.hold(6)
    with pytest.raises(StateError, match="while holding"):
        await buffer.log(6, writes)


async def test_nothing_is_logged_without_a_journal(buffer: DiskBuffer) -> None:
    with pytest.raises(StateError, match="without a journal"):
        await buffer.log(1, SealedWrites(()))


async def test_release_may_mean_stable_storage(store: FakeStore) -> None:
    buffer = DiskBuffer(store, limit_bytes=LIMIT, sync_releases=True)
    buffer.hold(1)
    buffer.write(0, b"x")
    buffer.seal(1)
    await buffer.release(1)
    assert store.operations == [("write", 0, b"x"), ("sync",)]
    await buffer.sync_store()
    assert store.operations[2:] == [("sync",)]


async def test_a_release_waits_for_a_flush_that_began_before(buffer: DiskBuffer, store: FakeStore) -> None:
    """Of two syncs at once one is told of a failure: a flush must not be, of what an epoch has written."""
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread(buffer.sync))
        await entered(store)
        buffer.hold(1)
        buffer.write(0, b"x")
        buffer.seal(1)
        nursery.start_soon(buffer.release, 1)
        await waiting(buffer, 1)
        assert not store.entered.acquire(blocking=False)
        store.proceed()
    assert store.operations == [("sync",), ("write", 0, b"x")]


async def test_a_failed_flush_lets_the_release_go_on(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    store.failure = StoreIOError("broken by design")
    with pytest.raises(StoreIOError, match="by design"):
        await buffer.flush()
    store.failure = None
    buffer.hold(1)
    buffer.write(0, b"x")
    buffer.seal(1)
    with trio.fail_after(WAIT_S):
        await buffer.release(1)


@pytest.mark.parametrize("by_client", [False, True])
async def test_of_a_failed_flush_each_client_is_told_once(
    buffer: DiskBuffer, store: FakeStore, by_client: bool
) -> None:
    """A file tells one fsync of what it lost, and the next one nothing."""
    await buffer.open()
    clients = [buffer.passing.listener() for _ in range(3)]
    store.failure = StoreIOError("broken by design")
    if by_client:
        with pytest.raises(StoreIOError):
            buffer.sync(clients.pop())
    else:
        with pytest.raises(StoreIOError):
            await buffer.flush()
    store.failure = None
    await buffer.flush()
    for client in clients:
        with pytest.raises(StoreIOError, match="by design"):
            buffer.sync(client)
        buffer.sync(client)


async def test_a_failed_flush_is_told_again_until_its_answer_was_sent(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    """A client that lost its connection meanwhile sends its flush again, on another."""
    await buffer.open()
    store.failure = StoreIOError("broken by design")
    for _ in range(2):
        with pytest.raises(StoreIOError, match="by design") as raised:
            buffer.sync(buffer.passing.listener())
        store.failure = None
        buffer.passing.told(StoreIOError("of a read that failed, too, while that answer was on its way"))
    buffer.passing.told(raised.value)
    buffer.sync(buffer.passing.listener())


async def test_a_failed_flush_is_told_while_an_epoch_is_held(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    client = buffer.passing.listener()
    store.failure = StoreIOError("broken by design")
    with pytest.raises(StoreIOError):
        await buffer.flush()
    store.failure = None
    buffer.hold(1)
    assert buffer.sync_waits(client)
    with pytest.raises(StoreIOError, match="by design"):
        buffer.sync(client)
    assert not buffer.sync_waits(client)
    buffer.sync(client)


@pytest.mark.parametrize("holding", [False, True])
async def test_what_somebody_else_flushes_for_the_guest_keeps_the_news_for_it(
    buffer: DiskBuffer, store: FakeStore, holding: bool
) -> None:
    """QEMU flushes when it stops the guest, and takes no notice of what comes of it."""
    await buffer.open()
    client = buffer.passing.listener()
    store.failure = StoreIOError("broken by design")
    with pytest.raises(StoreIOError):
        await buffer.flush()
    store.failure = None
    if holding:
        buffer.hold(1)
    buffer.ignore_flushes(True)
    buffer.sync(client)
    buffer.ignore_flushes(False)
    with pytest.raises(StoreIOError, match="by design"):
        buffer.sync(client)


async def test_a_client_may_come_while_a_flush_takes_its_time(buffer: DiskBuffer, store: FakeStore) -> None:
    await buffer.open()
    store.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buffer.flush)
        await entered(store)
        with trio.fail_after(WAIT_S):
            client = await trio.to_thread.run_sync(buffer.passing.listener)
            await trio.to_thread.run_sync(buffer.passing.told, StoreIOError("another"))
            await trio.to_thread.run_sync(buffer.passing.has_news, client)
        store.proceed()


async def test_what_may_not_pass_without_a_wait_is_decided_with_the_state(
    buffer: DiskBuffer, store: FakeStore
) -> None:
    await buffer.open()
    changes = [Extent.of_data(0, b"x")]
    assert buffer._gate.try_admit(changes, may_pass=False) == (0, Admission.PASSES)
    assert buffer.try_changes(changes) == (0, Admission.PASSES)
    assert store.operations == []
    buffer.hold(1)
    assert buffer._gate.try_admit(changes, may_pass=False) == (1, Admission.HELD)


async def test_the_engine_s_sync_does_not_run_beside_a_release(buffer: DiskBuffer, store: FakeStore) -> None:
    buffer.hold(1)
    buffer.write(0, b"x")
    buffer.seal(1)
    store.stall()
    with trio.CancelScope() as impatient:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(buffer.release, 1)
            await entered(store)
            nursery.start_soon(buffer.sync_store)
            await wait_all_tasks_blocked()
            impatient.cancel()  # what has begun goes on to its end
            store.proceed()
    assert store.operations == [("write", 0, b"x")]


async def test_epoch_without_changes_synchronises_only_what_passed_before_the_hold() -> None:
    store = FakeStore(64)
    buffer = DiskBuffer(store, limit_bytes=LIMIT, sync_releases=True)
    await buffer.open()
    await trio.to_thread.run_sync(buffer.write, 0, b"passes")
    buffer.hold(1)
    for epoch in (1, 2, 3):
        buffer.seal(epoch)
        await buffer.release(epoch)
    assert store.operations == [("write", 0, b"passes"), ("sync",)]
    buffer.write(0, b"held")
    buffer.seal(4)
    await buffer.release(4)
    assert store.operations[2:] == [("write", 0, b"held"), ("sync",)]
    await buffer.open()
    store.operations.clear()
    buffer.hold(9)
    buffer.seal(9)
    await buffer.release(9)
    assert store.operations == [("sync",)]
    assert buffer.statistics().sealed_epochs == ()
