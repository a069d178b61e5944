"""remuslike.daemon.payloads: what one side encodes the other decodes, and nothing else does harm."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from diskbuf import Extent, Kind, SealedWrites, decode_writes_untrusted, encode_writes
from netbuf.tap import FRAME_BYTES_MAX, VNET_HEADER_BYTES
from remuslike.daemon.payloads import (
    DEVICES_BYTES_MAX,
    WRITES_FRAME_BYTES,
    DevicesDecoder,
    DevicesEncoder,
    decode_chunk_untrusted,
    decode_digests_untrusted,
    decode_disk_untrusted,
    decode_frames_untrusted,
    decode_parts_untrusted,
    encode_chunk,
    encode_digests,
    encode_disk,
    encode_frames,
    encode_parts,
    split_writes,
)
from remuslike.errors import PayloadError
from transport import MAX_PAYLOAD_BYTES

CHUNK_BYTES = 4096
repeatable = settings(derandomize=True, deadline=None, max_examples=100)


def joined(parts: list[bytes]) -> memoryview:
    return memoryview(b"".join(parts))


def bomb(size_bytes: int, announced_bytes: int | None = None) -> bytes:
    """Zeros, compressed some ten thousand times; with the announced size forged if one is given."""
    compressor = zstandard.ZstdCompressor(19, write_content_size=announced_bytes is None)
    return compressor.compress(bytes(size_bytes))


# --- disk chunks ----------------------------------------------------------------------------------


@repeatable
@given(
    disk=st.integers(0, 7), index=st.integers(0, 2**64 - 1), data=st.binary(min_size=0, max_size=CHUNK_BYTES)
)
def test_chunks_come_back(disk: int, index: int, data: bytes) -> None:
    chunk = decode_chunk_untrusted(joined(encode_chunk(disk, index, data)), CHUNK_BYTES, disk_count=8)
    assert (chunk.disk, chunk.index, bytes(chunk.data)) == (disk, index, data)


@repeatable
@given(disk=st.integers(0, 7), first=st.integers(0, 2**64 - 1), digests=st.binary(max_size=64))
def test_digests_come_back(disk: int, first: int, digests: bytes) -> None:
    chunk = decode_digests_untrusted(joined(encode_digests(disk, first, digests)), disk_count=8)
    assert (chunk.disk, chunk.index, bytes(chunk.data)) == (disk, first, digests)


@pytest.mark.parametrize("length", range(10))
def test_a_chunk_without_a_whole_header(length: int) -> None:
    payload = joined(encode_chunk(0, 0, b"data"))[:length]
    with pytest.raises(PayloadError, match=f"of {length} bytes has no whole header"):
        decode_chunk_untrusted(payload, CHUNK_BYTES, disk_count=1)
    with pytest.raises(PayloadError, match=f"of {length} bytes has no whole header"):
        decode_digests_untrusted(payload, disk_count=1)


@pytest.mark.parametrize(("disk", "disk_count"), [(0, 0), (1, 1), (65535, 2)])
def test_a_disk_that_the_guest_has_not_got(disk: int, disk_count: int) -> None:
    expected = f"disk {disk} of a guest with {disk_count}"
    with pytest.raises(PayloadError, match=expected):
        decode_chunk_untrusted(joined(encode_chunk(disk, 0, b"")), CHUNK_BYTES, disk_count)
    with pytest.raises(PayloadError, match=expected):
        decode_digests_untrusted(joined(encode_digests(disk, 0, b"")), disk_count)
    with pytest.raises(PayloadError, match=expected):
        decode_disk_untrusted(memoryview(encode_disk(disk)), disk_count)


def test_a_chunk_larger_than_a_chunk() -> None:
    payload = joined(encode_chunk(0, 0, bytes(CHUNK_BYTES + 1)))
    with pytest.raises(PayloadError, match=f"of {CHUNK_BYTES + 1} bytes is over the limit of {CHUNK_BYTES}"):
        decode_chunk_untrusted(payload, CHUNK_BYTES, disk_count=1)


@pytest.mark.parametrize("forged", [False, True], ids=["announced", "not announced"])
def test_a_bomb_is_refused_before_it_is_unpacked(forged: bool) -> None:
    payload = memoryview(struct.pack("<HQ", 0, 0) + bomb(256 << 20, 0 if forged else None))
    assert len(payload) < 64 << 10
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="compressed data"):
            decode_chunk_untrusted(payload, CHUNK_BYTES, disk_count=1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@repeatable
@given(body=st.binary(max_size=60))
def test_a_damaged_chunk_is_refused_by_name(body: bytes) -> None:
    try:
        chunk = decode_chunk_untrusted(memoryview(struct.pack("<HQ", 0, 5) + body), CHUNK_BYTES, 1)
    except PayloadError:
        return
    assert len(chunk.data) <= CHUNK_BYTES


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 8])
def test_a_truncated_chunk_is_refused(cut: int) -> None:
    payload = joined(encode_chunk(0, 0, bytes(range(256)) * 4))[:-cut]
    with pytest.raises(PayloadError, match="compressed data is damaged"):
        decode_chunk_untrusted(payload, CHUNK_BYTES, disk_count=1)


# --- disk writes ----------------------------------------------------------------------------------


def test_the_head_of_disk_writes_comes_back() -> None:
    assert decode_disk_untrusted(memoryview(encode_disk(2) + b"rest"), 3) == (2, memoryview(b"rest"))


@pytest.mark.parametrize("payload", [b"", b"\0"])
def test_disk_writes_without_a_whole_header(payload: bytes) -> None:
    with pytest.raises(PayloadError, match="no whole header"):
        decode_disk_untrusted(memoryview(payload), 1)


@pytest.mark.parametrize("count", [0, 1, 2**32 - 1])
def test_the_number_of_parts_comes_back(count: int) -> None:
    assert decode_parts_untrusted(memoryview(encode_parts(count))) == count


@pytest.mark.parametrize("length", [0, 3, 5])
def test_an_end_of_another_length(length: int) -> None:
    with pytest.raises(PayloadError, match=f"the end of an epoch has {length} bytes, expected 4"):
        decode_parts_untrusted(memoryview(bytes(length)))


def as_image(pieces: list[SealedWrites], size: int) -> bytes:
    image = bytearray(b"\xee" * size)
    for piece in pieces:
        for extent in piece.extents:
            data = bytes(extent.data) if extent.kind is Kind.DATA else bytes(extent.length)
            image[extent.offset : extent.end] = data
    return bytes(image)


def test_no_writes_are_no_pieces() -> None:
    assert list(split_writes(SealedWrites(()))) == []


def test_few_writes_are_one_piece() -> None:
    writes = SealedWrites(
        (Extent.of_data(0, b"a"), Extent(4096, 8192, Kind.HOLE), Extent(20000, 1, Kind.ZERO))
    )
    assert list(split_writes(writes)) == [writes]


@pytest.mark.parametrize(
    "extents",
    [
        (Extent.of_data(512, bytes(range(256)) * (3 * WRITES_FRAME_BYTES // 256) + b"tail"),),
        tuple(Extent.of_data(start, bytes([7]) * 4000) for start in range(0, 12 << 20, 4096)),
        (
            Extent(0, 1 << 40, Kind.HOLE),
            Extent.of_data(1 << 40, b"x"),
            Extent((1 << 40) + 9, 1 << 40, Kind.ZERO),
        ),
        tuple(Extent(start, 1, Kind.ZERO) for start in range(0, 400_000, 2)),
    ],
    ids=["one large write", "many writes", "large zeros", "many small zeros"],
)
def test_pieces_fit_frames_and_change_the_same(extents: tuple[Extent, ...]) -> None:
    pieces = list(split_writes(SealedWrites(extents)))
    size = extents[-1].end
    for piece in pieces:
        encoded = b"".join([encode_disk(0), *encode_writes(piece)])
        assert len(encoded) <= MAX_PAYLOAD_BYTES
        assert decode_writes_untrusted(encoded[2:], size) == piece
    rebuilt = [extent for piece in pieces for extent in piece.extents]
    assert sum(extent.length for extent in rebuilt) == sum(extent.length for extent in extents)
    assert all(before.end <= after.offset for before, after in itertools.pairwise(rebuilt))
    if size < 1 << 30:
        assert as_image(pieces, size) == as_image([SealedWrites(extents)], size)


# --- device state ---------------------------------------------------------------------------------


@repeatable
@given(states=st.lists(st.binary(min_size=1, max_size=40), max_size=6))
def test_device_states_come_back_in_sequence(states: list[bytes]) -> None:
    encoder, decoder = DevicesEncoder(), DevicesDecoder()
    for state in states:
        assert decoder.decode_untrusted(joined(encoder.encode(state))) == state


def test_what_has_not_changed_costs_next_to_nothing() -> None:
    encoder = DevicesEncoder()
    state = bytes(i * i % 251 for i in range(79_000))
    first = sum(map(len, encoder.encode(state)))
    second = sum(map(len, encoder.encode(state)))
    assert second < 64 < first


def test_a_change_of_length_starts_anew() -> None:
    encoder, decoder = DevicesEncoder(), DevicesDecoder()
    for state in (b"four", b"longer", b"longer", b"x"):
        assert decoder.decode_untrusted(joined(encoder.encode(state))) == state


@pytest.mark.parametrize("length", range(5))
def test_device_state_without_a_whole_header(length: int) -> None:
    with pytest.raises(PayloadError, match="no whole header"):
        DevicesDecoder().decode_untrusted(memoryview(bytes(length)))


def test_device_state_over_the_limit() -> None:
    payload = struct.pack("<BI", 0, DEVICES_BYTES_MAX + 1)
    with pytest.raises(PayloadError, match=f"{DEVICES_BYTES_MAX + 1} bytes is over the limit"):
        DevicesDecoder().decode_untrusted(memoryview(payload))


def test_a_difference_from_nothing() -> None:
    payload = struct.pack("<BI", 1, 4) + zstandard.ZstdCompressor().compress(b"diff")
    with pytest.raises(PayloadError, match="of 4 bytes, announced as 4, after 0"):
        DevicesDecoder().decode_untrusted(memoryview(payload))


@pytest.mark.parametrize("announced", [0, 3, 5])
def test_device_state_of_another_length_than_announced(announced: int) -> None:
    payload = struct.pack("<BI", 0, announced) + zstandard.ZstdCompressor().compress(b"diff")
    with pytest.raises(PayloadError):
        DevicesDecoder().decode_untrusted(memoryview(payload))


def test_a_refused_state_leaves_the_decoder_as_it_was() -> None:
    encoder, decoder = DevicesEncoder(), DevicesDecoder()
    decoder.decode_untrusted(joined(encoder.encode(b"first")))
    with pytest.raises(PayloadError):
        decoder.decode_untrusted(memoryview(struct.pack("<BI", 0, 5) + b"garbage"))
    assert decoder.decode_untrusted(joined(encoder.encode(b"other"))) == b"other"


def test_a_bomb_of_device_state_is_bounded_by_what_it_announces() -> None:
    payload = memoryview(struct.pack("<BI", 0, 4096) + bomb(256 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="over the limit of 4096"):
            DevicesDecoder().decode_untrusted(payload)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@repeatable
@given(delta=st.integers(0, 255), length=st.integers(0, 64), body=st.binary(max_size=60))
def test_any_bytes_are_a_state_or_refused_by_name(delta: int, length: int, body: bytes) -> None:
    try:
        state = DevicesDecoder().decode_untrusted(memoryview(struct.pack("<BI", delta, length) + body))
    except PayloadError:
        return
    assert len(state) == length


# --- network frames -------------------------------------------------------------------------------

SHORTEST, LONGEST = VNET_HEADER_BYTES + 14, FRAME_BYTES_MAX


@repeatable
@given(
    nic=st.integers(0, 7), frames=st.lists(st.binary(min_size=SHORTEST, max_size=200), min_size=1, max_size=9)
)
def test_frames_come_back(nic: int, frames: list[bytes]) -> None:
    (payload,) = encode_frames(nic, frames)
    assert decode_frames_untrusted(joined(payload), nic_count=8) == (nic, frames)


def test_no_frames_are_no_payload() -> None:
    assert list(encode_frames(0, [])) == []


def test_many_large_frames_come_in_pieces_that_fit_and_in_order() -> None:
    frames = [bytes([number]) * size for number, size in enumerate([LONGEST] * 70 + [SHORTEST])]
    payloads = [joined(payload) for payload in encode_frames(0, frames)]
    assert len(payloads) > 1
    assert max(map(len, payloads)) <= MAX_PAYLOAD_BYTES
    assert [frame for payload in payloads for frame in decode_frames_untrusted(payload, 1)[1]] == frames


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "no whole header"),
        (struct.pack("<HI", 1, 0), "network interface 1 of a guest with 1"),
        (struct.pack("<HI", 0, 2**32 - 1), "4294967295 network frames in a payload of 6 bytes"),
        (struct.pack("<HII", 0, 1, SHORTEST - 1) + bytes(SHORTEST - 1), f"of {SHORTEST - 1} to"),
        (struct.pack("<HII", 0, 1, LONGEST + 1) + bytes(LONGEST + 1), f"to {LONGEST + 1} bytes"),
        (struct.pack("<HII", 0, 1, SHORTEST) + bytes(SHORTEST - 1), "don't fill a payload"),
        (struct.pack("<HII", 0, 1, SHORTEST) + bytes(SHORTEST + 1), "don't fill a payload"),
        (struct.pack("<HI", 0, 0) + b"x", "don't fill a payload"),
    ],
)
def test_frames_that_are_none(payload: bytes, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        decode_frames_untrusted(memoryview(payload), nic_count=1)


@repeatable
@given(payload=st.binary(max_size=300))
def test_noise_is_no_frames(payload: bytes) -> None:
    try:
        _, frames = decode_frames_untrusted(memoryview(payload), nic_count=4)
    except PayloadError:
        return
    assert sum(map(len, frames)) < len(payload)
