from __future__ import annotations

from pathlib import Path

import pytest

from diskbuf.chunks import Chunks
from diskbuf.errors import StoreOpenError, StoreReadOnlyError
from diskbuf.extents import Extent, Kind
from diskbuf.gate import Gate
from diskbuf.memorystore import CHUNK_BYTES, MemoryStore
from diskbuf.passing import Passing
from diskbuf.store import SCATTERED_BYTES_MAX, Allocation, apply_extents


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


def test_what_is_written_in_place_is_there_and_allocated() -> None:
    store = MemoryStore(4 * CHUNK_BYTES)
    view = store.write_view(CHUNK_BYTES - 1, CHUNK_BYTES + 2)
    assert view is not None
    view[:] = b"x" * len(view)
    store.note_written(CHUNK_BYTES - 1, len(view))
    assert store.read_view(CHUNK_BYTES - 2, len(view) + 2) == b"\0" + b"x" * len(view) + b"\0"
    assert store.allocation(0, 4 * CHUNK_BYTES) == [
        Allocation(3 * CHUNK_BYTES, hole=False, zero=False),
        Allocation(CHUNK_BYTES, hole=True, zero=True),
    ]
    assert MemoryStore(CHUNK_BYTES, read_only=True).write_view(0, 1) is None


def test_what_a_lost_client_may_have_written_in_place_counts_as_allocated() -> None:
    store = MemoryStore(CHUNK_BYTES)
    gate = Gate(limit_bytes=1, depth=1, read_only=False, rose=lambda _: None, began=lambda _: None)
    gate.end_opening(opened=True)
    passing = Passing(gate, store, Chunks(CHUNK_BYTES))
    change = passing.begin(0, 2)
    assert change is not None
    change.data[:1] = b"x"
    assert not passing.end(change, 0)
    assert store.allocation(0, CHUNK_BYTES) == [Allocation(CHUNK_BYTES, hole=False, zero=False)]


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


def test_an_epoch_of_all_kinds_of_pieces_is_applied_to_the_byte() -> None:
    size = 400 * CHUNK_BYTES
    store, expected = MemoryStore(size), bytearray(b"?" * size)
    store.write(0, [bytes(expected)])
    extents = [
        Extent.of_data(index * CHUNK_BYTES - 3, bytes([index % 250]) * 5000) for index in range(1, 300)
    ]
    extents.append(Extent(300 * CHUNK_BYTES, 2 * CHUNK_BYTES, Kind.HOLE))
    extents.append(Extent.of_data(303 * CHUNK_BYTES, b"l" * (SCATTERED_BYTES_MAX + 1)))
    extents.append(Extent(306 * CHUNK_BYTES + 1, 7, Kind.ZERO))
    extents.append(Extent.of_data(307 * CHUNK_BYTES, b"s" * SCATTERED_BYTES_MAX))
    for offset, length, kind, data in extents:
        expected[offset : offset + length] = data if kind is Kind.DATA else bytes(length)
    assert apply_extents(store, extents, lambda: False)
    assert store.read_view(0, size) == expected


def test_scattered_pieces_allocate_the_chunks_they_touch() -> None:
    store = MemoryStore(4 * CHUNK_BYTES)
    store.write_scattered([Extent.of_data(2 * CHUNK_BYTES - 1, b"xy")])
    assert store.allocation(0, 4 * CHUNK_BYTES) == [
        Allocation(CHUNK_BYTES, hole=True, zero=True),
        Allocation(2 * CHUNK_BYTES, hole=False, zero=False),
        Allocation(CHUNK_BYTES, hole=True, zero=True),
    ]


def test_an_epoch_is_not_applied_past_a_stop() -> None:
    store = MemoryStore(1000 * 512)
    extents = [Extent.of_data(index * 512, b"x") for index in range(1000)]
    answers = iter([False, False])
    assert not apply_extents(store, extents, lambda: next(answers, True))
    written = [index for index in range(1000) if store.read_view(index * 512, 1) == b"x"]
    assert 0 < len(written) < 1000
    assert written == list(range(len(written)))


def test_scattered_pieces_are_refused_where_nothing_may_be_written() -> None:
    store = MemoryStore(CHUNK_BYTES, read_only=True)
    with pytest.raises(StoreReadOnlyError, match="write of 2 bytes at 5"):
        apply_extents(store, [Extent.of_data(5, b"xy")], lambda: False)
