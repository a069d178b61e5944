"""The disk's output buffer: DESIGN.md, section 4, in front of a store.

Invariants:
1. nothing reaches the store but by `release`, `open`, and in `open` by a write; on a standby, in `closed`,
   by `apply` and `write_chunk` (P4);
2. a held epoch leaves the overlay only once all of it is in the store: reads never go back in time;
3. whoever changes the store on behalf of an epoch has `_store_lock`, so epochs reach it in order (P5);
4. a change that waits or goes to the store asks for the state again after every wait: it may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar, TypeVarTuple

import numpy as np
import trio

from diskbuf.chunks import CHUNK_BYTES, Chunks
from diskbuf.contract import BufferStatistics, Pressure, State
from diskbuf.errors import (
    ChunkError,
    HoldError,
    OpenError,
    ReleaseError,
    SealError,
    StateError,
    UnknownEpochError,
    WriteRefusedError,
)
from diskbuf.extents import Bytes, Extent, ExtentMap, Kind, held_bytes
from diskbuf.overlay import Overlay, ReadPlan
from diskbuf.sealed import SealedWrites
from diskbuf.store import Store, apply_extents

_Arguments = TypeVarTuple("_Arguments")
_T = TypeVar("_T")

DIGEST_BYTES = 16
"""Bytes of a chunk's digest: equal ones by chance are out of the question for any number of chunks."""

_STORE_THREADS = 8
"""Store operations at a time: enough to keep a disk's queue busy, few enough to leave the machine alone."""
_INLINE_READ_BYTES_MAX = 256 << 10
"""The longest read from the page cache in the trio thread: copying it takes about as long as a thread."""

_RANK = {Pressure.NONE: 0, Pressure.SOON: 1, Pressure.FULL: 2}


class DiskBuffer:
    """Holds the writes to one disk per epoch, and releases them into `store` only on `release`.

    `limit_bytes` bounds what is held: at it, writes wait. It is exceeded by at most one request, and by what
    `prepare` admits, which is what the clients have in flight. `depth` bounds the sealed, unreleased epochs.

    The `try_` methods are the hot path: they never wait, and say when waiting is necessary.
    """

    def __init__(self, store: Store, *, limit_bytes: int, depth: int = 2) -> None:
        if limit_bytes <= 0 or depth <= 0:
            raise ValueError(f"limit_bytes is {limit_bytes} and depth {depth}; both must be positive")
        self.depth = depth
        self._store = store
        self._overlay = Overlay(limit_bytes)
        self._state = State.CLOSED
        self._pressure = Pressure.NONE
        self._pressure_callbacks: list[Callable[[Pressure], None]] = []
        self._preparing = False  # a seal is coming: the limit doesn't count
        self._opening = False  # `open` is letting out what is held: no seal, no release beside it
        self._settling = False  # `open` is at the last of it: writes wait, or it would never end
        self._waiting = trio.lowlevel.ParkingLot()  # writes that wait for room, or for `open`
        self._passing = 0  # writes on their way to the store
        self._none_passing = trio.lowlevel.ParkingLot()
        self._store_lock = trio.Lock()
        self._store_threads = trio.CapacityLimiter(_STORE_THREADS)
        self._chunks = Chunks(store.size_bytes)
        self._released_items = self._released_bytes = self._dropped_items = 0

    # --- the contract -------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def size_bytes(self) -> int:
        return self._store.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether the store takes no writes, so that none is accepted in any state."""
        return self._store.read_only

    @property
    def pressure(self) -> Pressure:
        return self._pressure

    def on_pressure(self, callback: Callable[[Pressure], None]) -> None:
        """Call `callback(level)` in the trio thread whenever the level rises."""
        self._pressure_callbacks.append(callback)

    def hold(self, epoch: int) -> None:
        """From now on, changes belong to `epoch`. Those that were answered before are in the store."""
        if self._state not in (State.CLOSED, State.OPEN):
            raise HoldError(f"hold({epoch}) while {self._state}; only a closed or open buffer begins to hold")
        self._overlay.begin(epoch)
        self._preparing = False
        self._state = State.HOLDING

    def prepare(self) -> None:
        """Until the next seal, admit changes beyond the limit, those that wait for room included."""
        self._preparing = True
        self._waiting.unpark_all()

    def seal(self, epoch: int) -> None:
        """Close the open epoch, which must be `epoch`; what comes now belongs to the next one."""
        sealed = self._overlay.sealed_epochs
        if self._state is not State.HOLDING or self._opening:
            raise SealError(f"seal({epoch}) while {'opening' if self._opening else self._state}; hold first")
        if epoch != self._overlay.open_epoch:
            raise SealError(f"seal({epoch}), but the open epoch is {self._overlay.open_epoch}; seal that one")
        if len(sealed) >= self.depth:
            raise SealError(
                f"seal({epoch}) with {sealed} unreleased and depth {self.depth}; release one first"
            )
        self._overlay.seal()
        self._preparing = False

    def sealed(self, epoch: int) -> SealedWrites:
        """What a sealed, unreleased epoch changed; a snapshot that stays valid after its release."""
        changes = self._overlay.sealed_map(epoch)
        if changes is None:
            raise UnknownEpochError(
                f"sealed({epoch}), but sealed are {self._overlay.sealed_epochs}; ask before the release"
            )
        return SealedWrites(changes.extents)

    def held_writes(self) -> SealedWrites:
        """All that is held, sealed and open, as one epoch's writes; a snapshot.

        For a stalled guest's next secondary, which starts from this store and has none of the epochs.
        """
        return SealedWrites(self._overlay.held_map().extents)

    async def release(self, epoch: int) -> None:
        """Write the oldest sealed epoch, which must be `epoch`, to the store.

        A `StoreError` leaves the epoch held, and so does a cancellation before the write began; once begun,
        it isn't interrupted. Releasing it again is right in any case.
        """
        async with self._store_lock:
            oldest = self._overlay.oldest()
            if self._state is not State.HOLDING or oldest is None or oldest[0] != epoch:
                raise ReleaseError(
                    f"release({epoch}) while {self._state} with {self._overlay.sealed_epochs} sealed;"
                    " release the oldest sealed epoch"
                )
            await self._release_oldest()

    async def open(self) -> None:
        """Write all that is held to the store, in order; from then on, changes go there at once.

        Changes that arrive meanwhile are held behind the older ones, and wait towards the end. A
        `StoreError` or a cancellation leaves the buffer holding what hasn't left. Nothing is synchronised:
        the next `flush` does that.
        """
        async with self._store_lock:
            if self._state is State.DISCARDED:
                raise OpenError("open() after discard(): what was held is gone; make a new buffer")
            if self._state is State.HOLDING:
                self._opening = True
                try:
                    await self._let_out_everything()
                finally:
                    self._opening = self._settling = False
                    self._waiting.unpark_all()
            self._state = State.OPEN

    def discard(self) -> None:
        """Drop all that is held; nothing reaches the store ever after but a write already under way."""
        self._state = State.DISCARDED
        self._dropped_items += self._overlay.clear()
        self._note_held()
        self._waiting.unpark_all()

    def statistics(self) -> BufferStatistics:
        holding = self._state is State.HOLDING
        return BufferStatistics(
            state=self._state,
            open_epoch=self._overlay.open_epoch if holding else None,
            sealed_epochs=self._overlay.sealed_epochs,
            held_items=self._overlay.held_items,
            held_bytes=self._overlay.held_bytes,
            limit_bytes=self._overlay.limit_bytes,
            released_items=self._released_items,
            released_bytes=self._released_bytes,
            dropped_items=self._dropped_items,
            peak_bytes=self._overlay.peak_bytes,
        )

    # --- the disk as the guest sees it --------------------------------------------------------------

    def try_read(self, offset: int, length: int) -> Bytes | None:
        """The bytes of a range as last written, or None if that needs a wait. They must not be changed."""
        plan = self._plan(offset, length)
        if (whole := plan.whole()) is not None:
            return whole
        if length > _INLINE_READ_BYTES_MAX and plan.gaps:
            return None
        target = bytearray(length)
        view = memoryview(target)
        if all(self._store.read_cached(start, place) for start, place in plan.gap_views(view)):
            plan.compose(view)
            return target
        return None

    async def read(self, offset: int, length: int) -> Bytes:
        """The bytes of a range as last written. Raises `StoreError`."""
        plan = self._plan(offset, length)
        if (whole := plan.whole()) is not None:
            await trio.lowlevel.checkpoint()
            return whole
        target = bytearray(length)
        view = memoryview(target)
        for start, place in plan.gap_views(view):
            await self._in_thread(self._store.read, start, place)
        plan.compose(view)
        return target

    def try_change(self, extent: Extent) -> bool:
        """Hold a change; False if it must wait or go to the store. Raises `WriteRefusedError`."""
        assert extent.offset >= 0 and 0 < extent.length <= self.size_bytes - extent.offset, extent
        if self._state is State.HOLDING and not self._store.read_only:
            if self._settling or (self._pressure is Pressure.FULL and not self._preparing):
                return False
            self._overlay.put(extent)
            self._note_held()
            return True
        if self._state is State.OPEN and not self._store.read_only:
            return False
        reason = "its store is read-only" if self._store.read_only else f"the buffer is {self._state}"
        raise WriteRefusedError(f"write of {extent.length} bytes at {extent.offset} refused: {reason}")

    async def change(self, extent: Extent) -> None:
        """Hold a change, once there is room, or write it to the store, as the state demands.

        Cancelled while it waits, it has not happened. Raises `WriteRefusedError` and `StoreError`.
        """
        while not self.try_change(extent):
            if self._state is not State.OPEN:
                await self._waiting.park()
            elif await self._pass_through(extent):
                return

    async def write(self, offset: int, data: Bytes) -> None:
        """Change a range to `data`, which the caller gives away: it is kept, not copied."""
        await self.change(Extent.of_data(offset, data))

    async def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        """Make a range read as zeros; deallocate it if `punch_hole`, else keep it allocated."""
        await self.change(Extent(offset, length, Kind.HOLE if punch_hole else Kind.ZERO))

    def try_flush(self) -> bool:
        """Whether nothing need be waited for. In `holding` the epoch's acknowledgement takes the place of
        stable storage: nobody sees the answer before it (P1)."""
        return self._state is not State.OPEN

    async def flush(self) -> None:
        """Return when every change that was answered is as safe as the state makes it: in the store and on
        stable storage if `open`."""
        if self.try_flush():
            await trio.lowlevel.checkpoint()
        else:
            await self._in_thread(self._store.sync)

    # --- synchronisation and standby ----------------------------------------------------------------

    def take_dirty_chunks(self) -> np.ndarray:
        """The ascending indices (int64) of the chunks that were written while `open` since the last call.

        A write marks its chunks before it reaches the store and again after, so that whoever reads a chunk
        in between finds it marked once more. What `open` let out is marked as well.
        """
        return self._chunks.take()

    async def read_chunk(self, index: int) -> Bytes:
        """A chunk of the store, held changes left out; the disk's last one may be short."""
        offset, length = self._chunks.range(index)
        target = bytearray(length)
        await self._in_thread(self._store.read, offset, memoryview(target))
        return target

    async def write_chunk(self, index: int, data: Bytes) -> None:
        """Overwrite a chunk of a standby's store. Only while `closed`."""
        offset, length = self._chunks.range(index)
        if len(data) != length:
            raise ChunkError(
                f"chunk {index} has {length} bytes, but {len(data)} were given; drop the session"
            )
        await self._write_closed((Extent.of_data(offset, data),))

    async def chunk_digests(self, first: int, count: int) -> bytes:
        """BLAKE2b digests, `DIGEST_BYTES` each, of `count` chunks of the store from `first` on."""
        if count <= 0:
            raise ChunkError(f"digests of {count} chunks from {first} on; ask for at least one")
        self._chunks.range(first)
        self._chunks.range(first + count - 1)
        return await self._in_thread(self._digest, first, count)

    async def apply(self, writes: SealedWrites) -> None:
        """Write an acknowledged epoch of the primary to a standby's store. Only while `closed`."""
        if writes.extents and writes.extents[-1].end > self.size_bytes:
            raise StateError(
                f"writes up to {writes.extents[-1].end} for a disk of {self.size_bytes} bytes;"
                " compare sizes first"
            )
        await self._write_closed(writes.extents)

    # --- inside -------------------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[[*_Arguments], _T], *args: *_Arguments) -> _T:
        """Run a store operation in a thread. Once begun it isn't abandoned: what it does stays known."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._store_threads)

    def _plan(self, offset: int, length: int) -> ReadPlan:
        assert offset >= 0 and 0 < length <= self.size_bytes - offset, (offset, length)
        return self._overlay.plan(offset, length)

    def _note_held(self) -> None:
        """What is held has changed: adjust the level, and tell when it rose."""
        before, self._pressure = self._pressure, self._overlay.pressure
        if _RANK[self._pressure] > _RANK[before]:
            for callback in self._pressure_callbacks:
                callback(self._pressure)

    async def _release_oldest(self) -> None:
        """Write the oldest sealed epoch to the store and forget it. Under `_store_lock`."""
        oldest = self._overlay.oldest()
        assert oldest is not None
        epoch, changes = oldest
        await self._let_out(changes.extents, f"release of epoch {epoch}")
        self._overlay.retire_oldest()
        self._count_released(changes)

    async def _let_out_everything(self) -> None:
        """Write all that is held to the store, in order. Under `_store_lock`."""
        while (oldest := self._overlay.oldest()) is not None:
            self._chunks.mark(oldest[1].extents)
            await self._release_oldest()
        self._settling = True
        changes = self._overlay.open_map
        self._chunks.mark(changes.extents)
        await self._let_out(changes.extents, "opening")
        self._overlay.retire_open()
        self._count_released(changes)

    async def _let_out(self, extents: tuple[Extent, ...], what: str) -> None:
        """Write held extents to the store, behind older writes on their way; a discard meanwhile stops it."""
        while self._passing:
            await self._none_passing.park()
        if extents:
            await self._in_thread(apply_extents, self._store, extents, self._is_discarded)
        if self._is_discarded():
            raise ReleaseError(f"{what} was stopped by discard(); a part of it may have left")

    def _count_released(self, changes: ExtentMap) -> None:
        self._released_items += len(changes)
        self._released_bytes += changes.held_bytes
        self._note_held()
        self._waiting.unpark_all()

    async def _pass_through(self, extent: Extent) -> bool:
        """Write a change to the store, unless the state changes before it is begun; whether it is there."""
        self._chunks.mark((extent,))
        self._passing += 1
        try:
            passed = await self._in_thread(apply_extents, self._store, (extent,), self._is_not_open)
            if passed:
                self._released_items += 1
                self._released_bytes += held_bytes(extent)
            return passed
        finally:
            self._chunks.mark((extent,))
            self._passing -= 1
            if not self._passing:
                self._none_passing.unpark_all()

    async def _write_closed(self, extents: tuple[Extent, ...]) -> None:
        async with self._store_lock:
            if self._state is not State.CLOSED:
                raise StateError(f"a standby's store is written only while closed, not while {self._state}")
            if not await self._in_thread(apply_extents, self._store, extents, self._is_discarded):
                raise StateError("discard() stopped a write to the standby's store; a part of it is missing")

    def _is_discarded(self) -> bool:
        return self._state is State.DISCARDED

    def _is_not_open(self) -> bool:
        return self._state is not State.OPEN

    def _digest(self, first: int, count: int) -> bytes:
        chunk = memoryview(bytearray(CHUNK_BYTES))
        digests = []
        for index in range(first, first + count):
            offset, length = self._chunks.range(index)
            self._store.read(offset, chunk[:length])
            digests.append(blake2b(chunk[:length], digest_size=DIGEST_BYTES).digest())
        return b"".join(digests)
