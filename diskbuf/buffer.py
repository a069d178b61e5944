"""The disk's output buffer: DESIGN.md, section 4, in front of a store.

Two sorts of threads meet here. Data threads, one or more for each client, call the blocking methods; the
engine calls the contract's from its trio thread, and what takes time there runs in worker threads.

Invariants:
1. nothing reaches the store but by `release`, `open`, and in `open` by a change; on a standby, in `closed`,
   by `apply` and `write_chunk` (P4);
2. a held epoch leaves the overlay only once all of it is in the store, so that reads never go back in time
   (see `reading`);
3. whoever changes the store on behalf of an epoch has `_store_turn`, so epochs reach it in order (P5);
4. no store is waited for under the gate's lock: a slow store delays those only who need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from typing import TypeVar, TypeVarTuple

import numpy as np
import trio

from diskbuf.arena import Arena
from diskbuf.chunks import CHUNK_BYTES, Chunks
from diskbuf.contract import BufferStatistics, Pressure, State, StepHook, pass_step
from diskbuf.errors import ChunkError, ReleaseError, StateError
from diskbuf.extents import Bytes, Extent, ExtentMap, Kind
from diskbuf.gate import Admission, Gate
from diskbuf.journal import Journal
from diskbuf.passing import Listener, Passing
from diskbuf.reading import Reading
from diskbuf.sealed import SealedWrites
from diskbuf.store import Allocation, Store, apply_extents

_Arguments = TypeVarTuple("_Arguments")
_T = TypeVar("_T")

DIGEST_BYTES = 16
"""Bytes of a chunk's digest: equal ones by chance are out of the question for any number of chunks."""

_ENGINE_THREADS = 8
"""Store operations of the engine at a time: they keep a disk's queue busy, and leave the machine alone."""


def _never() -> bool:
    return False


class DiskBuffer:
    """Holds the writes to one disk per epoch, and releases them into `store` only on `release`.

    `limit_bytes` bounds what is held: at it, writes wait. It is exceeded by at most one request, and by what
    `prepare` admits, which is what the clients have in flight. The memory that this takes is up to three
    times as much: payloads in slabs, and slabs for those to come, take `limit_bytes` at most, overwritten
    ones beside what is held included; payloads of their own are at most twice what is left of them. `depth`
    bounds the sealed, unreleased epochs.

    With a `journal` an epoch gets into the store wholly or not at all, whatever crashes. With `sync_releases`
    an epoch counts as released only when it is on stable storage. `on_step` hears how far a release is.
    """

    def __init__(
        self,
        store: Store,
        *,
        limit_bytes: int,
        depth: int = 2,
        journal: Journal | None = None,
        sync_releases: bool = False,
        on_step: StepHook = pass_step,
    ) -> None:
        if limit_bytes <= 0 or depth <= 0:
            raise ValueError(f"limit_bytes is {limit_bytes} and depth {depth}; both must be positive")
        self.depth = depth
        self.arena = Arena(limit_bytes)
        self._store = store
        self._journal = journal
        self._sync_releases = sync_releases
        self._on_step = on_step
        self._in_memory = store.read_view(0, 1) is not None
        self._gate = Gate(
            limit_bytes=limit_bytes,
            depth=depth,
            read_only=store.read_only,
            rose=partial(self._in_engine, self._tell),
            began=partial(self._in_engine, self._tell_output),
        )
        self._reading = Reading(self._gate, store, journal, in_memory=self._in_memory)
        self._pressure_callbacks: list[Callable[[Pressure], None]] = []
        self._output_callbacks: list[Callable[[int], None]] = []
        self._engine: trio.lowlevel.TrioToken | None = None
        self._store_turn = trio.Lock()
        self._left_nothing = False  # a release since `hold` did all that an epoch without changes may have to
        self._threads = trio.CapacityLimiter(_ENGINE_THREADS)
        self._chunks = Chunks(store.size_bytes)
        self.passing = Passing(self._gate, store, self._chunks)
        self._logged_open = False  # the journal may have what the open epoch was when an opening failed

    # --- the contract, in the trio thread -----------------------------------------------------------

    @property
    def state(self) -> State:
        return self._gate.state

    @property
    def size_bytes(self) -> int:
        return self._store.size_bytes

    @property
    def read_only(self) -> bool:
        """Whether the store takes no writes, so that none is accepted in any state."""
        return self._gate.read_only

    @property
    def pressure(self) -> Pressure:
        return self._gate.pressure

    def on_pressure(self, callback: Callable[[Pressure], None]) -> None:
        """Call `callback(level)` in the trio thread, soon after the level has risen."""
        self._pressure_callbacks.append(callback)

    def on_output(self, callback: Callable[[int], None]) -> None:
        """From the next epoch on, have `callback(epoch)` called in the trio thread, once an epoch, soon after
        its first change was held or a flush was answered in it."""
        self._output_callbacks.append(callback)
        self._gate.tell_beginnings()

    def ignore_flushes(self, ignored: bool) -> None:
        """Whether flushes come from somebody else than the guest: they are no outputs, and are told of no
        failure but their own."""
        self._gate.flushes_ignored = ignored

    def open_items(self) -> int:
        """How many changes the open epoch has so far; flushes are not among them."""
        return self._gate.open_items

    def hold(self, epoch: int) -> None:
        """From now on, changes belong to `epoch`. Those that were answered before are in the store."""
        self._engine = trio.lowlevel.current_trio_token()
        self._gate.hold(epoch)
        self._left_nothing = False

    def prepare(self) -> None:
        """Until the next seal, admit changes beyond the limit, those that wait for room included."""
        self._gate.prepare()

    def seal(self, epoch: int) -> None:
        """Close the open epoch, which must be `epoch`; what comes now belongs to the next one."""
        self._gate.seal(epoch)

    def sealed(self, epoch: int) -> SealedWrites:
        """What a sealed, unreleased epoch changed; a snapshot that stays valid after its release."""
        return SealedWrites(self._gate.sealed_map(epoch).extents)

    def held_writes(self) -> SealedWrites:
        """All that is held, sealed and open, as one epoch's writes; a snapshot.

        For a stalled guest's next secondary, which starts from this store and has none of the epochs.
        """
        return SealedWrites(self._gate.held_map().extents)

    async def release(self, epoch: int) -> None:
        """Write the oldest sealed epoch, which must be `epoch`, to the store.

        A `StoreError` leaves the epoch held, and so does a cancellation before the write began; once begun,
        it isn't interrupted. Releasing it again is right in any case.
        """
        async with self._store_turn:
            self._gate.check_release(epoch)
            changes = self._gate.sealed_map(epoch)
            if self._left_nothing and not len(changes):
                self._gate.retire(changes)
                return
            await self._in_thread(self._let_out, epoch, changes, f"release of epoch {epoch}")
            self._left_nothing = True

    async def open(self) -> None:
        """Write all that is held to the store, in order; from then on, changes go there at once.

        Changes that arrive meanwhile are held behind the older ones, and wait towards the end. A
        `StoreError` or a cancellation leaves the buffer holding what hasn't left. Nothing is synchronised:
        the next `flush` does that.
        """
        async with self._store_turn:
            opened = False
            letting_out = self._gate.begin_opening()
            try:
                if letting_out:
                    await self._let_out_everything()
                await self._in_thread(self._leave_journal)
                opened = True
            finally:
                self._gate.end_opening(opened=opened)

    def discard(self) -> None:
        """Drop all that is held; nothing reaches the store ever after but a write already under way."""
        self._gate.discard()

    def statistics(self) -> BufferStatistics:
        return self._gate.statistics()

    async def flush(self) -> None:
        """As `sync`, for the engine. The client that syncs next is told of a failure as well."""
        await self._in_thread(self.passing.sync)

    # --- the disk as the guest sees it, in any thread: these block ----------------------------------

    def try_read(self, offset: int, length: int, *, holes: bool = False) -> Bytes | None:
        """The bytes of a range as last written, or None if that needs a wait. They must not be changed.

        With `holes`, no bytes at all are the answer where all of the range is known to be zeros.
        """
        return self._reading.try_read(offset, length, holes=holes)

    def read(self, offset: int, length: int) -> Bytes:
        """The bytes of a range as last written; they must not be changed. Raises `StoreError`."""
        return self._reading.read(offset, length)

    def allocation(self, offset: int, length: int) -> Iterator[Allocation]:
        """What is known of a range without reading it, from `offset` on. Raises `StoreError` as it goes."""
        return self._reading.allocation(offset, length)

    def try_changes(self, changes: Sequence[Extent]) -> tuple[int, Admission]:
        """Make changes, in order, as long as that needs no wait: how many are made. If none is, the first
        one waits for what is said: room, or the store.

        Raises `WriteRefusedError`, `StoreError`; then all of them have failed.
        """
        count, admission = self._gate.try_admit(changes, may_pass=self._in_memory)
        if count and admission is Admission.PASSES:
            self.passing.write(changes)
            return count, Admission.HELD
        return count, admission

    def change(self, extent: Extent, abandoned: Callable[[], bool] = _never) -> bool:
        """Hold a change, once there is room, or write it to the store, as the state demands.

        False if `abandoned()` before that: it has not happened. Whoever makes it true calls `wake`. Raises
        `WriteRefusedError`, `StoreError`.
        """
        admission = self._gate.admit(extent, abandoned)
        if admission is Admission.PASSES:
            self.passing.write((extent,))
        return admission is not Admission.WAITS

    @property
    def waiting(self) -> int:
        """How many wait in their threads: changes for room, a release for changes that are on their way."""
        return self._gate.waiting

    def wake(self) -> None:
        """Make every change that waits ask `abandoned` again."""
        self._gate.wake()

    def write(self, offset: int, data: Bytes) -> None:
        """Change a range to `data`, which the caller gives away: it is kept, not copied."""
        self.change(Extent.of_data(offset, data))

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        """Make a range read as zeros; deallocate it if `punch_hole`, else keep it allocated."""
        self.change(Extent(offset, length, Kind.HOLE if punch_hole else Kind.ZERO))

    def sync_waits(self, listener: Listener) -> bool:
        """Whether `sync` has something to wait for, or to tell. In `holding` the epoch's acknowledgement is
        in the place of stable storage: nobody sees the answer before it (P1)."""
        in_store = self._gate.state is State.OPEN and not self._in_memory
        return in_store or self.passing.has_news(listener)

    def note_flush(self) -> None:
        """A client's flush is answered without `sync`, for `sync_waits` said no."""
        self._gate.note_flush()

    def sync(self, listener: Listener | None = None) -> None:
        """Return when every change that was answered is as safe as the state makes it: in the store and on
        stable storage if `open`. Raises `StoreError`, for a `listener` also if another's flush has failed."""
        if not self.passing.sync(listener):
            self._gate.note_flush()

    @property
    def zeroes_fast(self) -> bool:
        """Whether no store has to write zeros out: that may take its time, holding them doesn't."""
        return self._gate.state is not State.OPEN

    # --- synchronisation and standby, in the trio thread --------------------------------------------

    def take_dirty_chunks(self) -> np.ndarray:
        """The ascending indices (int64) of the chunks that were written while `open` since the last call.

        What `open` let out is marked as well.
        """
        return self._chunks.take()

    async def read_chunk(self, index: int) -> Bytes:
        """A chunk of the store, held changes left out; the disk's last one may be short."""
        offset, length = self._chunks.range(index)
        target = bytearray(length)
        read = partial(self._store.read, offset, memoryview(target))
        await self._in_thread(self._reading.from_store, read)
        return target

    async def write_chunk(self, index: int, data: Bytes) -> None:
        """Overwrite a chunk of a standby's store. Only while `closed`."""
        offset, length = self._chunks.range(index)
        if len(data) != length:
            raise ChunkError(
                f"chunk {index} has {length} bytes, but {len(data)} were given; drop the session"
            )
        await self._write_closed(self._write_past_journal, (Extent.of_data(offset, data),))

    async def chunk_digests(self, first: int, count: int) -> bytes:
        """BLAKE2b digests, `DIGEST_BYTES` each, of `count` chunks of the store from `first` on."""
        if count <= 0:
            raise ChunkError(f"digests of {count} chunks from {first} on; ask for at least one")
        self._chunks.range(first)
        self._chunks.range(first + count - 1)
        return await self._in_thread(self._digest, first, count)

    async def log(self, epoch: int, writes: SealedWrites) -> None:
        """Make an epoch of the primary durable in the journal, to be applied later. Only while `closed`.

        May run beside an `apply` of an epoch before it. Raises `StateError` without a journal.
        """
        if self._journal is None:
            raise StateError(f"log({epoch}) without a journal: nothing can be durable before it is applied")
        self._check_writes(writes)
        self._check_closed()
        await self._in_thread(self._journal.log, epoch, writes.extents)

    async def apply(self, epoch: int, writes: SealedWrites) -> None:
        """Write an acknowledged epoch of the primary, logged or not, to a standby's store. Only while
        `closed`."""
        self._check_writes(writes)
        await self._write_closed(self._commit, epoch, writes.extents, self._is_discarded)

    async def sync_store(self) -> None:
        """Return when all that reached the store is on stable storage, whatever the state."""
        async with self._store_turn:  # or it could be told of a failure that a release's journal must know of
            await self._in_thread(self._sync_store)

    # --- inside -------------------------------------------------------------------------------------

    async def _in_thread(self, function: Callable[[*_Arguments], _T], *args: *_Arguments) -> _T:
        """Run a store operation in a thread. Once begun it isn't abandoned: what it does stays known."""
        return await trio.to_thread.run_sync(function, *args, limiter=self._threads)

    def _in_engine(self, tell: Callable[[_T], None], what: _T) -> None:
        """From whatever thread, in the engine's, if that is still there."""
        assert self._engine is not None, "nothing is held before hold()"
        with suppress(trio.RunFinishedError):
            self._engine.run_sync_soon(tell, what)

    def _tell(self, level: Pressure) -> None:
        for callback in self._pressure_callbacks:
            callback(level)

    def _tell_output(self, epoch: int) -> None:
        for callback in self._output_callbacks:
            callback(epoch)

    async def _let_out_everything(self) -> None:
        """Write all that is held to the store, in order. With `_store_turn`."""
        while (oldest := self._gate.oldest()) is not None:
            epoch, changes = oldest
            self._chunks.mark(changes.extents)
            await self._in_thread(self._let_out, epoch, changes, f"opening with epoch {epoch} held")
        epoch, changes = self._gate.settle()
        self._chunks.mark(changes.extents)
        await self._in_thread(self._let_out, epoch, changes, "opening", True)

    def _let_out(self, epoch: int, changes: ExtentMap, what: str, may_grow: bool = False) -> None:
        """Write held changes to the store, behind older ones on their way; a discard meanwhile stops it."""
        on_step = self._on_step if changes.extents else pass_step
        self._gate.wait_none_passing()
        if self._logged_open:  # it goes first: a journal takes no epoch again that has grown since
            self._leave_journal()
        self._logged_open = may_grow
        done = self._commit(epoch, changes.extents, partial(self._stops_before_write, on_step, epoch))
        if not done or self._is_discarded():
            raise ReleaseError(f"{what} was stopped by discard(); a part of it may have left")
        on_step("written", epoch)
        if self._sync_releases:
            self._store.sync()
            on_step("synced", epoch)
        self._gate.retire(changes)
        self._logged_open = False

    def _commit(self, epoch: int, extents: Sequence[Extent], stopped: Callable[[], bool]) -> bool:
        """Write an epoch to the store; False if `stopped` said so."""
        if self._journal is not None:
            return self._journal.commit(epoch, extents, stopped)
        return apply_extents(self._store, extents, stopped)

    def _stops_before_write(self, on_step: StepHook, epoch: int) -> bool:
        on_step("write", epoch)
        return self._is_discarded()

    def _leave_journal(self) -> None:
        """Before writes go to the store past the journal: a replay would undo them."""
        if self._journal is not None:
            self._journal.quiesce()

    def _write_past_journal(self, extents: Sequence[Extent]) -> bool:
        self._leave_journal()
        return apply_extents(self._store, extents, self._is_discarded)

    def _sync_store(self) -> None:
        self._leave_journal()
        self._store.sync()

    async def _write_closed(self, write: Callable[[*_Arguments], bool], *args: *_Arguments) -> None:
        async with self._store_turn:
            self._check_closed()
            if not await self._in_thread(write, *args):
                raise StateError("discard() stopped a write to the standby's store; a part of it is missing")

    def _check_closed(self) -> None:
        if self.state is not State.CLOSED:
            raise StateError(f"a standby's store is written only while closed, not while {self.state}")

    def _check_writes(self, writes: SealedWrites) -> None:
        if writes.extents and writes.extents[-1].end > self.size_bytes:
            raise StateError(
                f"writes up to {writes.extents[-1].end} for a disk of {self.size_bytes} bytes;"
                " compare sizes first"
            )

    def _is_discarded(self) -> bool:
        return self._gate.discarded

    def _digest(self, first: int, count: int) -> bytes:
        chunk = memoryview(bytearray(CHUNK_BYTES))
        digests = []
        for index in range(first, first + count):
            offset, length = self._chunks.range(index)
            self._reading.from_store(partial(self._store.read, offset, chunk[:length]))
            digests.append(blake2b(chunk[:length], digest_size=DIGEST_BYTES).digest())
        return b"".join(digests)
