"""Requests, the gate and replies against the specification, whose numbers and layouts are repeated here."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskbuf.errors import ExportError, ProtocolError, RequestError
from diskbuf.wire import (
    DESCRIPTORS_MAX,
    DRAIN_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    BlockState,
    Command,
    Export,
    NbdError,
    Request,
    Terms,
    TransmissionFlag,
    check_export_name,
    decode_request,
    decode_writes,
    encode_block_status,
    encode_data_header,
    encode_done,
    encode_error,
    encode_hole,
    encode_reply,
    export_flags,
    validate_request,
)

FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << bit for bit in range(5))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
CONTEXTS = {1: "base:allocation"}
COOKIE = 0xFEDC_BA98_7654_3210

SIZE = 1 << 20
HUGE = 1 << 40


def terms(
    size_bytes: int = SIZE, *, read_only: bool = False, structured: bool = True, contexts: bool = True
) -> Terms:
    export = Export(size_bytes, export_flags(read_only))
    return Terms("disk", export, structured, CONTEXTS if contexts else {})


def refusal(request: Request, agreed: Terms) -> NbdError:
    with pytest.raises(RequestError) as caught:
        validate_request(request, agreed)
    assert str(caught.value)
    return NbdError(caught.value.code)


# Requests


def test_request() -> None:
    header = struct.pack(">IHHQQI", 0x25609513, 1, 6, 2**64 - 1, 4096, 512)
    assert decode_request(header) == Request(1, 6, 2**64 - 1, 4096, 512)
    assert decode_request(memoryview(header)).command == Command.WRITE_ZEROES
    with pytest.raises(ProtocolError, match="request magic is 0x00000000"):
        decode_request(bytes(28))


def test_writes_that_are_whole() -> None:
    """Up to the first that isn't, or is no write, too long, or garbage, and never beyond the end."""
    writes = b"".join(struct.pack(">IHHQQI", 0x25609513, 1, 1, n, n, n) + b"x" * n for n in range(3))
    read = struct.pack(">IHHQQI", 0x25609513, 0, 0, 0, 0, 0)
    for rest, whole in ((b"", 3), (read, 3), (bytes(28), 3), (b"x" * 27, 3), (None, 2)):
        received = memoryview(b"skip" + writes + (rest or b""))
        end = len(received) - (rest is None)
        requests, payloads, start = decode_writes(received, 4, end, 2)
        assert requests == [Request(1, Command.WRITE, n, n, n) for n in range(whole)]
        assert payloads == [b"x" * n for n in range(whole)]
        assert received[start:] == (rest if rest is not None else received[-30:])
    assert [request.cookie for request in decode_writes(memoryview(writes), 0, len(writes), 1)[0]] == [0, 1]


def test_extended_headers_are_no_requests() -> None:
    with pytest.raises(ProtocolError, match="request magic is 0x21e41c71"):
        decode_request(struct.pack(">IHHQQI", 0x21E41C71, 0, 0, 0, 0, 0))


def test_only_writes_have_payloads() -> None:
    assert [command for command in range(10) if Request(0, command, 0, 0, 8).payload_bytes] == [WRITE]


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length"),
    [
        (READ, 0, 0, 1),
        (READ, FUA, SIZE - 1, 1),
        (READ, FUA | DF, 0, SIZE),
        (WRITE, FUA, 0, SIZE),
        (DISC, 0, 0, 0),
        (FLUSH, 0, 0, 0),
        (FLUSH, FUA, 0, 0),
        (TRIM, FUA, 512, SIZE - 512),
        (CACHE, FUA, 7, 9),
        (WRITE_ZEROES, FUA | NO_HOLE | FAST_ZERO, 3, 5),
        (BLOCK_STATUS, FUA | REQ_ONE, 0, SIZE),
    ],
)
def test_gate_lets_pass(command: int, flags: int, offset: int, length: int) -> None:
    validate_request(Request(flags, command, 0, offset, length), terms())


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "code"),
    [
        (READ, 0, 0, 0, NbdError.EINVAL),
        (READ, 0, SIZE, 1, NbdError.EINVAL),
        (READ, 0, 2**64 - 1, 2**32 - 1, NbdError.EINVAL),
        (WRITE, 0, SIZE - 1, 2, NbdError.ENOSPC),
        (WRITE, 0, 0, 0, NbdError.EINVAL),
        (DISC, 0, 0, 1, NbdError.EINVAL),
        (FLUSH, 0, 1, 0, NbdError.EINVAL),
        (FLUSH, 0, 0, 1, NbdError.EINVAL),
        (TRIM, 0, SIZE, 1, NbdError.EINVAL),
        (CACHE, 0, SIZE, 1, NbdError.EINVAL),
        (WRITE_ZEROES, 0, SIZE, 1, NbdError.ENOSPC),
        (BLOCK_STATUS, 0, SIZE - 1, 2, NbdError.EINVAL),
        (8, 0, 0, 1, NbdError.EINVAL),  # RESIZE, an extension
        (0xFFFF, 0, 0, 1, NbdError.EINVAL),
    ],
)
def test_gate_refuses(command: int, flags: int, offset: int, length: int, code: NbdError) -> None:
    assert refusal(Request(flags, command, 0, offset, length), terms()) == code


FLAGS_OF = {
    READ: FUA | DF,
    WRITE: FUA,
    DISC: FUA,
    FLUSH: FUA,
    TRIM: FUA,
    CACHE: FUA,
    WRITE_ZEROES: FUA | NO_HOLE | FAST_ZERO,
    BLOCK_STATUS: FUA | REQ_ONE,
}


@pytest.mark.parametrize(("command", "bit"), list(itertools.product(range(8), range(16))))
def test_gate_refuses_each_flag_that_does_not_belong_to_the_command(command: int, bit: int) -> None:
    length = 0 if command in (DISC, FLUSH) else 512
    request = Request(1 << bit, command, 0, 0, length)
    if 1 << bit & FLAGS_OF[command]:
        validate_request(request, terms())
    else:
        assert refusal(request, terms()) == NbdError.EINVAL


@pytest.mark.parametrize("structured", [False, True])
def test_block_status_needs_a_selected_context(structured: bool) -> None:
    agreed = terms(structured=structured, contexts=False)
    assert refusal(Request(0, BLOCK_STATUS, 0, 0, 1), agreed) == NbdError.EINVAL


def test_df_needs_structured_replies() -> None:
    assert refusal(Request(DF, READ, 0, 0, 1), terms(structured=False, contexts=False)) == NbdError.EINVAL


@pytest.mark.parametrize(
    ("missing", "flags", "command"),
    [
        (TransmissionFlag.SEND_FUA, FUA, WRITE),
        (TransmissionFlag.SEND_FLUSH, 0, FLUSH),
        (TransmissionFlag.SEND_TRIM, 0, TRIM),
        (TransmissionFlag.SEND_WRITE_ZEROES, 0, WRITE_ZEROES),
        (TransmissionFlag.SEND_CACHE, 0, CACHE),
        (TransmissionFlag.SEND_FAST_ZERO, FAST_ZERO, WRITE_ZEROES),
    ],
)
def test_gate_refuses_what_the_export_does_not_offer(
    missing: TransmissionFlag, flags: int, command: int
) -> None:
    request = Request(flags, command, 0, 0, 0 if command == FLUSH else 512)
    offered = export_flags(read_only=False)
    validate_request(request, Terms("disk", Export(SIZE, offered)))
    assert refusal(request, Terms("disk", Export(SIZE, offered & ~missing))) == NbdError.EINVAL


@pytest.mark.parametrize(
    ("command", "structured", "code"),
    [
        (READ, False, NbdError.EINVAL),
        (READ, True, NbdError.EOVERFLOW),
        (WRITE, False, NbdError.EINVAL),
        (WRITE, True, NbdError.EINVAL),
    ],
)
def test_payloads_are_bounded(command: int, structured: bool, code: NbdError) -> None:
    agreed = terms(HUGE, structured=structured)
    validate_request(Request(0, command, 0, 0, PAYLOAD_BYTES_MAX), agreed)
    assert refusal(Request(0, command, 0, 0, PAYLOAD_BYTES_MAX + 1), agreed) == code
    assert DRAIN_BYTES_MAX > PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("command", [TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
def test_lengths_without_a_payload_are_not_bounded(command: int) -> None:
    validate_request(Request(0, command, 0, 1, 2**32 - 1), terms(HUGE))


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
def test_gate_refuses_writing_to_a_read_only_export(command: int) -> None:
    assert refusal(Request(0, command, 0, 0, 512), terms(read_only=True)) == NbdError.EPERM


@pytest.mark.parametrize("command", [READ, CACHE, BLOCK_STATUS])
def test_gate_lets_read_from_a_read_only_export(command: int) -> None:
    validate_request(Request(0, command, 0, 0, 512), terms(read_only=True))
    validate_request(Request(0, FLUSH, 0, 0, 0), terms(read_only=True))


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS])
@pytest.mark.parametrize(("offset", "length"), [(1, 512), (512, 511), (256, 256), (0, SIZE - 1)])
def test_gate_refuses_what_is_not_aligned_to_the_minimum_block(
    command: int, offset: int, length: int
) -> None:
    agreed = Terms("disk", Export(SIZE, export_flags(read_only=False), 512), True, CONTEXTS)
    assert refusal(Request(0, command, 0, offset, length), agreed) == NbdError.EINVAL
    validate_request(Request(0, command, 0, 512, 1024), agreed)


FIELDS = st.integers(0, 0xFFFF), st.integers(0, 9), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)


@given(*FIELDS, st.sampled_from((0, 1, SIZE, HUGE, 2**63 - 1)))
def test_whatever_passes_the_gate_is_within_the_disk(
    flags: int, command: int, offset: int, length: int, size_bytes: int
) -> None:
    for position in (offset, size_bytes, max(0, size_bytes - length)):
        try:
            validate_request(Request(flags, command, 0, position, length), terms(size_bytes))
        except RequestError:
            continue
        assert position + length <= size_bytes


# Exports


def test_flags_offered() -> None:
    assert export_flags(read_only=False) == 0b1101_0110_1101
    assert export_flags(read_only=True) == 0b1101_0110_1111


@pytest.mark.parametrize(
    ("size_bytes", "sizes", "description", "message"),
    [
        (-1, (1, 4096, 4096), "", "size is -1"),
        (1 << 63, (1, 4096, 4096), "", "size is 9223372036854775808"),
        (4096, (0, 4096, 4096), "", "block_bytes_min is 0"),
        (4096, (3, 4096, 4096), "", "block_bytes_min is 3"),
        (1 << 20, (1 << 17, 1 << 17, 1 << 17), "", "block_bytes_min is 131072"),
        (4096, (1, 256, 4096), "", "block_bytes_preferred is 256"),
        (4096, (1024, 512, 4096), "", "at least 1024"),
        (4096, (1, 1000, 4096), "", "block_bytes_preferred is 1000"),
        (4096, (1, 4096, 4095), "", "block_bytes_max is 4095"),
        (4096, (1, 4096, PAYLOAD_BYTES_MAX + 1), "", "block_bytes_max is 33554433"),
        (1000, (512, 512, 512), "", "no multiple of block_bytes_min"),
        (4096, (1, 4096, 4096), "ß" * 2049, "description has more than 4096"),
    ],
)
def test_exports_that_the_specification_does_not_allow(
    size_bytes: int, sizes: tuple[int, int, int], description: str, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        Export(size_bytes, export_flags(read_only=False), *sizes, description)


@pytest.mark.parametrize("name", ["", "disk", "größe", "a" * 4096, "with / and space"])
def test_export_names(name: str) -> None:
    assert check_export_name(name) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [("ß" * 2049, "more than 4096"), ("a\0b", "contains NUL"), ("\udcff", "isn't UTF-8")],
)
def test_export_names_that_no_client_could_say(name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_export_name(name)


# Replies


def test_simple_reply() -> None:
    assert encode_reply(COOKIE) == bytes.fromhex("67446698 00000000 fedcba9876543210")
    assert encode_reply(COOKIE, NbdError.EIO) == bytes.fromhex("67446698 00000005 fedcba9876543210")


@pytest.mark.parametrize("done", [False, True])
def test_chunks(done: bool) -> None:
    def chunk(kind: int, payload: bytes, more: int = 0) -> bytes:
        return struct.pack(">IHHQI", 0x668E33EF, done, kind, COOKIE, len(payload) + more) + payload

    offset, hole = struct.pack(">Q", 1 << 40), struct.pack(">QI", 1 << 40, 2**32 - 1)
    assert encode_data_header(COOKIE, 1 << 40, 4096, done=done) == chunk(1, offset, 4096)
    assert encode_hole(COOKIE, 1 << 40, 2**32 - 1, done=done) == chunk(2, hole)
    error = struct.pack(">IH", 28, 4) + b"voll"
    assert encode_error(COOKIE, NbdError.ENOSPC, "voll", done=done) == chunk(0x8001, error)
    assert encode_error(COOKIE, NbdError.ENOSPC, "voll", offset=1 << 40, done=done) == chunk(
        0x8002, error + offset
    )
    assert encode_error(COOKIE, NbdError.EIO, done=done) == chunk(0x8001, struct.pack(">IH", 5, 0))
    request = Request(0, BLOCK_STATUS, COOKIE, 0, 100)
    status = struct.pack(">III", 7, 100, 3)
    assert encode_block_status(7, [(100, BlockState.HOLE | BlockState.ZERO)], request, done=done) == chunk(
        5, status
    )
    if done:
        assert encode_done(COOKIE) == chunk(0, b"")


def test_a_chunk_is_the_last_unless_said_otherwise() -> None:
    request = Request(0, BLOCK_STATUS, COOKIE, 0, 1)
    for chunk in (
        encode_data_header(COOKIE, 0, 1),
        encode_hole(COOKIE, 0, 1),
        encode_error(COOKIE, NbdError.EIO),
        encode_block_status(1, [(1, BlockState.DATA)], request),
    ):
        assert struct.unpack_from(">IH", chunk)[1] == 1


def test_long_messages_are_cut_between_characters() -> None:
    chunk = encode_error(COOKIE, NbdError.EIO, "x" + "ß" * 4096)
    length, _, message_bytes = struct.unpack_from(">IIH", chunk, 16)
    assert (length, message_bytes, len(chunk)) == (6 + 4095, 4095, 20 + 6 + 4095)
    assert chunk[26:].decode() == "x" + "ß" * 2047


def descriptors(extents: Iterator[tuple[int, int]] | list[tuple[int, int]], request: Request) -> list[int]:
    chunk = encode_block_status(1, extents, request)
    length, context = struct.unpack_from(">II", chunk, 16)
    assert (length, context) == (len(chunk) - 20, 1)
    return list(struct.unpack(f">{(length - 4) // 4}I", chunk[24:]))


DATA, HOLE = BlockState.DATA, BlockState.HOLE | BlockState.ZERO


@pytest.mark.parametrize(
    ("flags", "extents", "expected"),
    [
        (0, [(100, DATA)], [100, 0]),
        (0, [(40, DATA), (60, HOLE)], [40, 0, 60, 3]),
        (0, [(40, DATA), (2**40, HOLE)], [40, 0, 60, 3]),
        (0, [(30, HOLE), (10, HOLE), (5, DATA)], [40, 3, 5, 0]),
        (0, [(99, HOLE), (1, HOLE), (50, DATA)], [100, 3]),
        (0, [(10, DATA)], [10, 0]),
        (REQ_ONE, [(10, DATA), (20, DATA), (70, HOLE)], [30, 0]),
        (REQ_ONE, [(2**40, HOLE)], [100, 3]),
    ],
)
def test_block_status(flags: int, extents: list[tuple[int, int]], expected: list[int]) -> None:
    assert descriptors(extents, Request(flags, BLOCK_STATUS, 0, 50, 100)) == expected


def test_block_status_is_bounded_and_asks_for_no_more_than_it_sends() -> None:
    asked = 0

    def alternating() -> Iterator[tuple[int, int]]:
        nonlocal asked
        for asked in itertools.count(1):
            yield 1, DATA if asked % 2 else HOLE

    assert len(descriptors(alternating(), Request(0, BLOCK_STATUS, 0, 0, 2**32 - 1))) == 2 * DESCRIPTORS_MAX
    assert asked == DESCRIPTORS_MAX + 1


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from((0, 1, 2, 3))), min_size=1),
    st.integers(1, 200),
    st.booleans(),
)
def test_block_status_tells_the_truth(extents: list[tuple[int, int]], length: int, one_extent: bool) -> None:
    told = descriptors(extents, Request(REQ_ONE if one_extent else 0, BLOCK_STATUS, 0, 0, length))
    states = [state for extent_length, state in extents for _ in range(extent_length)]
    told_states = [
        state for told_length, state in zip(told[::2], told[1::2], strict=True) for _ in range(told_length)
    ]
    assert told_states == states[: len(told_states)]
    assert 0 < len(told_states) <= length
    assert all(told[1::2][i] != told[1::2][i + 1] for i in range(len(told) // 2 - 1))
    if one_extent:
        assert len(told) == 2
    else:
        assert len(told_states) == min(length, len(states))
