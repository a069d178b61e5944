"""The disk in chunks of a fixed size: the unit of synchronisation, and which of them were written. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diskbuf.errors import ChunkError
from diskbuf.extents import Extent

CHUNK_BYTES = 262144
"""Its digest is 1/16384 of it, and sending one for a single changed byte costs little."""


class Chunks:
    """A disk of `size_bytes` in `CHUNK_BYTES`; the last chunk may be short."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._marks = bytearray(-(-size_bytes // CHUNK_BYTES))
        self._dirty = np.frombuffer(self._marks, bool)

    def range(self, index: int) -> tuple[int, int]:
        """Offset and length of a chunk. Raises `ChunkError` if the disk hasn't got it."""
        if not 0 <= index < len(self._dirty):
            raise ChunkError(
                f"chunk {index} of a disk with {len(self._dirty)}; compare the disks' sizes first"
            )
        offset = index * CHUNK_BYTES
        return offset, min(CHUNK_BYTES, self._size_bytes - offset)

    def mark(self, extents: Sequence[Extent]) -> None:
        """Note that the extents are being written."""
        for offset, length, _, _ in extents:
            first, last = offset // CHUNK_BYTES, (offset + length - 1) // CHUNK_BYTES
            if first == last:
                self._marks[first] = 1  # a tenth of what numpy takes for it, and nearly every write's case
            else:
                self._dirty[first : last + 1] = True

    def take(self) -> np.ndarray:
        """The ascending indices (int64) of the marked chunks, which are then unmarked.

        What other threads mark meanwhile is either among them or stays marked.
        """
        # Of a copy, which is made at once: numpy counts first, and then fills what it has counted, with other
        # threads running; before 2.2.4 it writes beyond its result for a mark in between.
        indices = np.flatnonzero(np.frombuffer(bytes(self._marks), bool))
        self._dirty[indices] = False
        return indices
