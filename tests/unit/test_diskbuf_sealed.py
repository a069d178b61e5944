import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_diskbuf_extents import DISK_BYTES, extents

from diskbuf.errors import SealedWritesError
from diskbuf.extents import Extent, ExtentMap, Kind
from diskbuf.sealed import SealedWrites, decode_writes_untrusted, encode_writes


def writes_of(changes: list[Extent]) -> SealedWrites:
    held = ExtentMap()
    for change in changes:
        held.put(change)
    return SealedWrites(held.extents)


def encoded(*table: tuple[int, int, int], data: bytes = b"", data_bytes: int | None = None) -> bytes:
    head = struct.pack("<4sIQ", b"DSW1", len(table), len(data) if data_bytes is None else data_bytes)
    return head + b"".join(struct.pack("<QQI", *entry) for entry in table) + data


@given(st.lists(extents(), max_size=20))
def test_round_trip(changes: list[Extent]) -> None:
    writes = writes_of(changes)
    assert decode_writes_untrusted(b"".join(encode_writes(writes)), DISK_BYTES) == writes


def test_payloads_are_views_on_both_ways() -> None:
    payload = bytearray(b"payload")
    parts = encode_writes(SealedWrites((Extent.of_data(0, payload),)))
    assert isinstance(parts[1], memoryview)
    assert parts[1].obj is payload
    received = b"".join(parts)
    assert decode_writes_untrusted(received, 4096).extents[0].data.obj is received


@given(st.lists(extents(), max_size=8), st.binary(min_size=1, max_size=8))
def test_every_prefix_and_every_tail_is_refused(changes: list[Extent], tail: bytes) -> None:
    whole = b"".join(encode_writes(writes_of(changes)))
    for end in range(len(whole)):
        with pytest.raises(SealedWritesError):
            decode_writes_untrusted(whole[:end], DISK_BYTES)
    with pytest.raises(SealedWritesError):
        decode_writes_untrusted(whole + tail, DISK_BYTES)


@given(st.lists(extents(), max_size=8), st.data())
def test_damage_is_refused_or_stays_within_the_disk(changes: list[Extent], data: st.DataObject) -> None:
    damaged = bytearray(b"".join(encode_writes(writes_of(changes))))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        writes = decode_writes_untrusted(damaged, DISK_BYTES)
    except SealedWritesError:
        return
    end = 0
    for extent in writes.extents:
        assert end <= extent.offset < extent.end <= DISK_BYTES
        assert len(extent.data) == (extent.length if extent.kind is Kind.DATA else 0)
        end = extent.end


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(SealedWritesError):
        decode_writes_untrusted(data, DISK_BYTES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded((0, 0, 1)), "empty or outside"),
        (encoded((96, 1, 1)), "empty or outside"),
        (encoded((95, 2, 1)), "empty or outside"),
        (encoded((2**64 - 1, 2, 1)), "empty or outside"),
        (encoded((1, 2**64 - 1, 1)), "empty or outside"),
        (encoded((0, 1, 3)), "unknown kind"),
        (encoded((0, 4, 1), (3, 4, 2)), "extent 1 .* overlaps or precedes"),
        (encoded((8, 4, 1), (0, 4, 2)), "overlaps or precedes"),
        (encoded((0, 4, 0), data=b"abc"), "add up to 4 bytes, not the header's 3"),
        (encoded((0, 4, 1), data=b"abc"), "add up to 0 bytes"),
        (encoded(data_bytes=2**64 - 1), "make 18446744073709551631"),
        (b"DSW2" + encoded()[4:], "magic"),
    ],
)
def test_names_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(SealedWritesError, match=message):
        decode_writes_untrusted(data, DISK_BYTES)
