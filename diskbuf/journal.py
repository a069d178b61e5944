"""The journal between a disk buffer and its store: an epoch is in the store wholly or not at all (P2, P7).

    commit = log: one record in the ring, durable  ->  apply: the extents, written to the store
    retire = sync the store  ->  move the tail, durable  ->  the records' space is used again

Invariants:
1. no byte of an epoch reaches the store before its record is durable;
2. epochs reach the store in the order of their records (P5);
3. a record is given up only after a store sync that began when its epoch was applied, and succeeded;
4. what others wrote to the store before a record is on stable storage before that record is.

So the store after a crash differs from an epoch boundary in bytes only that a whole record covers.

When a sync of the *store* fails, Linux takes the pages it couldn't write for clean, and the next sync
succeeds without them: asking again is no answer. All that was applied since the last good one is still in the
ring, and is written again before the next sync counts. When a sync of the *ring* fails, that step's record
counts as not written, and is rubbed out before the next step. Only what others wrote past the journal can't
be had again: if the sync before the first record after it fails, every later one fails, too.

While the journal holds records nobody else may sync the store: who asks first is told of a failure, once.

Locks, outermost first: `_appending`, `_retiring`, `_applying`, `_state`; the ring's own is innermost.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diskbuf.errors import (
    JournalFormatError,
    JournalFullError,
    JournalOrderError,
    StoreError,
    StoreIOError,
)
from diskbuf.extents import Extent, ExtentMap
from diskbuf.journalfile import JournalFile, PreallocatedFile
from diskbuf.journalformat import (
    CAPACITY_BYTES_MIN,
    RING_OFFSET,
    EncodedEpoch,
    RecordHeader,
    Superblock,
    encode_epoch,
    encode_superblock,
    round_up,
)
from diskbuf.journalring import Ring
from diskbuf.recovery import (
    Progress,
    Reader,
    Recovered,
    Recovery,
    check_store,
    never,
    read_superblock,
)
from diskbuf.store import Store, apply_extents, losses_of

RETIRE_AFTER_S = 5.0
"""How long a record waits at most to be retired: what a recovery repeats is then a few seconds of writes."""


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """A snapshot: bytes of the ring, records in it, and the epochs that are durable but not yet applied."""

    capacity_bytes: int
    used_bytes: int
    records: int
    waiting_epochs: tuple[int, ...]
    committed_epochs: int
    retirements: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A durable epoch that isn't, or not wholly, in the store."""

    header: RecordHeader
    extents: tuple[Extent, ...]


class Journal:
    """Thread-safe; every method blocks. `Journal.open` gives one on a file.

    A `StoreError` from any method, of the ring's device or of the store's, leaves nothing half-counted: the
    call can be repeated. An epoch whose call failed may still be found by a recovery, if the process or the
    machine is lost before the journal's next step.
    """

    # What a journal is made of, so that the proof can show that it notices when either is broken.
    recovery = Recovery
    ring_on = Ring

    def __init__(
        self,
        file: JournalFile,
        store: Store,
        *,
        capacity_bytes: int | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """Recover what is in `file`, which is then this journal's, into the store; grow it if asked."""
        self.recovery.settle(file)
        superblock = read_superblock(file)
        check_store(superblock, file.name, store)
        self._file = file
        self._store = store
        recovery = self.recovery(file, superblock, store)
        self.recovered: Recovered = recovery.run(on_progress)
        self._ring = self.ring_on(file, superblock, recovery.reader.head, recovery.reader.sequence)
        self._ring.restart()
        if capacity_bytes is not None and capacity_bytes > self._ring.capacity_bytes:
            self._ring.grow(capacity_bytes)
        self._appending = threading.Lock()
        self._retiring = threading.Lock()
        self._applying = threading.Lock()
        self._state = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._applied: deque[RecordHeader] = deque()
        self._committed_epochs = self._retirements = 0
        self._passed_through = True  # others may have written to the store since the last record
        self._lost: StoreError | None = None  # what others wrote was lost
        self._applied_in_doubt = False  # a store sync failed: what was applied may not be there
        self.losses_mended = losses_of(store)  # what the store lost before so many was written again
        self._wake = threading.Event()
        self._closing = False
        self._retirer: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        store: Store,
        *,
        capacity_bytes: int,
        on_progress: Progress | None = None,
    ) -> Journal:
        """Open the journal at `path`, and recover into the store what is in it; create it if it is missing.

        `capacity_bytes` is what the ring holds at least, so at least about twice the largest usual epoch;
        `on_progress(done_bytes, total_bytes)` is called during a recovery. Raises a `JournalError` before
        anything was changed, or a `StoreError` if the recovery fails, which can be repeated.
        """
        path = Path(path)
        capacity_bytes = max(round_up(capacity_bytes), CAPACITY_BYTES_MIN)
        if PreallocatedFile.is_at(path):
            file = PreallocatedFile.open(path)
        else:
            superblock = new_superblock(store, capacity_bytes)
            file = PreallocatedFile.create(path, format_head(superblock), superblock.file_bytes)
        try:
            journal = cls(file, store, capacity_bytes=capacity_bytes, on_progress=on_progress)
        except BaseException:
            file.close()
            raise
        journal._retirer = threading.Thread(
            target=journal._retire_in_time, name="diskbuf-journal", daemon=True
        )
        journal._retirer.start()
        return journal

    def close(self) -> None:
        """Let go of the file. What isn't retired stays in it; `quiesce` before leaves nothing to recover."""
        self._closing = True
        self._wake.set()
        if self._retirer is not None:
            self._retirer.join()
        self._file.close()

    def statistics(self) -> JournalStatistics:
        with self._state:
            return JournalStatistics(
                capacity_bytes=self._ring.capacity_bytes,
                used_bytes=self._ring.used_bytes,
                records=len(self._applied) + len(self._waiting),
                waiting_epochs=tuple(waiting.header.epoch for waiting in self._waiting),
                committed_epochs=self._committed_epochs,
                retirements=self._retirements,
            )

    # --- epochs -------------------------------------------------------------------------------------

    def commit(self, epoch: int, extents: Sequence[Extent], stopped: Callable[[], bool]) -> bool:
        """Make an epoch durable, then write it and all that were logged before to the store.

        Asks `stopped` once, before anything happens; False means that it said so. A commit that raised is
        repeated with the same extents: what is durable already isn't written to the ring again.
        """
        with self._appending:
            logged = self._is_logged(epoch, extents)
            if not logged and stopped():
                return False
            self._append([] if logged else [encode_epoch(epoch, extents)], [extents], may_apply=True)
        self.apply(epoch)
        return True

    def log(self, epoch: int, extents: Sequence[Extent]) -> None:
        """Make an epoch durable, to be applied later; `extents` and their payloads are kept until then.

        Raises `JournalFullError` if epochs that wait to be applied leave no room; then nothing has happened.
        """
        self.log_all([(epoch, extents)])

    def log_all(self, epochs: Sequence[tuple[int, Sequence[Extent]]]) -> None:
        """As `log`, for several ascending epochs at the price of one sync: all of them, or none."""
        with self._appending:
            wanted = [(epoch, extents) for epoch, extents in epochs if not self._is_logged(epoch, extents)]
            encoded = [encode_epoch(epoch, extents) for epoch, extents in wanted]
            self._append(encoded, [extents for _, extents in wanted], may_apply=False)

    def apply(self, epoch: int) -> None:
        """Write all logged epochs up to this one to the store, in order. Repeating it is right."""
        with self._applying:
            while self._waiting and self._waiting[0].header.epoch <= epoch:
                waiting = self._waiting[0]
                apply_extents(self._store, waiting.extents, never)
                with self._state:
                    self._waiting.popleft()
                    self._applied.append(waiting.header)
                    self._committed_epochs += 1
        if self._ring.used_bytes * 2 > self._ring.capacity_bytes:
            self._wake.set()

    def retire(self) -> None:
        """Sync the store and give up the space of what was applied before. Beside commits, if need be."""
        with self._retiring:
            with self._state:
                if not self._applied:
                    return
                last = self._applied[-1]
            self._sync_applied()
            self._ring.retire(last.end, last.sequence + 1)
            with self._state:
                while self._applied and self._applied[0].sequence <= last.sequence:
                    self._applied.popleft()
                self._retirements += 1

    def mend(self) -> None:
        """Write again what a store has lost of the epochs that were applied, before anybody reads older bytes
        in their place. It isn't durable by that, and the next sync is still told of the loss.

        Raises `StoreError`, `JournalFormatError`.
        """
        with self._retiring:
            losses = losses_of(self._store)
            if losses != self.losses_mended:
                with self._applying:
                    self._apply_again()
                self.losses_mended = losses

    def quiesce(self) -> None:
        """Apply and retire everything, after which others may write to the store until the next epoch.

        Otherwise a recovery would undo what they wrote.
        """
        with self._appending:
            self._ring.settle()
            if self._waiting:
                self.apply(self._waiting[-1].header.epoch)
            self.retire()
            self._passed_through = True

    # --- inside -------------------------------------------------------------------------------------

    def _is_logged(self, epoch: int, extents: Sequence[Extent]) -> bool:
        """Whether an epoch needs no record, because it has one and waits, or because it is empty.

        Raises `JournalOrderError` if it comes out of order.
        """
        if not extents:
            return True
        with self._state:
            waiting = list(self._waiting)
        for entry in waiting:
            if entry.header.epoch == epoch and entry.extents == tuple(extents):
                return True
        if waiting and epoch <= waiting[-1].header.epoch:
            raise JournalOrderError(
                f"epoch {epoch} after {[entry.header.epoch for entry in waiting]}, which wait to be applied;"
                " give each once, in order"
            )
        return False

    def _append(
        self, encoded: list[EncodedEpoch], extents: list[Sequence[Extent]], *, may_apply: bool
    ) -> None:
        """Make epochs durable. Under `_appending`. None at all are epochs without changes, in which the guest
        may have asked for a flush."""
        if self._applied_in_doubt:
            self.retire()
        self._sync_passed_through()
        if not encoded:
            return
        self._make_room(sum(one.record_bytes for one in encoded), may_apply)
        headers = self._ring.append(encoded)
        with self._state:
            self._waiting.extend(
                _Waiting(header, tuple(changes)) for header, changes in zip(headers, extents, strict=True)
            )

    def _make_room(self, length: int, may_apply: bool) -> None:
        while not self._ring.has_room(length):
            with self._state:
                waiting, retirable = list(self._waiting), bool(self._applied)
            if retirable:
                self.retire()
            elif not waiting:
                self._grow(length)
            elif may_apply:
                self.apply(waiting[-1].header.epoch)
            else:
                raise JournalFullError(
                    f"journal {self._file.name}: {length} bytes don't fit in its"
                    f" {self._ring.capacity_bytes} while epochs"
                    f" {[entry.header.epoch for entry in waiting]} wait; apply them, then log again"
                )

    def _grow(self, length: int) -> None:
        """Make an empty ring larger than it must be for one record, so that it isn't the last for long."""
        self._ring.grow(max(2 * self._ring.capacity_bytes, 2 * length))

    def _sync_passed_through(self) -> None:
        """Before the first record after others wrote: a flush that the guest asks for now is answered with
        this epoch, and covers what it wrote before the journal came between."""
        if not self._passed_through:
            return
        if self._lost is None:
            try:
                self._store.sync()
            except StoreError as error:
                self._lost = error
        if self._lost is not None:
            raise StoreIOError(
                f"what was written to store {self._store.uri} before its journal began may be lost:"
                f" {self._lost}; restart, and if anything was written, restore it from the other side"
            ) from self._lost
        self._passed_through = False

    def _sync_applied(self) -> None:
        """Sync the store, or what was applied counts as lost. Under `_retiring`."""
        if self._applied_in_doubt:
            # Nothing is applied meanwhile: it would be overwritten by what is older.
            with self._applying:
                self._apply_again()
                self._store.sync()
            self._applied_in_doubt = False
            return
        try:
            self._store.sync()
        except StoreError:
            self._applied_in_doubt = True
            raise

    def _apply_again(self) -> None:
        """Write what the unretired records made of the store, each byte once: readers see no older epoch.

        Takes memory for as much of the ring as is in use.
        """
        changes = ExtentMap()
        reader = Reader(self._file, self._ring.superblock)
        for header in tuple(self._applied):
            writes = reader.payload(header)
            if writes is None:
                raise JournalFormatError(
                    f"journal {self._file.name}: the record of epoch {header.epoch} was durable and is"
                    " damaged, and its store failed to sync; restore the store from the other side"
                )
            for extent in writes.extents:
                changes.put(extent)
        apply_extents(self._store, changes.extents, never)

    def _retire_in_time(self) -> None:
        """Retire what has been there for long, or is much, so that a commit needn't."""
        while True:
            self._wake.wait(RETIRE_AFTER_S)
            self._wake.clear()
            if self._closing:
                return
            try:
                self.retire()
            except (StoreError, JournalFormatError):
                # Nothing is lost by it, and the next commit tries again first: its caller is told.
                continue


def new_superblock(store: Store, capacity_bytes: int, journal_id: bytes | None = None) -> Superblock:
    """Of an empty journal for a store, with an id of its own; `capacity_bytes` in whole blocks."""
    journal_id = journal_id or os.urandom(16)
    return Superblock(journal_id, 0, store.uri, store.size_bytes, capacity_bytes, tail=0, sequence=1)


def format_head(superblock: Superblock) -> bytes:
    """The first blocks of a new journal."""
    return encode_superblock(superblock).ljust(RING_OFFSET, b"\0")


def recover_journal(
    path: str | os.PathLike[str], store: Store, *, on_progress: Progress | None = None
) -> Recovered:
    """Recover into the store what is in an existing journal, and leave the journal empty.

    Raises `JournalOpenError` if there is none, and what `Journal.open` raises.
    """
    path = Path(path)
    file = PreallocatedFile.open(path)
    try:
        return Journal(file, store, on_progress=on_progress).recovered
    finally:
        file.close()
