from __future__ import annotations

from diskbuf_fakes import FakeStore

from diskbuf.extents import Extent, Kind
from diskbuf.store import PIECES_MAX, apply_extents


def test_neighbours_are_written_together_and_in_order() -> None:
    store = FakeStore(64)
    extents = (
        Extent.of_data(0, b"aa"),
        Extent.of_data(2, b"bb"),
        Extent(4, 4, Kind.HOLE),
        Extent.of_data(8, b"cc"),
        Extent.of_data(11, b"dd"),
        Extent(20, 2, Kind.ZERO),
    )
    assert apply_extents(store, extents, lambda: False)
    assert store.operations == [
        ("write", 0, b"aabb"),
        ("hole", 4, 4),
        ("write", 8, b"cc"),
        ("write", 11, b"dd"),
        ("zero", 20, 2),
    ]


def test_a_write_gathers_no_more_than_a_system_call_takes() -> None:
    store = FakeStore(2 * PIECES_MAX)
    extents = [Extent.of_data(offset, b"x") for offset in range(PIECES_MAX + 1)]
    assert apply_extents(store, extents, lambda: False)
    assert store.operations == [("write", 0, b"x" * PIECES_MAX), ("write", PIECES_MAX, b"x")]


def test_stops_when_told() -> None:
    store = FakeStore(64)
    answers = iter([False, True])
    extents = (Extent.of_data(0, b"aa"), Extent.of_data(4, b"bb"))
    assert not apply_extents(store, extents, lambda: next(answers))
    assert store.operations == [("write", 0, b"aa")]
