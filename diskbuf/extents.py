"""An ordered set of changes to a disk, exact to the byte.

Invariants of `ExtentMap`:
1. extents are in ascending order and don't overlap;
2. `_offsets[i] == _extents[i].offset`;
3. `held_bytes` is the sum of `held_bytes(extent)` over all extents;
4. adjacent ZERO extents are one, and so are adjacent HOLE extents;
5. a payload of its own is at most twice the extent, however often that was cut: see `_remainder`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

Bytes = bytes | bytearray | memoryview

_NO_DATA = memoryview(b"")


def rest_of(pieces: Sequence[Bytes], count: int) -> list[Bytes]:
    """What is left of `pieces` when `count` bytes of them are written or sent."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [memoryview(piece)[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []


EXTENT_BYTES_MIN = 512
"""What the smallest extent counts for: about the size of its Python objects. Without it a client that trims
every other sector would fill the memory while holding, on paper, nothing."""


class Kind(IntEnum):
    """What an extent holds."""

    DATA = 0
    ZERO = 1  # reads as zeros and stays allocated (NBD_CMD_WRITE_ZEROES with NO_HOLE)
    HOLE = 2  # reads as zeros and may be deallocated (NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES)


_DATA = Kind.DATA  # a name of the module is found in a third of the time that an enumeration's takes


class Extent(NamedTuple):
    """`length` bytes of the disk from `offset`; `data` is empty unless `kind` is DATA.

    A named tuple, since it is made once a write, in a third of a frozen dataclass's time.
    """

    offset: int
    length: int
    kind: Kind
    data: memoryview = _NO_DATA

    @classmethod
    def of_data(cls, offset: int, data: Bytes) -> Extent:
        """The payload isn't copied: the caller gives it away and never changes it again."""
        view = memoryview(data)
        return cls(offset, view.nbytes, Kind.DATA, view)

    @property
    def end(self) -> int:
        return self.offset + self.length

    def clip(self, start: int, end: int) -> Extent:
        """The part within `start` to `end`, which must overlap the extent; shares the payload."""
        start = max(start, self.offset)
        end = min(end, self.offset + self.length)
        if end - start == self.length:
            return self
        data = self.data[start - self.offset : end - self.offset] if self.kind is Kind.DATA else _NO_DATA
        return Extent(start, end - start, self.kind, data)


def held_bytes(extent: Extent) -> int:
    """What holding the extent counts for against a limit, in bytes."""
    return max(len(extent.data), EXTENT_BYTES_MIN)


def _remainder(extent: Extent, start: int, end: int) -> Extent:
    """What an overwrite leaves of an extent.

    A view keeps its whole payload alive, so that less than half of one is worth a copy: what is really held
    is then at most twice what is counted, and no byte is copied more than log2(payload) times. (Short ones
    that came together share a slab, which is accounted for by the arena, and are copied at once.)
    """
    part = extent.clip(start, end)
    if part.kind is Kind.DATA and part.length * 2 < memoryview(part.data.obj).nbytes:
        return Extent(part.offset, part.length, Kind.DATA, memoryview(bytes(part.data)))
    return part


class ExtentMap:
    """The latest change of each byte that was changed at all."""

    __slots__ = ("_extents", "_offsets", "held_bytes")

    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._extents: list[Extent] = []
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._extents)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """All extents in ascending order; a snapshot that later changes leave alone."""
        return tuple(self._extents)

    def put(self, extent: Extent) -> None:
        """Change `extent`'s bytes; whatever was there before gives way."""
        self.put_all((extent,))

    def put_all(self, changes: Iterable[Extent]) -> None:
        """As `put`, of one after another; in a loop of its own, for it is run once a write."""
        offsets, extents = self._offsets, self._extents
        for change in changes:
            start, length, kind, _ = change
            at = bisect_left(offsets, start)
            if (
                kind is not _DATA
                or (at < len(offsets) and offsets[at] < start + length)
                or (at > 0 and extents[at - 1][0] + extents[at - 1][1] > start)
            ):
                self._put_over(change)
            else:  # nearly every write of a guest
                extents.insert(at, change)
                offsets.insert(at, start)
                self.held_bytes += length if length > EXTENT_BYTES_MIN else EXTENT_BYTES_MIN

    def _put_over(self, extent: Extent) -> None:
        """Put an extent where others may be, or one that may be part of its neighbours."""
        if extent.kind is not Kind.DATA:
            extent = self._merged(extent)
        start, end = extent.offset, extent.end
        offsets, extents = self._offsets, self._extents
        first = last = bisect_left(offsets, start)
        replacement = [extent]
        if first > 0 and extents[first - 1].end > start:
            first -= 1
            before = extents[first]
            replacement.insert(0, _remainder(before, before.offset, start))
            if before.end > end:
                replacement.append(_remainder(before, end, before.end))
        if last < len(offsets) and offsets[last] < end:
            last = bisect_left(offsets, end, last)
            after = extents[last - 1]
            if after.end > end:
                replacement.append(_remainder(after, end, after.end))
        for replaced in extents[first:last]:
            self.held_bytes -= held_bytes(replaced)
        for added in replacement:
            self.held_bytes += held_bytes(added)
        extents[first:last] = replacement
        offsets[first:last] = [added.offset for added in replacement]

    def overlapping(self, offset: int, length: int) -> list[Extent]:
        """The extents within the range, clipped to it, in ascending order."""
        end = offset + length
        first = bisect_right(self._offsets, offset)
        if first > 0 and self._extents[first - 1].end > offset:
            first -= 1
        last = bisect_left(self._offsets, end, first)
        return [extent.clip(offset, end) for extent in self._extents[first:last]]

    def bound(self, start: int, end: int, count: int) -> int:
        """The largest end, `end` at most, so that at most `count` extents lie between it and `start`."""
        first = bisect_right(self._offsets, start) - 1
        if first < 0 or self._extents[first].end <= start:
            first += 1
        beyond = first + count
        return min(end, self._offsets[beyond]) if beyond < len(self._offsets) else end

    def _merged(self, extent: Extent) -> Extent:
        """`extent`, grown by the neighbours of its kind that it touches or overlaps."""
        start, end = extent.offset, extent.end
        first = bisect_left(self._offsets, start)
        if first > 0 and (before := self._extents[first - 1]).kind is extent.kind and before.end >= start:
            start, end = before.offset, max(end, before.end)
        last = bisect_right(self._offsets, end)
        if last > 0 and (after := self._extents[last - 1]).kind is extent.kind and after.end >= end:
            end = after.end
        return Extent(start, end - start, extent.kind)
