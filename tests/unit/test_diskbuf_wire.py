from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskbuf.errors import ProtocolError, RequestError
from diskbuf.wire import (
    DRAIN_BYTES_MAX,
    INIT_MAGIC,
    OPTION_BYTES_MAX,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    Command,
    Export,
    NbdError,
    Negotiation,
    OptionReply,
    Request,
    decode_request,
    encode_reply,
    export_flags,
    validate_request,
)

DISK = Export(1 << 20, export_flags(read_only=False))
EXPORTS = {"disk": DISK, "größe": Export(512, export_flags(read_only=True))}
CLIENT_FLAGS = struct.pack(">I", 3)


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">QII", OPTION_MAGIC, number, len(data)) + data


def info(name: bytes, *requests: int) -> bytes:
    return struct.pack(f">I{len(name)}sH{len(requests)}H", len(name), name, len(requests), *requests)


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    yield from (data[i : i + 1] for i in range(len(data)))


def negotiate(data: bytes, split: Callable[[bytes], Iterator[bytes]] = whole) -> tuple[Negotiation, bytes]:
    negotiation = Negotiation(EXPORTS)
    replies = b""
    left = list(split(data))
    while left and not negotiation.finished:
        replies += negotiation.receive(left.pop(0))
    return negotiation, replies


def parse_replies(data: bytes) -> list[tuple[int, int, bytes]]:
    replies = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == OPTION_REPLY_MAGIC
        replies.append((number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


def test_greeting() -> None:
    assert Negotiation.greeting == struct.pack(">QQH", INIT_MAGIC, OPTION_MAGIC, 3)


@pytest.mark.parametrize("split", [whole, byte_by_byte])
def test_list_info_go(split: Callable[[bytes], Iterator[bytes]]) -> None:
    sent = CLIENT_FLAGS + option(3) + option(6, info("größe".encode(), 3)) + option(7, info(b"disk", 3, 0))
    negotiation, replies = negotiate(sent, split)
    assert negotiation.chosen == "disk"
    assert negotiation.tail == b""
    block_size = struct.pack(">HIII", 3, 1, 4096, 32 << 20)
    assert parse_replies(replies) == [
        (3, OptionReply.SERVER, b"\0\0\0\4disk"),
        (3, OptionReply.SERVER, b"\0\0\0\7" + "größe".encode()),
        (3, OptionReply.ACK, b""),
        (6, OptionReply.INFO, struct.pack(">HQH", 0, 512, 0x16F)),
        (6, OptionReply.INFO, block_size),
        (6, OptionReply.ACK, b""),
        (7, OptionReply.INFO, struct.pack(">HQH", 0, 1 << 20, 0x16D)),
        (7, OptionReply.INFO, block_size),
        (7, OptionReply.ACK, b""),
    ]


def test_what_follows_the_choice_is_left_alone() -> None:
    negotiation, _ = negotiate(CLIENT_FLAGS + option(7, info(b"disk")) + b"first request")
    assert negotiation.tail == b"first request"


@pytest.mark.parametrize(("flags", "padding"), [(1, 124), (3, 0)])
@pytest.mark.parametrize("split", [whole, byte_by_byte])
def test_export_name(split: Callable[[bytes], Iterator[bytes]], flags: int, padding: int) -> None:
    negotiation, replies = negotiate(struct.pack(">I", flags) + option(1, b"disk"), split)
    assert negotiation.chosen == "disk"
    assert replies == struct.pack(">QH", 1 << 20, 0x16D) + bytes(padding)


def test_abort() -> None:
    negotiation, replies = negotiate(CLIENT_FLAGS + option(2, b"whatever"))
    assert negotiation.aborted
    assert negotiation.chosen is None
    assert parse_replies(replies) == [(2, OptionReply.ACK, b"")]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (option(5), OptionReply.ERR_UNSUP),
        (option(8), OptionReply.ERR_UNSUP),
        (option(9, bytes(20)), OptionReply.ERR_UNSUP),
        (option(10, bytes(20)), OptionReply.ERR_UNSUP),
        (option(0xFFFFFFFF), OptionReply.ERR_UNSUP),
        (option(3, b"x"), OptionReply.ERR_INVALID),
        (option(7, info(b"absent")), OptionReply.ERR_UNKNOWN),
        (option(6, info(b"")), OptionReply.ERR_UNKNOWN),
        (option(7), OptionReply.ERR_INVALID),
        (option(7, info(b"disk") + b"x"), OptionReply.ERR_INVALID),
        (option(7, info(b"disk", 3)[:-2]), OptionReply.ERR_INVALID),
        (option(7, struct.pack(">IH", 0xFFFFFFFF, 0)), OptionReply.ERR_INVALID),
        (option(7, info(b"\xff\xfe")), OptionReply.ERR_INVALID),
        (option(7, info(b"x" * 4097)), OptionReply.ERR_INVALID),
    ],
)
def test_refused_option_leaves_the_negotiation_going(sent: bytes, expected: OptionReply) -> None:
    negotiation, replies = negotiate(CLIENT_FLAGS + sent + option(7, info(b"disk")))
    assert parse_replies(replies)[0][1] == expected
    assert negotiation.chosen == "disk"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (struct.pack(">I", 4), "client flags are 0x4"),
        (CLIENT_FLAGS + b"GET / HTTP/1.1\r\n", "option magic"),
        (
            CLIENT_FLAGS + struct.pack(">QII", OPTION_MAGIC, 3, OPTION_BYTES_MAX + 1),
            "option 3 has 16385 bytes",
        ),
        (CLIENT_FLAGS + option(1, b"absent"), "'absent'"),
        (CLIENT_FLAGS + option(1, b"\xff"), "isn't served here"),
    ],
)
@pytest.mark.parametrize("split", [whole, byte_by_byte])
def test_garbage_ends_the_connection(
    split: Callable[[bytes], Iterator[bytes]], sent: bytes, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        negotiate(sent, split)


@given(st.binary(max_size=200))
def test_random_bytes_do_no_harm(data: bytes) -> None:
    for sent in (data, CLIENT_FLAGS + data, CLIENT_FLAGS + option(7, data)):
        try:
            negotiate(sent)
        except ProtocolError:
            continue


def test_request_and_reply() -> None:
    header = struct.pack(">IHHQQI", 0x25609513, 1, 6, 2**64 - 1, 4096, 512)
    assert decode_request(header) == Request(1, 6, 2**64 - 1, 4096, 512)
    assert encode_reply(2**64 - 1, NbdError.EIO) == bytes.fromhex("67446698 00000005") + b"\xff" * 8
    with pytest.raises(ProtocolError, match="request magic is 0x00000000"):
        decode_request(bytes(28))


def test_only_writes_have_payloads() -> None:
    assert [command for command in range(10) if Request(0, command, 0, 0, 8).payload_bytes] == [Command.WRITE]


SIZE = 1 << 20


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length"),
    [
        (Command.READ, 0, 0, 1),
        (Command.READ, 1, SIZE - 1, 1),
        (Command.WRITE, 1, 0, SIZE),
        (Command.FLUSH, 0, 0, 0),
        (Command.FLUSH, 1, 0, 0),
        (Command.TRIM, 1, 512, SIZE - 512),
        (Command.WRITE_ZEROES, 3, 3, 5),
    ],
)
def test_gate_lets_pass(command: int, flags: int, offset: int, length: int) -> None:
    validate_request(Request(flags, command, 0, offset, length), SIZE, read_only=False)


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "code"),
    [
        (Command.READ, 0, 0, 0, NbdError.EINVAL),
        (Command.READ, 0, SIZE, 1, NbdError.EINVAL),
        (Command.READ, 0, 2**64 - 1, 2**32 - 1, NbdError.EINVAL),
        (Command.READ, 2, 0, 1, NbdError.EINVAL),
        (Command.READ, 4, 0, 1, NbdError.EINVAL),
        (Command.WRITE, 0, SIZE - 1, 2, NbdError.ENOSPC),
        (Command.WRITE, 2, 0, 1, NbdError.EINVAL),
        (Command.WRITE_ZEROES, 0, SIZE, 1, NbdError.ENOSPC),
        (Command.WRITE_ZEROES, 16, 0, 1, NbdError.EINVAL),
        (Command.TRIM, 0, SIZE, 1, NbdError.EINVAL),
        (Command.FLUSH, 0, 1, 0, NbdError.EINVAL),
        (Command.FLUSH, 0, 0, 1, NbdError.EINVAL),
        (5, 0, 0, 1, NbdError.EINVAL),
        (7, 0, 0, 1, NbdError.EINVAL),
        (0xFFFF, 0, 0, 1, NbdError.EINVAL),
    ],
)
def test_gate_refuses(command: int, flags: int, offset: int, length: int, code: NbdError) -> None:
    with pytest.raises(RequestError) as caught:
        validate_request(Request(flags, command, 0, offset, length), SIZE, read_only=False)
    assert caught.value.code == code


@pytest.mark.parametrize("command", [Command.READ, Command.WRITE])
def test_gate_refuses_too_long_payloads_on_any_disk(command: Command) -> None:
    with pytest.raises(RequestError, match=f"more than {PAYLOAD_BYTES_MAX}"):
        validate_request(Request(0, command, 0, 0, PAYLOAD_BYTES_MAX + 1), 1 << 40, read_only=False)
    assert DRAIN_BYTES_MAX > PAYLOAD_BYTES_MAX


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
def test_gate_refuses_writing_to_a_read_only_export(command: Command) -> None:
    with pytest.raises(RequestError) as caught:
        validate_request(Request(0, command, 0, 0, 512), SIZE, read_only=True)
    assert caught.value.code == NbdError.EPERM


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_whatever_passes_the_gate_is_within_the_disk(
    flags: int, command: int, offset: int, length: int
) -> None:
    for size_bytes in (1, SIZE, 2**63 - 1):
        try:
            validate_request(Request(flags, command % 10, 0, offset, length), size_bytes, read_only=False)
        except RequestError:
            continue
        assert offset + length <= size_bytes
