"""The negotiation against the specification: numbers and layouts here are its own, not the module's."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from diskbuf.errors import ProtocolError
from diskbuf.negotiation import (
    OPTION_BYTES_MAX,
    OPTION_SKIPPED_BYTES_MAX,
    OPTIONS_MAX,
    Negotiation,
    OptionReply,
    Tls,
)
from diskbuf.wire import Export, Terms, export_flags

EXPORT_NAME, ABORT, LIST, PEEK_EXPORT, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META, EXTENDED = (
    range(1, 12)
)
ACK, SERVER, INFORMATION, META_CONTEXT = range(1, 5)

DISK = Export(1 << 20, export_flags(read_only=False))
LARGE_BLOCKS = Export(1 << 20, export_flags(read_only=True), 512, 65536, 1 << 20, "Fräulein Müllers disk")
EXPORTS = {"disk": DISK, "größe": LARGE_BLOCKS}
FLAGS, READ_ONLY_FLAGS, DF = 0xD6D, 0xD6F, 0x80
CLIENT_FLAGS = struct.pack(">I", 3)


def option(number: int, data: bytes = b"") -> bytes:
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def string(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def info(name: bytes, *requests: int) -> bytes:
    return string(name) + struct.pack(f">H{len(requests)}H", len(requests), *requests)


def meta(name: bytes, *queries: bytes) -> bytes:
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    yield from (data[i : i + 1] for i in range(len(data)))


SPLITS = pytest.mark.parametrize("split", [whole, byte_by_byte])
Split = Callable[[bytes], Iterator[bytes]]


class Client:
    """Feeds a negotiation and takes its replies apart."""

    def __init__(
        self,
        tls: Tls = Tls.NONE,
        *,
        exports: dict[str, Export] = EXPORTS,
        flags: bytes = CLIENT_FLAGS,
        split: Split = whole,
    ) -> None:
        self.negotiation = Negotiation(exports, tls)
        self.split = split
        assert self.send(flags) == b""

    def send(self, data: bytes) -> bytes:
        return b"".join(self.negotiation.receive(part) for part in self.split(data))

    def ask(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """The replies to an option: their types and data."""
        received = self.send(option(number, data))
        replies = []
        while received:
            magic, answered, kind, length = struct.unpack_from(">QIII", received)
            assert (magic, answered) == (0x3E889045565A9, number)
            replies.append((kind, received[20 : 20 + length]))
            received = received[20 + length :]
        return replies

    def error(self, number: int, data: bytes = b"") -> OptionReply:
        """The error that an option is refused with, which comes alone and says why."""
        ((kind, message),) = self.ask(number, data)
        assert kind >> 31
        assert message.decode()
        return OptionReply(kind)

    @property
    def terms(self) -> Terms:
        assert self.negotiation.terms is not None
        return self.negotiation.terms


def test_greeting() -> None:
    assert Negotiation.greeting == b"NBDMAGICIHAVEOPT\0\3"


@SPLITS
def test_list_tells_names_and_descriptions(split: Split) -> None:
    assert Client(split=split).ask(LIST) == [
        (SERVER, string(b"disk")),
        (SERVER, string("größe".encode()) + "Fräulein Müllers disk".encode()),
        (ACK, b""),
    ]


@SPLITS
def test_info_then_go(split: Split) -> None:
    client = Client(split=split)
    read_only = struct.pack(">HQH", 0, 1 << 20, READ_ONLY_FLAGS)
    assert client.ask(INFO, info("größe".encode(), 3)) == [
        (INFORMATION, read_only),
        (INFORMATION, struct.pack(">HIII", 3, 512, 65536, 1 << 20)),
        (ACK, b""),
    ]
    assert not client.negotiation.finished
    assert client.ask(GO, info(b"disk")) == [
        (INFORMATION, struct.pack(">HQH", 0, 1 << 20, FLAGS)),
        (INFORMATION, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (ACK, b""),
    ]
    assert client.negotiation.finished
    assert client.negotiation.chosen == "disk"
    assert client.terms == Terms("disk", DISK)


@pytest.mark.parametrize("number", [INFO, GO])
def test_name_and_description_come_on_request(number: int) -> None:
    name, description = (1, "größe".encode()), (2, "Fräulein Müllers disk".encode())
    wanted = [struct.pack(">H", kind) + text for kind, text in (name, description)]
    # Unknown requests are ignored.
    replies = Client().ask(number, info("größe".encode(), 2, 77, 0, 3, 1))
    assert [data for _, data in replies[2:-1]] == wanted
    assert replies[-1] == (ACK, b"")


def test_no_description_is_no_information() -> None:
    assert len(Client().ask(INFO, info(b"disk", 2))) == 3


def test_what_follows_the_choice_is_left_alone() -> None:
    client = Client()
    client.send(option(GO, info(b"disk")) + b"first request")
    assert client.negotiation.tail == b"first request"


def test_options_may_come_together_with_the_flags() -> None:
    negotiation = Negotiation(EXPORTS)
    replies = negotiation.receive(CLIENT_FLAGS + option(LIST) + option(GO, info(b"disk")))
    assert replies.count(struct.pack(">Q", 0x3E889045565A9)) == 6
    assert negotiation.chosen == "disk"


@pytest.mark.parametrize(("flags", "padding"), [(0, 124), (1, 124), (2, 0), (3, 0)])
@SPLITS
def test_export_name(split: Split, flags: int, padding: int) -> None:
    client = Client(flags=struct.pack(">I", flags), split=split)
    assert client.send(option(EXPORT_NAME, b"disk")) == struct.pack(">QH", 1 << 20, FLAGS) + bytes(padding)
    assert client.terms == Terms("disk", DISK)


@pytest.mark.parametrize("tls", Tls)
def test_abort_ignores_its_data(tls: Tls) -> None:
    client = Client(tls)
    assert client.ask(ABORT, b"whatever") == [(ACK, b"")]
    assert client.negotiation.aborted
    assert client.negotiation.chosen is None


def test_empty_name_means_the_only_export() -> None:
    client = Client(exports={"disk": DISK})
    assert (INFORMATION, b"\0\1disk") in client.ask(INFO, info(b"", 1))
    client.ask(STRUCTURED_REPLY)
    client.ask(SET_META, meta(b"", b"base:allocation"))
    client.ask(GO, info(b"disk"))
    assert client.terms == Terms("disk", DISK, True, {1: "base:allocation"})


def test_empty_name_may_be_an_export_among_others() -> None:
    client = Client(exports={"disk": DISK, "": LARGE_BLOCKS})
    client.ask(GO, info(b""))
    assert client.terms == Terms("", LARGE_BLOCKS)


@pytest.mark.parametrize(
    ("number", "data", "expected"),
    [
        (PEEK_EXPORT, b"", OptionReply.ERR_UNSUP),
        (EXTENDED, b"", OptionReply.ERR_UNSUP),
        (0, b"", OptionReply.ERR_UNSUP),
        (0xFFFFFFFF, b"data", OptionReply.ERR_UNSUP),
        (0xFFFFFFFF, bytes(OPTION_BYTES_MAX + 1), OptionReply.ERR_UNSUP),
        (LIST, b"x", OptionReply.ERR_INVALID),
        (LIST, bytes(100_000), OptionReply.ERR_TOO_BIG),
        (STARTTLS, b"", OptionReply.ERR_POLICY),
        (STARTTLS, b"x", OptionReply.ERR_INVALID),
        (STRUCTURED_REPLY, b"x", OptionReply.ERR_INVALID),
        (GO, info(b"absent"), OptionReply.ERR_UNKNOWN),
        (INFO, info(b""), OptionReply.ERR_UNKNOWN),
        (INFO, info(b"disk\0"), OptionReply.ERR_UNKNOWN),
        (GO, b"", OptionReply.ERR_INVALID),
        (GO, string(b"disk"), OptionReply.ERR_INVALID),
        (GO, string(b"disk") + b"\0", OptionReply.ERR_INVALID),
        (GO, info(b"disk") + b"x", OptionReply.ERR_INVALID),
        (GO, info(b"disk", 3)[:-2], OptionReply.ERR_INVALID),
        (GO, info(b"disk", 3) + b"\0\0", OptionReply.ERR_INVALID),
        (GO, struct.pack(">IH", 0xFFFFFFFF, 0), OptionReply.ERR_INVALID),
        (GO, info(b"\xff\xfe"), OptionReply.ERR_INVALID),
        (GO, info(b"x" * 4097), OptionReply.ERR_INVALID),
        (GO, info(b"disk", *range(9000)), OptionReply.ERR_TOO_BIG),
        (LIST_META, b"", OptionReply.ERR_INVALID),
        (LIST_META, string(b"disk"), OptionReply.ERR_INVALID),
        (LIST_META, meta(b"disk") + b"x", OptionReply.ERR_INVALID),
        (LIST_META, meta(b"disk", b"base:")[:-1], OptionReply.ERR_INVALID),
        (LIST_META, meta(b"disk", b"x" * 4097), OptionReply.ERR_INVALID),
        (LIST_META, string(b"disk") + b"\xff\xff\xff\xff", OptionReply.ERR_INVALID),
        (LIST_META, meta(b"absent"), OptionReply.ERR_UNKNOWN),
        (
            SET_META,
            meta(b"disk", b"base:allocation"),
            OptionReply.ERR_INVALID,
        ),  # not without structured replies
        (SET_META, meta(b"disk", b"x" * OPTION_BYTES_MAX), OptionReply.ERR_TOO_BIG),
    ],
)
@SPLITS
def test_refused_option_leaves_the_negotiation_going(
    split: Split, number: int, data: bytes, expected: OptionReply
) -> None:
    client = Client(split=split)
    assert client.error(number, data) == expected
    client.ask(GO, info(b"disk"))
    assert client.terms == Terms("disk", DISK)


@pytest.mark.parametrize(
    ("flags", "sent", "message"),
    [
        (4, b"", "client flags are 0x4"),
        (0x25609513, b"", "client flags are 0x25609513"),  # a request, as after the oldstyle greeting
        (3, b"GET / HTTP/1.1\r\n", "option magic"),
        (
            3,
            struct.pack(">8sII", b"IHAVEOPT", LIST, OPTION_SKIPPED_BYTES_MAX + 1),
            "option 3 has 33554433 bytes",
        ),
        (3, option(EXPORT_NAME, b"absent"), "'absent'"),
        (3, option(EXPORT_NAME, b"\xff"), "isn't served here"),
        (3, struct.pack(">8sII", b"IHAVEOPT", EXPORT_NAME, 4097), "export name has 4097 bytes"),
        (0, option(LIST), "fixed newstyle"),
        (2, option(GO, info(b"disk")), "fixed newstyle"),
        (3, option(LIST) * (OPTIONS_MAX + 1), f"more than {OPTIONS_MAX} options"),
    ],
)
@SPLITS
def test_what_ends_the_connection(split: Split, flags: int, sent: bytes, message: str) -> None:
    negotiation = Negotiation(EXPORTS)
    with pytest.raises(ProtocolError, match=message):
        for part in split(struct.pack(">I", flags) + sent):
            negotiation.receive(part)


def test_a_skipped_option_is_not_remembered() -> None:
    client = Client()
    client.send(struct.pack(">8sII", b"IHAVEOPT", 99, OPTION_SKIPPED_BYTES_MAX))
    piece = bytes(1 << 16)
    for _ in range(OPTION_SKIPPED_BYTES_MAX // len(piece) - 1):
        assert client.send(piece) == b""
        assert client.negotiation.tail == b""
    replies = client.send(piece + option(ABORT))
    assert replies.startswith(struct.pack(">QII", 0x3E889045565A9, 99, OptionReply.ERR_UNSUP))
    assert client.negotiation.aborted


# Structured replies and metadata contexts


@pytest.mark.parametrize("choose", [option(GO, info(b"disk")), option(EXPORT_NAME, b"disk")])
def test_df_is_offered_with_structured_replies_only(choose: bytes) -> None:
    for structured in (False, True):
        client = Client()
        if structured:
            assert client.ask(STRUCTURED_REPLY) == [(ACK, b"")]
        flags = FLAGS | DF if structured else FLAGS
        assert struct.pack(">QH", 1 << 20, flags) in client.send(choose)
        assert client.terms == Terms("disk", DISK, structured)
        assert client.terms.flags == flags


@pytest.mark.parametrize(
    ("queries", "listed", "selected"),
    [
        ([], True, False),
        ([b"base:"], True, False),
        ([b"base:allocation"], True, True),
        ([b"qemu:dirty-bitmap:x", b"base:allocation", b"base:allocation"], True, True),
        ([b"base:allocation", b"base:"], True, True),
        ([b"base:nothing"], False, False),
        ([b"base:allocationx"], False, False),
        ([b"BASE:allocation"], False, False),
        ([b"x-unknown:"], False, False),
        ([b"base"], False, False),
        ([b"\xff", b""], False, False),
    ],
)
def test_queries(queries: list[bytes], listed: bool, selected: bool) -> None:
    client = Client()
    client.ask(STRUCTURED_REPLY)
    # In a list the identifier is reserved, and 0.
    expected = [(META_CONTEXT, b"\0\0\0\0base:allocation")] if listed else []
    assert client.ask(LIST_META, meta(b"disk", *queries)) == [*expected, (ACK, b"")]
    expected = [(META_CONTEXT, b"\0\0\0\1base:allocation")] if selected else []
    assert client.ask(SET_META, meta(b"disk", *queries)) == [*expected, (ACK, b"")]
    client.ask(GO, info(b"disk"))
    assert client.terms.contexts == ({1: "base:allocation"} if selected else {})


def test_contexts_may_be_listed_without_structured_replies() -> None:
    assert len(Client().ask(LIST_META, meta(b"disk"))) == 2


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (SET_META, meta(b"disk")),
        (SET_META, meta(b"disk", b"base:other")),
        (SET_META, meta(b"absent", b"base:allocation")),
        (SET_META, meta(b"disk", b"base:allocation")[:-1]),
        (SET_META, bytes(OPTION_BYTES_MAX + 1)),
        (SET_META, meta("größe".encode(), b"base:allocation")),
    ],
)
def test_a_later_selection_replaces_even_if_it_fails(number: int, data: bytes) -> None:
    client = Client()
    client.ask(STRUCTURED_REPLY)
    client.ask(SET_META, meta(b"disk", b"base:allocation"))
    client.ask(number, data)
    client.ask(GO, info(b"disk"))
    assert client.terms == Terms("disk", DISK, True)


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (LIST_META, meta(b"disk", b"x:")),
        (LIST_META, b"malformed"),
        (INFO, info("größe".encode())),
        (GO, info(b"absent")),
        (STRUCTURED_REPLY, b""),
    ],
)
def test_other_options_leave_the_selection_alone(number: int, data: bytes) -> None:
    client = Client()
    client.ask(STRUCTURED_REPLY)
    client.ask(SET_META, meta(b"disk", b"base:allocation"))
    client.ask(number, data)
    client.ask(GO, info(b"disk"))
    assert client.terms == Terms("disk", DISK, True, {1: "base:allocation"})


@pytest.mark.parametrize(
    "choose", [option(GO, info("größe".encode())), option(EXPORT_NAME, "größe".encode())]
)
def test_contexts_of_another_export_are_dropped(choose: bytes) -> None:
    client = Client()
    client.ask(STRUCTURED_REPLY)
    client.ask(SET_META, meta(b"disk", b"base:allocation"))
    client.send(choose)
    assert client.terms == Terms("größe", LARGE_BLOCKS, True)


# TLS


@pytest.mark.parametrize("tls", [Tls.OFFERED, Tls.REQUIRED])
def test_tls_begins_a_new_negotiation(tls: Tls) -> None:
    client = Client(tls)
    if tls is Tls.OFFERED:
        client.ask(STRUCTURED_REPLY)
        client.ask(SET_META, meta(b"disk", b"base:allocation"))
    assert client.ask(STARTTLS) == [(ACK, b"")]
    assert client.negotiation.start_tls
    assert not client.negotiation.finished
    client.negotiation.tls_started()
    assert not client.negotiation.start_tls
    assert client.error(STARTTLS) == OptionReply.ERR_INVALID
    assert client.error(SET_META, meta(b"disk", b"base:allocation")) == OptionReply.ERR_INVALID
    client.ask(GO, info(b"disk"))
    assert client.terms == Terms("disk", DISK)


@pytest.mark.parametrize("number", [0, LIST, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META, EXTENDED, 99])
@pytest.mark.parametrize("length", [0, OPTION_BYTES_MAX + 1])
def test_required_tls_comes_first(number: int, length: int) -> None:
    client = Client(Tls.REQUIRED)
    assert client.error(number, bytes(length)) == OptionReply.ERR_TLS_REQD
    client.ask(STARTTLS)
    client.negotiation.tls_started()
    assert client.ask(number, bytes(length))[-1][0] != OptionReply.ERR_TLS_REQD


def test_required_tls_ends_clients_that_name_an_export_without() -> None:
    with pytest.raises(ProtocolError, match="NBD_OPT_EXPORT_NAME without TLS"):
        Client(Tls.REQUIRED).send(option(EXPORT_NAME, b"disk"))


@pytest.mark.parametrize("tls", Tls)
@pytest.mark.parametrize("flags", [0, 2])
def test_tls_needs_fixed_newstyle(tls: Tls, flags: int) -> None:
    with pytest.raises(ProtocolError, match="fixed newstyle"):
        Client(tls, flags=struct.pack(">I", flags)).send(option(STARTTLS))


def test_malformed_start_of_tls_is_refused() -> None:
    client = Client(Tls.REQUIRED)
    assert client.error(STARTTLS, b"x") == OptionReply.ERR_INVALID
    assert not client.negotiation.start_tls


@pytest.mark.parametrize("injected", [b"\x16", option(STRUCTURED_REPLY), option(GO, info(b"disk"))])
def test_nothing_in_the_clear_follows_starttls(injected: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"{len(injected)} bytes follow NBD_OPT_STARTTLS"):
        Client(Tls.OFFERED).send(option(STARTTLS) + injected)


@pytest.mark.parametrize("choose", [option(GO, info(b"disk")), option(EXPORT_NAME, b"disk")])
def test_offered_tls_may_be_done_without(choose: bytes) -> None:
    client = Client(Tls.OFFERED)
    client.send(choose)
    assert client.negotiation.chosen == "disk"
