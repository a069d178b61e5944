"""The lab's protocol: whole, byte by byte, with a tail, and from a peer that doesn't keep to it."""

from __future__ import annotations

import json

import pytest

from remuslike.lab.wire import (
    PAYLOAD_LIMIT_BYTES,
    Decoder,
    Frame,
    Kind,
    Request,
    WireError,
    decode_request,
    decode_status,
    encode,
    encode_request,
    encode_status,
)

FRAMES = [Frame(Kind.READY), Frame(Kind.OUTPUT, b"text\0\xff"), Frame(Kind.EXIT, encode_status(-9))]
BYTES = b"".join(encode(frame) for frame in FRAMES)

REQUEST = Request(("echo", "a b", "é\udcff"), "/tmp", {"HOME": "/root"})


def test_frames_whole_byte_by_byte_and_with_a_tail() -> None:
    assert list(Decoder().feed(BYTES)) == FRAMES
    decoder = Decoder()
    assert [frame for byte in BYTES for frame in decoder.feed(bytes([byte]))] == FRAMES
    decoder = Decoder()
    assert list(decoder.feed(BYTES + b"\x03\0\0")) == FRAMES
    assert list(decoder.feed(b"\0\x01x")) == [Frame(Kind.OUTPUT, b"x")]


@pytest.mark.parametrize("kind", [0, len(Kind) + 1, 255])
def test_a_kind_that_does_not_exist_is_named(kind: int) -> None:
    with pytest.raises(WireError, match=rf"kind is {kind}; 1 to 7"):
        list(Decoder().feed(bytes([kind, 0, 0, 0, 0])))


def test_a_frame_that_is_too_long_is_refused_by_its_header() -> None:
    header = bytes([Kind.OUTPUT]) + (PAYLOAD_LIMIT_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(WireError, match=rf"length is {PAYLOAD_LIMIT_BYTES + 1}; {PAYLOAD_LIMIT_BYTES} is"):
        list(Decoder().feed(header))
    with pytest.raises(WireError, match=str(PAYLOAD_LIMIT_BYTES)):
        encode(Frame(Kind.RUN, bytes(PAYLOAD_LIMIT_BYTES + 1)))


def test_a_request_comes_through_with_names_that_are_no_utf8() -> None:
    assert decode_request(encode_request(REQUEST)) == REQUEST


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps({"arguments": [], "directory": "/", "environment": {}}).encode(),
        json.dumps({"arguments": ["a", 1], "directory": "/", "environment": {}}).encode(),
        json.dumps({"arguments": ["a\0"], "directory": "/", "environment": {}}).encode(),
        json.dumps({"arguments": ["a"], "directory": "/", "environment": []}).encode(),
        json.dumps({"arguments": ["a"], "directory": None, "environment": {}}).encode(),
        json.dumps({"arguments": ["a"], "directory": "/", "environment": {"A": 1}}).encode(),
    ],
    ids=range(11),
)
def test_a_request_that_makes_no_sense_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError, match="RUN"):
        decode_request(payload)


def test_a_status_of_another_length_is_refused() -> None:
    assert decode_status(encode_status(-15)) == -15
    for payload in (b"", b"\0\0\0", b"\0\0\0\0\0"):
        with pytest.raises(WireError, match=f"EXIT has {len(payload)} bytes"):
            decode_status(payload)
