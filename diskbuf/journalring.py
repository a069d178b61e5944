"""The records of a journal as a ring on its file: appended, made durable, and given up from the tail.

Invariants:
1. every write to the file is followed by its sync under one lock, so that a sync that fails tells which
   bytes are in doubt: those of that one step;
2. a record's blocks are written again only after a superblock whose tail is beyond it is durable;
3. a superblock is written where the older of the two is, and the newer one is durable by then;
4. a sequence number that may be on the disk is not used for other contents: what a failed step may have left
   is overwritten before the next step, and what a crash may have left has numbers below those used after it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from diskbuf.errors import StoreError
from diskbuf.journalfile import JournalFile
from diskbuf.journalformat import (
    BLOCK_BYTES,
    EncodedEpoch,
    RecordHeader,
    Superblock,
    encode_record,
    encode_superblock,
    ring_spans,
    round_up,
    split_parts,
)

_ZEROS = bytes(BLOCK_BYTES)


class Ring:
    """Thread-safe. A `StoreError` from any method means that the step didn't happen; it can be repeated."""

    def __init__(self, file: JournalFile, superblock: Superblock, head: int, sequence: int) -> None:
        """`head` and `sequence` are where the chain of whole records ends."""
        self.file = file
        self.superblock = superblock
        self.head = head
        self.sequence = sequence
        self._lock = threading.Lock()
        self._superblock_in_doubt = False
        self._records_in_doubt: list[int] = []  # positions of what a failed append may have left

    @property
    def capacity_bytes(self) -> int:
        return self.superblock.capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self.head - self.superblock.tail

    def has_room(self, length: int) -> bool:
        """Whether a record of `length` bytes fits now."""
        return self.used_bytes + length <= self.capacity_bytes

    def append(self, epochs: Sequence[EncodedEpoch]) -> list[RecordHeader]:
        """Write a record for each, for which there must be room, and make them durable with one sync."""
        assert self.has_room(sum(encoded.record_bytes for encoded in epochs))
        with self._lock:
            self._settle()
            position, sequence = self.head, self.sequence
            headers = []
            try:
                for encoded in epochs:
                    header, parts = encode_record(self.superblock.journal_id, sequence, position, encoded)
                    headers.append(header)
                    for offset, length in ring_spans(position, encoded.record_bytes, self.capacity_bytes):
                        span, parts = split_parts(parts, length)
                        self.file.write(offset, span)
                    position, sequence = header.end, sequence + 1
                self._make_durable()
            except StoreError:
                self._records_in_doubt = [header.position for header in headers]
                raise
            self.head, self.sequence = position, sequence
            return headers

    def retire(self, position: int, sequence: int) -> None:
        """Give up what is before `position`, where the record of `sequence` begins or will."""
        with self._lock:
            self._settle()
            self._advance(replace(self.superblock, tail=position, sequence=sequence))

    def restart(self) -> None:
        """Empty the ring after a crash, and leave the sequence numbers of what it may have left behind.

        Beyond the last whole record there may be others, of the same group, that would be whole and in
        sequence again as soon as the gap before them is filled.
        """
        with self._lock:
            sequence = self._sequence_after_crash()
            self._advance(replace(self.superblock, tail=self.head, sequence=sequence))
            self.sequence = sequence

    def grow(self, capacity_bytes: int) -> None:
        """Make the ring, which must be empty, at least this large."""
        assert self.used_bytes == 0, "positions would lie elsewhere in a larger ring"
        with self._lock:
            self._settle()
            grown = replace(self.superblock, capacity_bytes=round_up(capacity_bytes))
            self.file.extend(self.superblock.file_bytes, grown.file_bytes)
            self._advance(grown)

    def settle(self) -> None:
        """Leave nothing in doubt: an epoch whose append failed is not in the journal after this."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        if self._superblock_in_doubt:
            self._advance(self.superblock)
        if self._records_in_doubt:
            for position in self._records_in_doubt:
                ((offset, _),) = ring_spans(position, BLOCK_BYTES, self.capacity_bytes)
                self.file.write(offset, [_ZEROS])
            self.file.sync()
            self._records_in_doubt = []

    def _advance(self, changed: Superblock) -> None:
        """Write a superblock as the next generation. Until that succeeds nothing else may rely on either."""
        written = replace(changed, generation=self.superblock.generation + 1)
        self._superblock_in_doubt = True
        self._write_superblock(written)
        self._superblock_in_doubt = False
        self.superblock = written

    def _write_superblock(self, superblock: Superblock) -> None:
        self.file.write(superblock.slot_offset, [encode_superblock(superblock)])
        self.file.sync()

    def _make_durable(self) -> None:
        self.file.sync()

    def _sequence_after_crash(self) -> int:
        return self.sequence + self.capacity_bytes // BLOCK_BYTES + 1
