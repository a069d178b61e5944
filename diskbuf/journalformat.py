"""The journal's bytes: pure. What is written when is `journalring` and `journal`; what is read, `recovery`.

    block 0, 1   superblocks, written in turn, so that a torn one leaves the other
    block 2 ...  the ring: `capacity_bytes` of records, one after another, across its end if need be

A *position* counts the bytes that ever went into the ring; it lies at `position % capacity_bytes` of it. The
superblock names the *tail*: position and sequence number of the oldest record that counts. The head is not
written down: it is where the chain of whole records with consecutive sequence numbers ends.

Superblock (little-endian; the first 12 and the last 4 bytes stay what they are in every version):

    8 bytes   magic "diskjrnl"
    u32       version
    16 bytes  id of the journal, random
    u64       generation: the valid superblock with the higher one counts
    u64       size of the store in bytes
    u64       capacity of the ring in bytes
    u64       tail: position
    u64       tail: sequence number
    u16       length of the store's URI, and the URI (UTF-8)
    u32       CRC-32 of all before it, at the block's end

Record, from a block's start to a block's end:

    4 bytes   magic "DJR1"
    u32       CRC-32 of the payload
    16 bytes  id of the journal
    u64       sequence number
    u64       epoch
    u64       position of the record
    u64       length of the payload in bytes
    u32       reserved, 0
    u32       CRC-32 of the 60 bytes before it
    ...       the payload: `sealed.encode_writes`

CRC-32 is enough here. The ring's stale bytes can't pass for a header: they would have to carry the right id,
which is random and which no guest can learn, the right position, and a sequence number that is used only
once. That leaves a payload with some sectors missing, of which one in 2^32 goes unnoticed; one record at most
is torn in a crash. Anything stronger costs twice the time and more of a 64 MiB epoch (30 ms with zlib).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from isal.isal_zlib import crc32

from diskbuf.errors import JournalFormatError, JournalOpenError, JournalVersionError
from diskbuf.extents import Bytes, Extent
from diskbuf.sealed import SealedWrites, encode_writes

BLOCK_BYTES = 4096
"""What is torn at worst with a neighbour: a page of the cache, and no smaller than a disk's sector. Records
begin at multiples of it, so that writing one can't damage the one before."""
RING_OFFSET = 2 * BLOCK_BYTES
HEADER_BYTES = 64
CAPACITY_BYTES_MIN = 4 * BLOCK_BYTES

_VERSION = 1
_SUPERBLOCK_MAGIC = b"diskjrnl"
_SUPERBLOCK = struct.Struct("<8sI16sQQQQQH")
_VERSION_FIELD = struct.Struct("<8sI")
_CHECKSUM = struct.Struct("<I")
_URI_BYTES_MAX = BLOCK_BYTES - _SUPERBLOCK.size - _CHECKSUM.size

_RECORD_MAGIC = b"DJR1"
_RECORD = struct.Struct("<4sI16sQQQQI")
_ZEROS = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a journal is, and where it begins. Sizes and the position are bytes, the ring's whole blocks."""

    journal_id: bytes
    generation: int
    store_uri: str
    store_bytes: int
    capacity_bytes: int
    tail: int
    sequence: int

    @property
    def slot_offset(self) -> int:
        """Where in the file this generation goes: not where the one before it is."""
        return self.generation % 2 * BLOCK_BYTES

    @property
    def file_bytes(self) -> int:
        return RING_OFFSET + self.capacity_bytes


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """Of one epoch's record; positions and lengths in bytes."""

    sequence: int
    epoch: int
    position: int
    payload_bytes: int
    payload_checksum: int

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.position + round_up(HEADER_BYTES + self.payload_bytes)


@dataclass(frozen=True, slots=True)
class EncodedEpoch:
    """One epoch's payload, its length in bytes and checksum; its place in the ring is still open."""

    epoch: int
    payload: Sequence[Bytes]
    payload_bytes: int
    payload_checksum: int

    @property
    def record_bytes(self) -> int:
        """How much of the ring it takes."""
        return round_up(HEADER_BYTES + self.payload_bytes)


def round_up(length: int) -> int:
    """`length` in whole blocks, in bytes."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def encode_superblock(superblock: Superblock) -> bytes:
    """One block. Raises `JournalOpenError` if the store's URI is too long for it."""
    uri = superblock.store_uri.encode()
    if len(uri) > _URI_BYTES_MAX:
        raise JournalOpenError(
            f"the store's URI has {len(uri)} bytes, a journal takes {_URI_BYTES_MAX}; use a shorter path"
        )
    fields = _SUPERBLOCK.pack(
        _SUPERBLOCK_MAGIC,
        _VERSION,
        superblock.journal_id,
        superblock.generation,
        superblock.store_bytes,
        superblock.capacity_bytes,
        superblock.tail,
        superblock.sequence,
        len(uri),
    )
    block = (fields + uri).ljust(BLOCK_BYTES - _CHECKSUM.size, b"\0")
    return block + _CHECKSUM.pack(crc32(block))


def decode_superblocks_untrusted(blocks: Bytes, name: str) -> Superblock:
    """The one that counts of the journal's first two blocks; `name` is the journal's, for messages.

    Raises `JournalVersionError` if a later version wrote it, `JournalFormatError` if neither block is whole.
    """
    whole = []
    newest_version = _VERSION
    for start in range(0, len(blocks) - BLOCK_BYTES + 1, BLOCK_BYTES):
        block = memoryview(blocks)[start : start + BLOCK_BYTES]
        magic, version = _VERSION_FIELD.unpack_from(block)
        body = block[: -_CHECKSUM.size]
        if magic != _SUPERBLOCK_MAGIC or _CHECKSUM.pack(crc32(body)) != block[-_CHECKSUM.size :]:
            continue
        newest_version = max(newest_version, version)
        if version == _VERSION:
            whole.append(_decode_superblock(block))
    if newest_version > _VERSION:
        raise JournalVersionError(
            f"journal {name} has version {newest_version}, this program knows {_VERSION};"
            " recover it with the release that wrote it"
        )
    if not whole:
        raise JournalFormatError(
            f"journal {name} is not a journal: neither of its first two blocks is a whole superblock;"
            " name another file, or remove this one"
        )
    return max(whole, key=lambda superblock: superblock.generation)


def _decode_superblock(block: memoryview) -> Superblock:
    _, _, journal_id, generation, store_bytes, capacity_bytes, tail, sequence, uri_bytes = (
        _SUPERBLOCK.unpack_from(block)
    )
    uri = bytes(block[_SUPERBLOCK.size : _SUPERBLOCK.size + uri_bytes]).decode(errors="replace")
    return Superblock(journal_id, generation, uri, store_bytes, capacity_bytes, tail, sequence)


def encode_epoch(epoch: int, extents: Sequence[Extent]) -> EncodedEpoch:
    """An epoch's writes (ascending extents without overlap) as a record's payload: views, not copies."""
    payload = encode_writes(SealedWrites(tuple(extents)))
    checksum = 0
    for part in payload:
        checksum = crc32(part, checksum)
    return EncodedEpoch(epoch, payload, sum(map(len, payload)), checksum)


def encode_record(
    journal_id: bytes, sequence: int, position: int, encoded: EncodedEpoch
) -> tuple[RecordHeader, list[Bytes]]:
    """The record's header, and all its bytes as parts to write one after another."""
    header = RecordHeader(sequence, encoded.epoch, position, encoded.payload_bytes, encoded.payload_checksum)
    fields = _RECORD.pack(
        _RECORD_MAGIC,
        encoded.payload_checksum,
        journal_id,
        sequence,
        encoded.epoch,
        position,
        encoded.payload_bytes,
        0,
    )
    head = fields + _CHECKSUM.pack(crc32(fields))
    padding = encoded.record_bytes - HEADER_BYTES - encoded.payload_bytes
    return header, [head, *encoded.payload, memoryview(_ZEROS)[:padding]]


def decode_record_header_untrusted(data: Bytes, journal_id: bytes) -> RecordHeader | None:
    """A header of this journal, or None: then there is none, or it was torn, or an older journal's."""
    magic, payload_checksum, found_id, sequence, epoch, position, payload_bytes, _ = _RECORD.unpack_from(data)
    body = memoryview(data)[: _RECORD.size]
    if (
        magic != _RECORD_MAGIC
        or found_id != journal_id
        or _CHECKSUM.unpack_from(data, _RECORD.size) != (crc32(body),)
    ):
        return None
    return RecordHeader(sequence, epoch, position, payload_bytes, payload_checksum)


def ring_spans(position: int, length: int, capacity_bytes: int) -> list[tuple[int, int]]:
    """Where `length` bytes from `position` on lie in the file: (offset, length), twice across the end."""
    assert 0 < length <= capacity_bytes, (length, capacity_bytes)
    start = position % capacity_bytes
    first = min(length, capacity_bytes - start)
    spans = [(RING_OFFSET + start, first)]
    if first < length:
        spans.append((RING_OFFSET, length - first))
    return spans


def split_parts(parts: Sequence[Bytes], count: int) -> tuple[list[Bytes], list[Bytes]]:
    """The first `count` bytes of the parts, and the rest, as parts again."""
    before: list[Bytes] = []
    for index, part in enumerate(parts):
        if count < len(part):
            view = memoryview(part)
            return [*before, view[:count]] if count else before, [view[count:], *parts[index + 1 :]]
        before.append(part)
        count -= len(part)
    return before, []
