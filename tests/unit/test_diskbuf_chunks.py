import numpy as np
import pytest

from diskbuf.chunks import CHUNK_BYTES, Chunks
from diskbuf.errors import ChunkError
from diskbuf.extents import Extent, Kind


def test_marks_every_chunk_that_a_write_touches_and_no_other() -> None:
    chunks = Chunks(10 * CHUNK_BYTES + 1)
    chunks.mark(
        [
            Extent(0, 1, Kind.HOLE),
            Extent(3 * CHUNK_BYTES - 1, 2, Kind.ZERO),
            Extent(5 * CHUNK_BYTES, CHUNK_BYTES, Kind.HOLE),
            Extent.of_data(10 * CHUNK_BYTES, b"x"),
        ]
    )
    taken = chunks.take()
    assert taken.dtype == np.int64
    assert taken.tolist() == [0, 2, 3, 5, 10]
    assert chunks.take().tolist() == []


def test_last_chunk_is_short() -> None:
    chunks = Chunks(CHUNK_BYTES + 512)
    assert chunks.range(0) == (0, CHUNK_BYTES)
    assert chunks.range(1) == (CHUNK_BYTES, 512)


@pytest.mark.parametrize("index", [-1, 2])
def test_refuses_a_chunk_outside(index: int) -> None:
    with pytest.raises(ChunkError, match=f"chunk {index} of a disk with 2"):
        Chunks(CHUNK_BYTES + 512).range(index)
