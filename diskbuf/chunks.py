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
        self._dirty = np.zeros(-(-size_bytes // CHUNK_BYTES), bool)

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
        for extent in extents:
            self._dirty[extent.offset // CHUNK_BYTES : (extent.end - 1) // CHUNK_BYTES + 1] = True

    def take(self) -> np.ndarray:
        """The ascending indices (int64) of the marked chunks, which are then unmarked."""
        indices = np.flatnonzero(self._dirty)
        self._dirty[indices] = False
        return indices
