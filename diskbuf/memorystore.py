"""A disk in this process's memory: for tests and measurements, and gone with the process.

Measured here, a copy into memory that was touched before: 256 KiB take 9 µs on huge pages and 21 µs on small
ones, 4 KiB 0.33 and 0.44 µs; so huge pages are asked for. A memfd, by pwritev(2), takes 37 and 1.5 µs.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from diskbuf.errors import StoreOpenError, StoreReadOnlyError
from diskbuf.extents import Bytes, Extent
from diskbuf.sizes import format_size
from diskbuf.store import ALLOCATIONS_MAX, Allocation

CHUNK_BYTES = 64 << 10
"""What is allocated, or not, as a whole: a byte of book-keeping, and a multiple of every page size."""

_MAP_NORESERVE = 0x4000  # sys/mman.h; Python's mmap has it from 3.13 on

_COPY_WITH_GIL_BYTES_MAX = 64 << 10
"""Longer copies let other threads run meanwhile: a release beside a writing client is a quarter faster so.
Shorter ones are over (5 µs) before it is worth it."""


class MemoryStore:
    """`size_bytes` of zeros, which take memory where they are written. Nothing survives `close`."""

    def __init__(self, size_bytes: int, *, read_only: bool = False) -> None:
        """Raises `StoreOpenError` for 0 bytes, or more than this machine has memory."""
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if not 0 < size_bytes <= memory_bytes:
            raise StoreOpenError(
                f"store memory:{format_size(size_bytes)}: a size of {size_bytes} bytes;"
                f" give one between 1 and this machine's memory, {memory_bytes} bytes"
            )
        self._size_bytes = size_bytes
        self._read_only = read_only
        try:
            mapping = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        except OSError as error:
            raise StoreOpenError(f"store memory:{format_size(size_bytes)}: {error.strerror}") from error
        with suppress(OSError):  # a kernel without transparent huge pages; small ones do
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self._mapping: mmap.mmap | None = mapping
        self._bytes = memoryview(mapping)
        # A byte a chunk, 1 if anything may be there. A write marks after it has copied, a punch unmarks
        # before it zeroes: in whatever order they meet, nothing that holds data is ever called a hole.
        self._allocated = bytearray(-(-size_bytes // CHUNK_BYTES))

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def uri(self) -> str:
        return f"memory:{format_size(self._size_bytes)}"

    def read(self, offset: int, target: memoryview) -> None:
        source = self._bytes[offset : offset + len(target)]
        if len(target) <= _COPY_WITH_GIL_BYTES_MAX:
            target[:] = source
        else:
            _copy_without_gil(target, source)

    def read_cached(self, offset: int, target: memoryview) -> bool:
        self.read(offset, target)
        return True

    def read_view(self, offset: int, length: int) -> memoryview | None:
        return self._bytes[offset : offset + length].toreadonly()

    def write_view(self, offset: int, length: int) -> memoryview | None:
        return None if self._read_only else self._bytes[offset : offset + length]

    def note_written(self, offset: int, length: int) -> None:
        first, last = offset // CHUNK_BYTES, -(-(offset + length) // CHUNK_BYTES)
        if last - first == 1:
            self._allocated[first] = 1
        else:
            self._allocated[first:last] = b"\1" * (last - first)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        if self._read_only:
            self._check_writable(offset, sum(map(len, pieces)))
        position, target = offset, self._bytes
        for piece in pieces:
            length = len(piece)
            end = position + length
            if length <= _COPY_WITH_GIL_BYTES_MAX:
                target[position:end] = piece
            else:
                _copy_without_gil(target[position:end], piece)
            position = end
        self.note_written(offset, position - offset)

    def write_scattered(self, extents: Sequence[Extent]) -> None:
        """See `Scattering.write_scattered`."""
        if self._read_only and extents:
            self._check_writable(extents[0].offset, extents[0].length)
        target, allocated = self._bytes, self._allocated
        for offset, length, _, data in extents:
            end = offset + length
            target[offset:end] = data
            allocated[offset // CHUNK_BYTES] = allocated[(end - 1) // CHUNK_BYTES] = 1  # the next one at most

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._check_writable(offset, length)
        end = offset + length
        first, last = -(-offset // CHUNK_BYTES), end // CHUNK_BYTES
        if end == self._size_bytes:
            last = len(self._allocated)  # the last chunk may be shorter
        if first >= last:
            self._fill_zeros(offset, end)
            return
        start, stop = first * CHUNK_BYTES, min(last * CHUNK_BYTES, self._size_bytes)
        self._fill_zeros(offset, start)
        self._fill_zeros(stop, end)
        self._allocated[first:last] = bytes(last - first)
        assert self._mapping is not None, "closed"
        self._mapping.madvise(mmap.MADV_DONTNEED, start, stop - start)  # private and anonymous: zeros again
        if not punch_hole:
            self._allocated[first:last] = b"\1" * (last - first)

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        end = offset + length
        first = offset // CHUNK_BYTES
        chunks = np.frombuffer(bytes(self._allocated[first : -(-end // CHUNK_BYTES)]), dtype=np.uint8)
        ends = np.append(np.flatnonzero(np.diff(chunks)) + 1, len(chunks))[:ALLOCATIONS_MAX]
        found: list[Allocation] = []
        position = offset
        for chunk_end in ends.tolist():
            stop = min((first + chunk_end) * CHUNK_BYTES, end)
            hole = not chunks[chunk_end - 1]
            found.append(Allocation(stop - position, hole, zero=hole))
            position = stop
        return found

    def sync(self) -> None:
        pass

    def close(self) -> None:
        """The memory goes with the last view of it: a reply that is on its way may still need one."""
        self._mapping, self._bytes = None, memoryview(b"")

    def _fill_zeros(self, start: int, end: int) -> None:
        if start < end:
            np.frombuffer(self._bytes, dtype=np.uint8)[start:end] = 0

    def _check_writable(self, offset: int, length: int) -> None:
        if self._read_only:
            raise StoreReadOnlyError(
                f"store {self.uri}: write of {length} bytes at {offset}, but it was opened read-only"
            )


def _copy_without_gil(target: memoryview, source: Bytes) -> None:
    np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))
