"""The writes of a sealed epoch, and the form in which they travel to the secondary.

Encoded, little-endian:

    4 bytes   magic "DSW1" (the digit is the version)
    u32       number of extents
    u64       number of data bytes
    20 bytes  per extent: u64 offset, u64 length, u32 kind; ascending and without overlap
    ...       the payloads of the DATA extents, one after another
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from diskbuf.errors import SealedWritesError
from diskbuf.extents import Bytes, Extent, Kind

_MAGIC = b"DSW1"
_HEADER = struct.Struct("<4sIQ")
_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("kind", "<u4")])


@dataclass(frozen=True, slots=True)
class SealedWrites:
    """What an epoch changed: ascending extents without overlap. Applying it twice changes nothing more."""

    extents: tuple[Extent, ...]

    @property
    def data_bytes(self) -> int:
        return sum(len(extent.data) for extent in self.extents)


def encode_writes(writes: SealedWrites) -> list[bytes | memoryview]:
    """The encoded form as parts to send one after another; payloads are views, not copies."""
    table = np.empty(len(writes.extents), _ENTRY)
    table["offset"] = [extent.offset for extent in writes.extents]
    table["length"] = [extent.length for extent in writes.extents]
    table["kind"] = [extent.kind for extent in writes.extents]
    head = _HEADER.pack(_MAGIC, len(table), writes.data_bytes) + table.tobytes()
    return [head, *(extent.data for extent in writes.extents if extent.kind is Kind.DATA)]


def decode_writes_untrusted(data: Bytes, size_bytes: int) -> SealedWrites:
    """The inverse of `encode_writes` for a disk of `size_bytes`; payloads are views of `data`.

    `data` comes from a peer. Whatever it holds, this raises nothing but `SealedWritesError`, takes memory in
    proportion to its length only, and returns no extent outside the disk.
    """
    view = memoryview(data).cast("B")
    if len(view) < _HEADER.size:
        raise SealedWritesError(
            f"sealed writes: {len(view)} bytes are fewer than the header's {_HEADER.size}; drop the epoch"
        )
    magic, count, data_bytes = _HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise SealedWritesError(f"sealed writes: magic is {magic!r}, not {_MAGIC!r}; run the same version")
    expected_bytes = _HEADER.size + count * _ENTRY.itemsize + data_bytes
    if len(view) != expected_bytes:
        raise SealedWritesError(
            f"sealed writes: length is {len(view)} bytes, but {count} extents with {data_bytes} data bytes"
            f" make {expected_bytes}; drop the epoch"
        )
    table = np.frombuffer(view, _ENTRY, count, _HEADER.size)
    _check_table(table, data_bytes, size_bytes)
    extents = []
    position = _HEADER.size + table.nbytes
    for offset, length, kind in table.tolist():
        if kind == Kind.DATA:
            extents.append(Extent(offset, length, Kind.DATA, view[position : position + length]))
            position += length
        else:
            extents.append(Extent(offset, length, Kind(kind)))
    return SealedWrites(tuple(extents))


def _check_table(table: np.ndarray, data_bytes: int, size_bytes: int) -> None:
    """Raise unless every extent lies within the disk, in order, and the payloads add up.

    Offsets and lengths are bounded by the disk's size before they are added, so no sum can wrap; the sum
    of all lengths can't either, once the extents are known not to overlap.
    """
    offset, length = table["offset"], table["length"]
    outside = (length == 0) | (length > size_bytes) | (offset > size_bytes - np.minimum(length, size_bytes))
    _refuse(table, outside, f"is empty or outside the disk of {size_bytes} bytes")
    _refuse(table, table["kind"] > max(Kind), "is of an unknown kind")
    overlapping = np.zeros(len(table), bool)
    overlapping[1:] = offset[1:] < offset[:-1] + length[:-1]
    _refuse(table, overlapping, "overlaps or precedes the one before it")
    total = int(length[table["kind"] == Kind.DATA].sum())
    if total != data_bytes:
        raise SealedWritesError(
            f"sealed writes: data extents add up to {total} bytes, not the header's {data_bytes};"
            " drop the epoch"
        )


def _refuse(table: np.ndarray, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        index = int(wrong.argmax())
        offset, length, kind = table[index].item()
        raise SealedWritesError(
            f"sealed writes: extent {index} (offset {offset}, length {length}, kind {kind}) {what};"
            " drop the epoch"
        )
