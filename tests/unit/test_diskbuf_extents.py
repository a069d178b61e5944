import itertools

from hypothesis import given
from hypothesis import strategies as st

from diskbuf.extents import EXTENT_BYTES_MIN, Extent, ExtentMap, Kind, held_bytes

DISK_BYTES = 96


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    offset = draw(st.integers(0, DISK_BYTES - 1))
    length = draw(st.integers(1, DISK_BYTES - offset))
    kind = draw(st.sampled_from(Kind))
    if kind is not Kind.DATA:
        return Extent(offset, length, kind)
    return Extent.of_data(offset, bytearray(draw(st.binary(min_size=length, max_size=length))))


def contents(changes: ExtentMap) -> list[tuple[Kind, int] | None]:
    """For each byte of the disk its kind and value, or None."""
    found: list[tuple[Kind, int] | None] = [None] * DISK_BYTES
    for extent in changes.extents:
        data = extent.data if extent.kind is Kind.DATA else bytes(extent.length)
        for index, value in enumerate(data):
            found[extent.offset + index] = (extent.kind, value)
    return found


def check_invariants(changes: ExtentMap) -> None:
    parts = changes.extents
    for before, after in itertools.pairwise(parts):
        assert before.end <= after.offset
        assert before.kind is Kind.DATA or before.kind is not after.kind or before.end < after.offset
    assert changes.held_bytes == sum(map(held_bytes, parts))
    for part in parts:
        assert len(part.data) == (part.length if part.kind is Kind.DATA else 0)
        assert memoryview(part.data.obj).nbytes <= 2 * part.length or part.kind is not Kind.DATA


@given(st.lists(extents(), max_size=30), st.integers(0, DISK_BYTES - 1), st.integers(1, DISK_BYTES))
def test_behaves_like_a_disk_of_single_bytes(changes: list[Extent], offset: int, length: int) -> None:
    tested = ExtentMap()
    model: list[tuple[Kind, int] | None] = [None] * DISK_BYTES
    for change in changes:
        tested.put(change)
        data = change.data if change.kind is Kind.DATA else bytes(change.length)
        for index, value in enumerate(data):
            model[change.offset + index] = (change.kind, value)
        check_invariants(tested)
    assert contents(tested) == model
    clipped = ExtentMap()
    for extent in tested.overlapping(offset, min(length, DISK_BYTES - offset)):
        clipped.put(extent)
    end = min(offset + length, DISK_BYTES)
    assert contents(clipped) == [value if offset <= i < end else None for i, value in enumerate(model)]


def test_payload_is_kept_not_copied() -> None:
    payload = bytearray(b"x" * 4096)
    changes = ExtentMap()
    changes.put(Extent.of_data(0, payload))
    assert changes.extents[0].data.obj is payload


def test_small_remainder_gives_its_payload_back() -> None:
    changes = ExtentMap()
    changes.put(Extent.of_data(0, bytearray(4096)))
    changes.put(Extent(1, 4095, Kind.HOLE))
    assert len(changes.extents[0].data.obj) == 1
    assert changes.held_bytes == 2 * EXTENT_BYTES_MIN


def test_snapshot_outlives_changes() -> None:
    changes = ExtentMap()
    changes.put(Extent.of_data(0, b"aaaa"))
    snapshot = changes.extents
    changes.put(Extent.of_data(0, b"bbbb"))
    assert bytes(snapshot[0].data) == b"aaaa"


@given(st.lists(extents(), max_size=30), st.integers(0, DISK_BYTES - 1), st.integers(1, 5))
def test_bound_leaves_as_many_as_were_asked_for(changes: list[Extent], start: int, count: int) -> None:
    tested = ExtentMap()
    for change in changes:
        tested.put(change)
    end = tested.bound(start, DISK_BYTES, count)
    assert start < end <= DISK_BYTES
    assert len(tested.overlapping(start, end - start)) <= count
    if end < DISK_BYTES:
        assert len(tested.overlapping(start, end - start + 1)) == count + 1
