"""Memory for payloads, used again and again.

Fresh memory costs the kernel a page fault and a cleared page for every 4 KiB, several times what the copy
into it takes; memory that was used before costs nothing, and in huge pages the copy takes half the time. A
payload is held for as long as its epoch, is sent from, cut and read by views, and nobody knows who lets go of
it last; but the interpreter counts references, and a slab to which the arena's is the only one is free.
"""

from __future__ import annotations

import mmap
import sys
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

SLAB_BYTES_MIN = 64 << 10
"""The shortest slab: below it payloads share one, see `receiver`."""
REGION_BYTES = 2 << 20
"""What is asked of the kernel at a time: a huge page, for slabs of one size."""
_LOOKS = 4
"""How many slabs are asked before a new one is made. The last one used, if it is free, is still in the
processor's cache; else the oldest is the likeliest, for epochs end in order."""
MISSES_A_SCAN = 64
"""At the limit, with all in use, every slab would be asked for each payload: some 3 ms a gigabyte."""
_FREE_REFERENCES = 2
"""What sys.getrefcount tells of a slab that only `_slabs` knows: that one, and its own argument."""

_Slab = np.ndarray[Any, np.dtype[np.uint8]]
_NOTHING: _Slab = np.empty(0, np.uint8)


class Arena:
    """Slabs of up to `limit_bytes` in all, and of each size less than a region in advance.

    May be called from any thread.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._slab_bytes = 0
        self._slabs: dict[int, deque[_Slab]] = {}
        self._rests: dict[int, _Slab] = {}  # of each size, what the newest region has for more slabs
        self._misses_to_scan = 0  # what is still to be refused before all slabs are asked again
        self._lock = threading.Lock()

    @property
    def slab_bytes(self) -> int:
        """What all slabs take, free ones included."""
        return self._slab_bytes

    def take(self, length: int) -> memoryview | None:
        """`length` bytes of whatever content, which are free again when no view of them is left; None if all
        slabs are in use and the limit allows no more."""
        size = max(SLAB_BYTES_MIN, 1 << (length - 1).bit_length())
        with self._lock:
            slab = self._free(size)
            if slab is None:
                if self._slab_bytes + size > self._limit_bytes:
                    self._scan(size)
                if self._slab_bytes + size > self._limit_bytes:
                    return None
                slab = self._new(size)
            return slab.data[:length]

    def _new(self, size: int) -> _Slab:
        rest = self._rests.get(size, _NOTHING)
        if not len(rest):
            rest = _map(max(size, REGION_BYTES))
        slab, self._rests[size] = rest[:size], rest[size:]
        self._slab_bytes += size
        self._slabs.setdefault(size, deque()).append(slab)
        return slab

    def _scan(self, size: int) -> None:
        """Give back what is unused, unless it was in vain a moment ago."""
        if self._misses_to_scan:
            self._misses_to_scan -= 1
            return
        before = self._slab_bytes
        self._give_back(size)
        self._misses_to_scan = MISSES_A_SCAN if self._slab_bytes == before else 0

    def _give_back(self, size: int) -> None:
        """Return to the kernel what slabs of other sizes than `size` leave unused, by whole regions."""
        for other, slabs in self._slabs.items():
            if other != size:
                # The deque's reference, the loop variable's and the argument's.
                used = {id(slab.base) for slab in slabs if sys.getrefcount(slab) > _FREE_REFERENCES + 1}
                self._slabs[other] = deque(slab for slab in slabs if id(slab.base) in used)
                self._slab_bytes -= other * (len(slabs) - len(self._slabs[other]))
                if id(self._rests[other].base) not in used:
                    self._rests[other] = _NOTHING

    def _free(self, size: int) -> _Slab | None:
        slabs = self._slabs.get(size)
        if not slabs:  # none yet, or all given back
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


def _map(size: int) -> _Slab:
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without transparent huge pages; small ones do
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)
