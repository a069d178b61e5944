"""The frame codec: whole, in pieces, with a tail, and with every kind of damage."""

import struct
from collections.abc import Iterable
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport import errors
from transport.frames import (
    HEADER_BYTES,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    READ_BUFFER_BYTES,
    VERSION,
    BytesLike,
    Frame,
    FrameReader,
    FrameType,
    encode_frame,
)

_repeatable = settings(derandomize=True, deadline=None, max_examples=60)

_frames = st.lists(
    st.builds(
        Frame,
        st.sampled_from(FrameType),
        st.integers(0, 2**64 - 1),
        st.binary(max_size=300).map(memoryview),
    ),
    max_size=6,
)


def _wire(frames: Iterable[Frame]) -> bytes:
    return b"".join(
        part for frame in frames for part in encode_frame(frame.type, frame.epoch, [frame.payload])
    )


def _header(
    *,
    magic: bytes = MAGIC,
    version: int = VERSION,
    type_number: int = FrameType.PAGES,
    length: int = 0,
    payload: bytes = b"",
) -> bytes:
    checked = struct.pack("<4sHHIQI", magic, version, type_number, length, 7, crc32(payload))
    return checked + struct.pack("<I", crc32(checked))


def _feed(reader: FrameReader, wire: bytes, piece_bytes: int) -> list[Frame]:
    frames: list[Frame] = []
    view = memoryview(wire)
    while view:
        buffer = reader.buffer()
        count = min(piece_bytes, len(buffer), len(view))
        buffer[:count] = view[:count]
        view = view[count:]
        frames += reader.received(count)
    return frames


@_repeatable
@given(frames=_frames, piece_bytes=st.sampled_from([1, 2, HEADER_BYTES - 1, HEADER_BYTES, 100, 1 << 20]))
def test_frames_survive_any_cut(frames: list[Frame], piece_bytes: int) -> None:
    reader = FrameReader()
    assert _feed(reader, _wire(frames), piece_bytes) == frames
    assert not reader.mid_frame


@_repeatable
@given(frames=_frames, tail_bytes=st.integers(1, HEADER_BYTES + 3))
def test_a_tail_waits_for_its_rest(frames: list[Frame], tail_bytes: int) -> None:
    last = Frame(FrameType.DEVICES, 9, memoryview(b"state"))
    tail = _wire([last])
    reader = FrameReader()
    assert _feed(reader, _wire(frames) + tail[:tail_bytes], 1 << 20) == frames
    assert reader.mid_frame
    assert _feed(reader, tail[tail_bytes:], 1 << 20) == [last]


@pytest.mark.parametrize("piece_bytes", [1000, READ_BUFFER_BYTES, 1 << 30])
@pytest.mark.parametrize("size", [READ_BUFFER_BYTES - HEADER_BYTES, READ_BUFFER_BYTES, MAX_PAYLOAD_BYTES])
def test_large_payloads(size: int, piece_bytes: int) -> None:
    payload = np.random.default_rng(size).bytes(size)
    wire = _wire(
        [Frame(FrameType.PAGES, 3, memoryview(payload)), Frame(FrameType.EPOCH_END, 3, memoryview(b""))]
    )
    pages, end = _feed(FrameReader(), wire, piece_bytes)
    assert pages.payload == payload
    assert end.type is FrameType.EPOCH_END


def test_rest_of_a_large_payload_is_received_in_place() -> None:
    wire = _wire([Frame(FrameType.PAGES, 1, memoryview(bytes(1_000_000)))])
    reader = FrameReader()
    _feed(reader, wire[:READ_BUFFER_BYTES], READ_BUFFER_BYTES)
    assert len(reader.buffer()) == len(wire) - READ_BUFFER_BYTES


@pytest.mark.parametrize("piece_bytes", [10, 1 << 20])
def test_payloads_are_the_receivers_own(piece_bytes: int) -> None:
    reader = FrameReader()
    (first,) = _feed(reader, _wire([Frame(FrameType.HELLO, 0, memoryview(b"first"))]), piece_bytes)
    _feed(reader, _wire([Frame(FrameType.HELLO, 0, memoryview(b"other"))]), piece_bytes)
    assert first.payload.tobytes() == b"first"
    assert first.payload.readonly


def test_parts_are_passed_on_uncopied_and_counted_in_bytes() -> None:
    words = np.arange(5, dtype=np.uint64)
    parts: list[BytesLike] = [words.data, bytearray(b"xyz"), b"", np.empty((0, 4096), np.uint8).data]
    encoded = encode_frame(FrameType.PAGES, 1, parts)
    assert all(ours is theirs for ours, theirs in zip(encoded[1:], parts, strict=True))
    (frame,) = _feed(FrameReader(), b"".join(encoded), 1 << 20)
    assert frame.payload == words.tobytes() + b"xyz"


def test_too_long_a_payload_is_not_encoded() -> None:
    half = bytes(MAX_PAYLOAD_BYTES // 2)
    assert len(encode_frame(FrameType.DEVICES, 1, [half, half])) == 3
    with pytest.raises(errors.PayloadTooLongError, match=f"DEVICES payload of {MAX_PAYLOAD_BYTES + 1} bytes"):
        encode_frame(FrameType.DEVICES, 1, [half, half, b"."])


@pytest.mark.parametrize("epoch", [-1, 2**64])
def test_epoch_out_of_range_is_the_callers_bug(epoch: int) -> None:
    with pytest.raises(ValueError, match=str(epoch)):
        encode_frame(FrameType.PAGES, epoch, [])


@pytest.mark.parametrize(
    ("wire", "error", "message"),
    [
        (_header(magic=b"HTTP"), errors.MagicError, "starts with b'H"),
        (b"GE", errors.MagicError, "starts with b'G"),
        (_header(version=9), errors.VersionError, "version 9, this side version 1"),
        (_header(version=9)[:6], errors.VersionError, "version 9"),
        (_header(type_number=0), errors.FrameTypeError, "type 0 "),
        (_header(type_number=17), errors.FrameTypeError, "type 17 "),
        (_header(length=MAX_PAYLOAD_BYTES + 1), errors.FrameLengthError, f"{MAX_PAYLOAD_BYTES + 1} bytes"),
        (_header(length=2**32 - 1), errors.FrameLengthError, f"limit of {MAX_PAYLOAD_BYTES}"),
        (_header(length=3, payload=b"abc") + b"abd", errors.PayloadChecksumError, "epoch 7"),
        (_header()[:-1] + b"\0", errors.HeaderChecksumError, "header checksum"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_what_is_not_a_frame_is_named(
    wire: bytes, error: type[errors.FrameError], message: str, piece_bytes: int
) -> None:
    reader = FrameReader()
    with pytest.raises(error, match=message):
        _feed(reader, wire, piece_bytes)
    with pytest.raises(error):
        reader.buffer()
    with pytest.raises(error):
        reader.received(0)


_SAMPLE = _wire([Frame(FrameType.PAGES, 0x0102030405060708, memoryview(b"payload"))])


@pytest.mark.parametrize("position", range(len(_SAMPLE)))
@_repeatable
@given(flip=st.integers(1, 255), piece_bytes=st.sampled_from([1, 5, 1 << 20]))
def test_damage_at_any_position_is_found(position: int, flip: int, piece_bytes: int) -> None:
    damaged = bytearray(_SAMPLE)
    damaged[position] ^= flip
    with pytest.raises(errors.FrameError):
        _feed(FrameReader(), bytes(damaged), piece_bytes)


@_repeatable
@given(garbage=st.binary(min_size=1, max_size=200), piece_bytes=st.sampled_from([1, 1 << 20]))
def test_garbage_is_refused_or_incomplete(garbage: bytes, piece_bytes: int) -> None:
    reader = FrameReader()
    try:
        assert _feed(reader, garbage, piece_bytes) == []
    except errors.FrameError:
        return
    assert reader.mid_frame


@pytest.mark.parametrize("length", range(len(_SAMPLE)))
def test_truncation_gives_nothing(length: int) -> None:
    reader = FrameReader()
    assert _feed(reader, _SAMPLE[:length], 1 << 20) == []
    assert reader.mid_frame is (length > 0)


def test_frames_in_front_of_a_fault_are_not_lost() -> None:
    good = Frame(FrameType.ACKNOWLEDGE, 4, memoryview(b""))
    reader = FrameReader()
    assert _feed(reader, _wire([good, good]) + b"garbage", 1 << 20) == [good, good]
    with pytest.raises(errors.MagicError):
        reader.buffer()


@pytest.mark.parametrize("count", [-1, READ_BUFFER_BYTES + 1])
def test_count_beyond_the_buffer_is_the_callers_bug(count: int) -> None:
    with pytest.raises(ValueError, match=str(count)):
        FrameReader().received(count)
