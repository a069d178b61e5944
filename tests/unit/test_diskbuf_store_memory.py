from __future__ import annotations

from pathlib import Path

import pytest

from diskbuf.errors import StoreOpenError, StoreReadOnlyError
from diskbuf.memorystore import CHUNK_BYTES, MemoryStore
from diskbuf.store import Allocation


def resident_bytes() -> int:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) << 10


def test_takes_memory_where_it_is_written_and_gives_it_back() -> None:
    before = resident_bytes()
    store = MemoryStore(1 << 30)
    assert resident_bytes() - before < 16 << 20
    store.write(128 << 20, [bytes(64 << 20)])
    written = resident_bytes()
    assert written - before >= 64 << 20
    store.zero(128 << 20, 64 << 20, punch_hole=True)
    assert written - resident_bytes() >= 60 << 20


def test_allocation_is_by_the_chunk_and_the_last_one_may_be_shorter() -> None:
    store = MemoryStore(3 * CHUNK_BYTES + 1)
    assert store.allocation(0, store.size_bytes) == [Allocation(store.size_bytes, hole=True, zero=True)]
    store.write(CHUNK_BYTES + 7, [b"x"])
    store.write(3 * CHUNK_BYTES, [b"x"])
    assert store.allocation(5, store.size_bytes - 5) == [
        Allocation(CHUNK_BYTES - 5, hole=True, zero=True),
        Allocation(CHUNK_BYTES, hole=False, zero=False),
        Allocation(CHUNK_BYTES, hole=True, zero=True),
        Allocation(1, hole=False, zero=False),
    ]
    store.zero(3 * CHUNK_BYTES - 10, 11, punch_hole=True)
    assert store.allocation(3 * CHUNK_BYTES, 1) == [Allocation(1, hole=True, zero=True)]


def test_a_view_outlives_the_store() -> None:
    store = MemoryStore(4096)
    store.write(0, [b"still here"])
    view = store.read_view(0, 10)
    store.close()
    assert view == b"still here"


@pytest.mark.parametrize("size_bytes", [0, -1, 1 << 60])
def test_sizes_that_no_machine_has_are_refused(size_bytes: int) -> None:
    with pytest.raises(StoreOpenError, match=f"a size of {size_bytes} bytes; give one between 1 and"):
        MemoryStore(size_bytes)


def test_read_only_memory_refuses_writes() -> None:
    store = MemoryStore(4096, read_only=True)
    with pytest.raises(StoreReadOnlyError, match="store memory:4K: write of 1 bytes at 0"):
        store.write(0, [b"x"])
    with pytest.raises(StoreReadOnlyError):
        store.zero(0, 1, punch_hole=True)
