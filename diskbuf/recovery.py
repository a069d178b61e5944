"""What a journal still has to say: read, checked, and done again.

A crash leaves the ring with whole records from the tail on, and then one that is missing or torn. All whole
ones are applied in order, whether or not they were before: it ends the same. A crash in the middle of it is
recovered in the same way, because the tail moves only after the store was synced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isal.isal_zlib import crc32

from diskbuf.errors import JournalFormatError, JournalMismatchError, SealedWritesError
from diskbuf.journalfile import JournalFile, PreallocatedFile
from diskbuf.journalformat import (
    BLOCK_BYTES,
    CAPACITY_BYTES_MIN,
    HEADER_BYTES,
    RING_OFFSET,
    RecordHeader,
    Superblock,
    decode_record_header_untrusted,
    decode_superblocks_untrusted,
    ring_spans,
)
from diskbuf.sealed import SealedWrites, decode_writes_untrusted
from diskbuf.store import Store, apply_extents

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do, in the thread that recovers."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did: records applied, their bytes in the ring, and the newest epoch (None: none)."""

    records: int
    bytes: int
    epoch: int | None


@dataclass(frozen=True, slots=True)
class RecordDescription:
    """A whole record: lengths and positions in bytes; `data_bytes` is what it writes beside zeros."""

    sequence: int
    epoch: int
    position: int
    record_bytes: int
    extents: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class JournalDescription:
    """A journal at one moment: what its superblock says, and the whole records that count, oldest first.

    `torn`: a record was begun behind the last one and is not whole. A record whose first block is missing
    leaves no sign. While `in_use`, that is what an epoch on its way looks like.
    """

    store_uri: str
    store_bytes: int
    journal_id: str
    capacity_bytes: int
    tail: int
    head: int
    records: tuple[RecordDescription, ...]
    torn: bool
    in_use: bool

    @property
    def used_bytes(self) -> int:
        return self.head - self.tail


class Reader:
    """The whole records from a journal's tail on; then `head`, `sequence` and `torn` say how it ended."""

    def __init__(self, file: JournalFile, superblock: Superblock) -> None:
        self._file = file
        self._superblock = superblock
        self.head = superblock.tail
        self.sequence = superblock.sequence
        self.torn = False

    def pending_bytes(self) -> int:
        """How much lies ahead, going by the headers alone: at most one record of it is not whole, unless
        several were being written at once."""
        position, sequence = self.head, self.sequence
        while (header := self._header(position, sequence)) is not None:
            position, sequence = header.end, sequence + 1
        return position - self.head

    def records(self) -> Iterator[tuple[RecordHeader, SealedWrites]]:
        """Each whole record in turn, in memory one at a time.

        Raises `JournalFormatError` for a record that is whole but makes no sense, which no crash explains.
        """
        while (header := self._header(self.head, self.sequence)) is not None:
            writes = self.payload(header)
            if writes is None:
                self.torn = True
                return
            self.head, self.sequence = header.end, self.sequence + 1
            yield header, writes

    def payload(self, header: RecordHeader) -> SealedWrites | None:
        """What a record holds, or None if it isn't whole."""
        payload = self._read(header.position + HEADER_BYTES, header.payload_bytes)
        if crc32(payload) != header.payload_checksum:
            return None
        try:
            return decode_writes_untrusted(payload, self._superblock.store_bytes)
        except SealedWritesError as error:
            raise JournalFormatError(
                f"journal {self._file.name}: the record of epoch {header.epoch} is whole, but {error}"
            ) from error

    def _header(self, position: int, sequence: int) -> RecordHeader | None:
        """The header of the record that must be at a position, if it is there."""
        if position - self._superblock.tail >= self._superblock.capacity_bytes:
            return None
        data = self._read(position, HEADER_BYTES)
        header = decode_record_header_untrusted(data, self._superblock.journal_id)
        if header is None or (header.position, header.sequence) != (position, sequence):
            return None
        fits = header.end - self._superblock.tail <= self._superblock.capacity_bytes
        return header if fits else None

    def _read(self, position: int, length: int) -> bytearray:
        data = bytearray(length)
        done = 0
        for offset, span in ring_spans(position, length, self._superblock.capacity_bytes):
            self._file.read(offset, memoryview(data)[done : done + span])
            done += span
        return data


def read_superblock(file: JournalFile) -> Superblock:
    """The superblock that counts. `JournalFormatError` if the file is no journal, or not all of one."""
    if file.size_bytes < RING_OFFSET:
        raise JournalFormatError(
            f"journal {file.name} is not a journal: it has {file.size_bytes} bytes, a journal {RING_OFFSET}"
            " and more; name another file, or remove this one"
        )
    blocks = bytearray(RING_OFFSET)
    file.read(0, memoryview(blocks))
    superblock = decode_superblocks_untrusted(blocks, file.name)
    if file.size_bytes < superblock.file_bytes:
        raise JournalFormatError(
            f"journal {file.name} has {file.size_bytes} bytes, but {superblock.file_bytes} by its superblock:"
            " it was truncated; restore it, or remove it and what only it knows"
        )
    capacity = superblock.capacity_bytes
    if capacity < CAPACITY_BYTES_MIN or capacity % BLOCK_BYTES or superblock.tail % BLOCK_BYTES:
        raise JournalFormatError(
            f"journal {file.name}: capacity {capacity} and tail {superblock.tail} must be whole blocks of"
            f" {BLOCK_BYTES} bytes; it is damaged beyond what a crash does"
        )
    return superblock


def check_store(superblock: Superblock, name: str, store: Store) -> None:
    """Raise `JournalMismatchError` unless the journal `name` was made for this store."""
    if superblock.store_uri != store.uri:
        raise JournalMismatchError(
            f"journal {name} belongs to store {superblock.store_uri}, not to {store.uri};"
            " give each its own journal, or recover this one into the store it belongs to"
        )
    if superblock.store_bytes != store.size_bytes:
        raise JournalMismatchError(
            f"journal {name} was made for {superblock.store_bytes} bytes of store {store.uri}, which has"
            f" {store.size_bytes}; give it back its size, or remove the journal and what only it knows"
        )


def never() -> bool:
    """What stops an epoch that is durable: nothing."""
    return False


class Recovery:
    """One recovery: `settle`, then read the superblock, then `run`. The tail is the caller's to move."""

    def __init__(self, file: JournalFile, superblock: Superblock, store: Store) -> None:
        self.file = file
        self.store = store
        self.reader = self.open_reader(superblock)

    def open_reader(self, superblock: Superblock) -> Reader:
        return Reader(self.file, superblock)

    def run(self, on_progress: Progress | None) -> Recovered:
        """Apply all whole records in order and sync the store."""
        reader = self.reader
        tail = reader.head
        total_bytes = reader.pending_bytes()
        count, epoch = 0, None
        for header, writes in reader.records():
            apply_extents(self.store, writes.extents, never)
            count, epoch = count + 1, header.epoch
            if on_progress is not None:
                on_progress(reader.head - tail, total_bytes)
        if count:
            self.sync_store()
        return Recovered(count, reader.head - tail, epoch)

    @staticmethod
    def settle(file: JournalFile) -> None:
        """What is read as whole must not be lost after some of it has got into the store.

        The blocks of a killed process may be in the cache alone; those whose sync failed, too, and there no
        further sync helps. A superblock is no exception: the next one is written over the other.
        """
        file.sync()
        file.forget_cached()

    def sync_store(self) -> None:
        self.store.sync()


def describe_journal(path: str | os.PathLike[str]) -> JournalDescription:
    """Look at a journal without changing it, even while it is in use; see `JournalDescription`.

    Raises `JournalOpenError` or `JournalFormatError`.
    """
    file = PreallocatedFile.open_to_read(Path(path))
    try:
        in_use = file.in_use
        superblock = read_superblock(file)
        reader = Reader(file, superblock)
        records = tuple(
            RecordDescription(
                header.sequence,
                header.epoch,
                header.position,
                header.end - header.position,
                len(writes.extents),
                writes.data_bytes,
            )
            for header, writes in reader.records()
        )
        return JournalDescription(
            store_uri=superblock.store_uri,
            store_bytes=superblock.store_bytes,
            journal_id=superblock.journal_id.hex(),
            capacity_bytes=superblock.capacity_bytes,
            tail=superblock.tail,
            head=reader.head,
            records=records,
            torn=reader.torn,
            in_use=in_use,
        )
    finally:
        file.close()
