"""A store that only takes whole blocks, made exact to the byte."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from diskbuf.extents import Bytes
from diskbuf.store import Allocation, Store, losses_of


class BlockEdges:
    """In front of a store whose offsets and lengths are multiples of `block_bytes`, as its size is.

    A block of which a part changes is read, changed and written: one change at a time, since two of them may
    meet in a block.
    """

    def __init__(self, store: Store, block_bytes: int) -> None:
        assert store.size_bytes % block_bytes == 0, (store.size_bytes, block_bytes)
        self._store = store
        self._block_bytes = block_bytes
        self._changing = threading.Lock()

    @property
    def size_bytes(self) -> int:
        return self._store.size_bytes

    @property
    def read_only(self) -> bool:
        return self._store.read_only

    @property
    def uri(self) -> str:
        return self._store.uri

    @property
    def losses(self) -> int:
        """See `store.Losing`."""
        return losses_of(self._store)

    def read(self, offset: int, target: memoryview) -> None:
        start, end = self._around(offset, len(target))
        if (start, end) == (offset, offset + len(target)):
            self._store.read(offset, target)
            return
        blocks = memoryview(bytearray(end - start))
        self._store.read(start, blocks)
        target[:] = blocks[offset - start : offset - start + len(target)]

    def read_cached(self, offset: int, target: memoryview) -> bool:
        return False

    def read_view(self, offset: int, length: int) -> memoryview | None:
        return None

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        length = sum(map(len, pieces))
        start, end = self._around(offset, length)
        with self._changing:
            if (start, end) == (offset, offset + length):
                # The pieces may end within blocks, and the store cuts between them.
                self._store.write(offset, [b"".join(pieces)] if len(pieces) > 1 else pieces)
                return
            head = self._part(start, offset)
            tail = self._part(offset + length, end)
            self._store.write(start, [b"".join((head, *pieces, tail))])

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        end = offset + length
        first = self._around(offset, 0)[1]
        last = self._around(end, 0)[0]
        if first >= last:
            self.write(offset, [bytes(length)])  # within two blocks
            return
        if offset < first:
            self.write(offset, [bytes(first - offset)])
        if last < end:
            self.write(last, [bytes(end - last)])
        with self._changing:
            self._store.zero(first, last - first, punch_hole=punch_hole)

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        start, end = self._around(offset, length)
        found: list[Allocation] = []
        position = start
        for allocation in self._store.allocation(start, end - start):
            left = max(position, offset)
            position += allocation.length
            if (count := min(position, offset + length) - left) > 0:
                found.append(Allocation(count, allocation.hole, allocation.zero))
        return found

    def sync(self) -> None:
        self._store.sync()

    def close(self) -> None:
        self._store.close()

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        """Start and end of the whole blocks that the range touches; of none, its place rounded both ways."""
        start = offset // self._block_bytes * self._block_bytes
        end = -(-(offset + length) // self._block_bytes) * self._block_bytes
        return start, end

    def _part(self, start: int, end: int) -> bytes:
        """The bytes of one block from `start` to `end`, of which one is the block's edge."""
        target = bytearray(end - start)
        if target:
            self.read(start, memoryview(target))
        return bytes(target)
