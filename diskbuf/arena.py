"""Memory for large payloads, used again and again.

A fresh buffer of 256 KiB costs the kernel 64 page faults and as many cleared pages, several times what the
copy into it takes; one that was used before costs nothing. A payload is held for as long as its epoch, is
sent from, cut and read by views, and nobody knows who lets go of it last; but the interpreter counts
references, and a slab to which the arena's is the only one is free.
"""

from __future__ import annotations

import mmap
import sys
import threading
from collections import deque

SLAB_BYTES_MIN = 64 << 10
"""A shorter payload is copied out of the read-ahead buffer for less than a slab costs to find."""
_LOOKS = 4
"""How many slabs are asked before a new one is made. The last one used, if it is free, is still in the
processor's cache; else the oldest is the likeliest, for epochs end in order."""
_FREE_REFERENCES = 2
"""What sys.getrefcount tells of a slab that only `_slabs` knows: that one, and its own argument."""


class Arena:
    """Slabs of up to `limit_bytes` in all; beyond that payloads get memory of their own.

    May be called from any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._slab_bytes = 0
        self._slabs: dict[int, deque[mmap.mmap]] = {}
        self._lock = threading.Lock()

    @property
    def slab_bytes(self) -> int:
        """What all slabs take, free ones included."""
        return self._slab_bytes

    def take(self, length: int) -> memoryview:
        """`length` bytes of whatever content; they are free again when no view of them is left."""
        size = max(SLAB_BYTES_MIN, 1 << (length - 1).bit_length())
        with self._lock:
            slab = self._free(size)
            if slab is None:
                if self._slab_bytes + size > self._limit_bytes:
                    return memoryview(bytearray(length))
                slab = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                self._slab_bytes += size
                self._slabs.setdefault(size, deque()).append(slab)
            return memoryview(slab)[:length]

    def drop_free(self) -> None:
        """Give what nobody uses back to the kernel."""
        with self._lock:
            for size, slabs in self._slabs.items():
                used: deque[mmap.mmap] = deque()
                while slabs:
                    slab = slabs.popleft()
                    if sys.getrefcount(slab) > _FREE_REFERENCES:
                        used.append(slab)
                    else:
                        self._slab_bytes -= size
                slabs.extend(used)

    def _free(self, size: int) -> mmap.mmap | None:
        slabs = self._slabs.get(size)
        if slabs is None:
            return None
        if sys.getrefcount(slabs[-1]) <= _FREE_REFERENCES:
            return slabs[-1]
        for _ in range(min(_LOOKS, len(slabs))):
            slab = slabs.popleft()
            free = sys.getrefcount(slab) <= _FREE_REFERENCES
            slabs.append(slab)
            if free:
                return slab
        return None
