"""Two files whose every write and sync is recorded, and what a crash may leave of them.

The fault model. A write that was not synced is there, is not there, or is there in some of its sectors (of
512 bytes); in the journal, which may lie on anything, also up to any byte. Unsynced writes get there in any
order. A sync that fails says nothing about what was written before it, and no later sync does (Linux marks
the pages clean): they stay uncertain until they are written again. A killed process loses nothing but what
its last write had not yet handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from random import Random

from diskbuf.errors import StoreIOError
from diskbuf.extents import Bytes

SECTOR_BYTES = 512
JOURNAL = "journal"
STORE = "store"

Ranges = list[tuple[int, int]]
"""What is there of a write: ascending (start, end) within its data."""


class Killed(BaseException):
    """The process is gone: nobody catches this but the workload."""


class Operation(Enum):
    WRITE = "write"
    SYNC = "sync"
    FAILED_SYNC = "failed sync"
    FOUND = "found"  # all caches dropped: `data` is the whole file as it is on the disk


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing done to a file. A sync covers what was written before the place in the log at which it began:
    its `offset`."""

    file: str
    operation: Operation
    offset: int = 0
    data: bytes = b""


def nothing() -> None:
    pass


class Disk:
    """`images` is what a process sees; `log` is all that was done, in order."""

    def __init__(self, journal: bytes, store: bytes, random: Random) -> None:
        self.base = {JOURNAL: journal, STORE: store}
        self.images = {JOURNAL: bytearray(journal), STORE: bytearray(store)}
        self.log: list[Entry] = []
        self.on_journal_write: Callable[[int, bytes], None] = lambda offset, data: None
        self.failing_syncs: dict[str, int] = {}  # how many syncs of a file succeed before one fails
        self.failing_writes: set[str] = set()
        self.beside: Callable[[], None] = nothing  # what another thread does amid the store's next operation
        self.kill_in: int | None = None  # operations until the process is killed
        self.kill_in_syncs: int | None = None  # syncs of the journal until it is killed before one
        self._random = random

    def write(self, file: str, offset: int, data: bytes) -> None:
        self._let_others(file)
        killed = self._is_killed()
        if killed or file in self.failing_writes:
            data = data[: self._random.randrange(len(data) + 1)]
        self.images[file][offset : offset + len(data)] = data
        self.log.append(Entry(file, Operation.WRITE, offset, data))
        if file == JOURNAL:
            self.on_journal_write(offset, data)
        if killed:
            raise Killed
        if file in self.failing_writes:
            self.failing_writes.remove(file)
            raise StoreIOError(f"{file}: write failed by design")

    def sync(self, file: str) -> None:
        if self._is_killed() or (file == JOURNAL and self._is_killed_before_sync()):
            raise Killed
        left = self.failing_syncs.pop(file, None)
        if left:
            self.failing_syncs[file] = left - 1
        if left == 0:
            self.log.append(Entry(file, Operation.FAILED_SYNC))
            raise StoreIOError(f"{file}: sync failed by design")
        began = len(self.log)
        self._let_others(file)
        self.log.append(Entry(file, Operation.SYNC, began))

    def forget_cached(self, file: str) -> None:
        """From now on what is on the disk is seen: of writes whose sync failed, anything."""
        history = History(self.base)
        for entry in self.log:
            history.add(entry)
        if not history.uncertain(file):
            return
        assert not history.unsynced(file), "a cache keeps what it has yet to write: sync first"
        image = history.image(file, lambda _, entry: torn(entry, self._random))
        self.images[file][:] = image
        self.log.append(Entry(file, Operation.FOUND, 0, image))

    def _let_others(self, file: str) -> None:
        if file == STORE:
            happens, self.beside = self.beside, nothing
            happens()

    def _is_killed(self) -> bool:
        if self.kill_in is None:
            return False
        self.kill_in -= 1
        return self.kill_in < 0

    def _is_killed_before_sync(self) -> bool:
        if self.kill_in_syncs is None:
            return False
        self.kill_in_syncs -= 1
        return self.kill_in_syncs < 0


class RecordedJournal:
    """A `JournalFile` on a disk."""

    name = "journal"

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        return len(self._disk.images[JOURNAL])

    def read(self, offset: int, target: memoryview) -> None:
        target[:] = self._disk.images[JOURNAL][offset : offset + len(target)]

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self._disk.write(JOURNAL, offset, b"".join(pieces))

    def sync(self) -> None:
        self._disk.sync(JOURNAL)

    def forget_cached(self) -> None:
        self._disk.forget_cached(JOURNAL)

    def extend(self, start: int, end: int) -> None:
        self.write(start, [bytes(end - start)])
        self.sync()

    def close(self) -> None:
        pass


class RecordedStore:
    """A `Store` on a disk."""

    uri = "memory:recorded"
    read_only = False

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def size_bytes(self) -> int:
        return len(self._disk.images[STORE])

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self._disk.write(STORE, offset, b"".join(pieces))

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._disk.write(STORE, offset, bytes(length))

    def sync(self) -> None:
        self._disk.sync(STORE)


class History:
    """A prefix of a log: what is certainly on the disk, and what may be.

    Per file, `_changes` begins at the first uncertain write; what comes after is kept in order even where it
    is certain, because it covers what is uncertain.
    """

    def __init__(self, base: dict[str, bytes]) -> None:
        self._certain = {file: bytearray(image) for file, image in base.items()}
        self._changes: dict[str, list[tuple[int, Entry, bool]]] = {file: [] for file in base}
        self._unsynced: dict[str, set[int]] = {file: set() for file in base}
        self._count = 0

    def add(self, entry: Entry) -> None:
        """One more entry of the log."""
        file, index = entry.file, self._count
        self._count += 1
        if entry.operation is Operation.WRITE:
            if entry.data:
                self._changes[file].append((index, entry, False))
                self._unsynced[file].add(index)
        elif entry.operation is Operation.FAILED_SYNC:
            self._unsynced[file] = set()
        elif entry.operation is Operation.FOUND:
            self._certain[file] = bytearray(entry.data)
            self._changes[file] = []
            self._unsynced[file] = set()
        else:
            self._sync(file, entry.offset)

    def uncertain(self, file: str) -> list[tuple[int, Entry]]:
        """The writes that may be there or not, with their places in the log."""
        return [(index, entry) for index, entry, certain in self._changes[file] if not certain]

    def unsynced(self, file: str) -> bool:
        """Whether there are writes that no sync was asked for."""
        return bool(self._unsynced[file])

    def image(self, file: str, choose: Callable[[int, Entry], Ranges]) -> bytes:
        """The file after a crash that left of each uncertain write what `choose` says."""
        image = self._certain[file].copy()
        for index, entry, certain in self._changes[file]:
            put(image, entry, whole(entry) if certain else choose(index, entry))
        return bytes(image)

    def _sync(self, file: str, began: int) -> None:
        unsynced = {index for index in self._unsynced[file] if index < began}
        self._unsynced[file] -= unsynced
        changes = [
            (index, entry, certain or index in unsynced) for index, entry, certain in self._changes[file]
        ]
        while changes and changes[0][2]:
            _, entry, _ = changes.pop(0)
            put(self._certain[file], entry, whole(entry))
        self._changes[file] = changes


def put(image: bytearray, entry: Entry, ranges: Ranges) -> None:
    """Do the given parts of a write to an image; beyond its end it grows, and a gap is zeros."""
    for start, end in ranges:
        if len(image) < entry.offset + start:
            image.extend(bytes(entry.offset + start - len(image)))
        image[entry.offset + start : entry.offset + end] = entry.data[start:end]


def whole(entry: Entry) -> Ranges:
    return [(0, len(entry.data))]


def torn(entry: Entry, random: Random) -> Ranges:
    """Some of a write's sectors: a leading part of them, or any; in the journal sometimes up to any byte."""
    length = len(entry.data)
    if entry.file == JOURNAL and random.random() < 0.3:
        return [(0, random.randrange(length + 1))]
    first = SECTOR_BYTES - entry.offset % SECTOR_BYTES
    cuts = [0, *range(first, length, SECTOR_BYTES), length]
    if random.random() < 0.4:
        return [(0, random.choice(cuts))]
    return [span for span in pairwise(cuts) if random.random() < 0.5]


def choices(uncertain: list[tuple[int, Entry]], random: Random) -> Iterator[dict[int, Ranges]]:
    """What a crash may leave, by the writes' places in the log: all and nothing, each one alone and each one
    missing, each one torn among all and among none, and mixtures of them all."""
    everything = {index: whole(entry) for index, entry in uncertain}
    nothing: dict[int, Ranges] = {index: [] for index, _ in uncertain}
    yield everything
    yield nothing
    for index, entry in uncertain:
        yield {**everything, index: []}
        yield {**nothing, index: whole(entry)}
        yield {**everything, index: torn(entry, random)}
        yield {**nothing, index: torn(entry, random)}
    for _ in range(2 if len(uncertain) > 1 else 0):
        yield {index: random.choice([whole(entry), [], torn(entry, random)]) for index, entry in uncertain}
