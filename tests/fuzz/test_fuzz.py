from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.certificate import make_certificate

from diskbuf.errors import ProtocolError, RequestError
from diskbuf.extents import Bytes
from diskbuf.negotiation import Negotiation, Tls
from diskbuf.wire import Request, Terms, validate_request

from .conversation import Conversation, check_conversation, check_crowd
from .grammar import BLOCK_STATUS, CLIENT_FLAGS, LIST, READ, SIZE, WRITE, Draft, option
from .oracle import Client, answers
from .properties import Gate, check_gate, check_negotiation
from .served import RecordingStore, Served, contexts
from .targets import PURE, SERVED, against, pure, run


@pytest.mark.parametrize("target", PURE)
def test_the_pure_part(target: str) -> None:
    run(pure()[target], examples=400)


@pytest.mark.parametrize("target", SERVED)
def test_the_running_server(target: str) -> None:
    with Served() as served:
        run(against(served)[target], examples=100)
        # Whatever its clients did, it serves the next one.
        check_conversation(served, Conversation("held", True, True, [Draft(0, READ, 0, SIZE)]), [])


@pytest.mark.parametrize("target", SERVED)
def test_the_running_server_over_tls(target: str, tmp_path: Path) -> None:
    with Served(contexts(*make_certificate(tmp_path))) as served:
        run(against(served)[target], examples=20)
        check_conversation(served, Conversation("held", True, True, [Draft(0, READ, 0, SIZE)]), [])


# A checker that can't fail is a defect: these are broken on purpose, each in one place.


def lets_all_pass(request: Request, terms: Terms) -> None:
    pass


def forgets_the_length(request: Request, terms: Terms) -> None:
    if request.offset < terms.export.size_bytes and request.length:
        request = request._replace(length=1)
    validate_request(request, terms)


def answers_with_another_error(request: Request, terms: Terms) -> None:
    try:
        validate_request(request, terms)
    except RequestError as error:
        raise RequestError(5, str(error)) from None


@pytest.mark.parametrize("gate", [lets_all_pass, forgets_the_length, answers_with_another_error])
def test_a_broken_gate_is_caught(gate: Gate) -> None:
    with pytest.raises(AssertionError):
        check_gate(Draft(0, READ, SIZE - 1, 2), Client(), gate)
    check_gate(Draft(0, WRITE, 0, 1), Client(), gate)


class Silent(Negotiation):
    """Takes an option and doesn't answer it."""

    def receive(self, data: bytes) -> bytes:
        super().receive(data)
        return b""


class Hoarding(Negotiation):
    """Never forgets."""

    @property
    def tail(self) -> bytes:
        return bytes(1 << 20)


class Talkative(Negotiation):
    """Answers what wasn't asked."""

    def receive(self, data: bytes) -> bytes:
        return super().receive(data) * 2


class Crashing(Negotiation):
    """Meets what it didn't expect."""

    def receive(self, data: bytes) -> bytes:
        try:
            return super().receive(data)
        except ProtocolError as error:
            raise UnicodeDecodeError("utf-8", data, 0, 1, str(error)) from error


@pytest.mark.parametrize("broken", [Silent, Hoarding, Talkative])
def test_a_broken_negotiation_is_caught(broken: Callable[..., Negotiation]) -> None:
    with pytest.raises(AssertionError):
        check_negotiation(CLIENT_FLAGS + option(LIST), [], Tls.NONE, broken)


def test_a_crash_is_caught() -> None:
    with pytest.raises(UnicodeDecodeError):
        check_negotiation(b"\xff\xff\xff\xff", [], Tls.NONE, Crashing)


def test_a_crowd_notices_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with Served() as served:
        store = served.stores["öffen"]
        write, written = store.write, set[int]()

        def forget_the_second(offset: int, pieces: Sequence[Bytes]) -> None:
            if offset not in written:
                written.add(offset)
                write(offset, pieces)

        monkeypatch.setattr(store, "write", forget_the_second)
        twice = [Draft(0, WRITE, 0, 600), Draft(0, WRITE, 0, 600)]
        with pytest.raises(AssertionError):
            check_crowd(served, "öffen", True, [twice, twice])


def chunk(kind: int, payload: bytes, *, cookie: int = 0, done: int = 1) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(payload)) + payload


def data(offset: int, length: int, *, done: int = 1) -> bytes:
    return chunk(1, struct.pack(">Q", offset) + bytes(length), done=done)


def simple(error: int = 0, *, cookie: int = 0) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


A_READ, A_WHOLE_READ, A_STATUS = Draft(0, READ, 10, 4), Draft(4, READ, 10, 4), Draft(8, BLOCK_STATUS, 10, 4)


@pytest.mark.parametrize(
    ("draft", "stream"),
    [
        (A_READ, data(10, 4)),
        (A_READ, data(12, 2, done=0) + data(10, 2)),
        (A_READ, chunk(2, struct.pack(">QI", 10, 4))),
        (A_READ, data(10, 2, done=0) + chunk(0x8002, struct.pack(">IHQ", 5, 0, 12))),
        (A_STATUS, chunk(5, struct.pack(">III", 1, 4, 3))),
        (Draft(0, WRITE, 10, 4), simple()),
    ],
)
def test_the_oracle_accepts_what_is_right(draft: Draft, stream: bytes) -> None:
    assert list(answers(stream, {0: draft}, Client(structured=True, contexts=True))) == [0]


@pytest.mark.parametrize(
    ("draft", "stream"),
    [
        (A_READ, data(10, 3)),  # too little
        (A_READ, data(10, 5)),  # too much
        (A_READ, data(10, 4)[:-1]),  # cut off
        (A_READ, data(10, 4, done=0)),  # without an end
        (A_READ, data(10, 4) * 2),  # twice
        (A_READ, data(10, 2, done=0) + data(11, 3)),  # overlapping
        (A_READ, simple()),  # in the old form
        (A_READ, chunk(0, b"")),  # success without data
        (A_READ, chunk(3, b"")),  # of an unknown type
        (A_READ, chunk(0x8001, struct.pack(">IH", 0, 0))),  # an error that is none
        (A_READ, chunk(0x8002, struct.pack(">IHQ", 5, 0, 99))),  # an error elsewhere
        (A_WHOLE_READ, data(10, 2, done=0) + data(12, 2)),  # fragmented
        (A_STATUS, chunk(5, struct.pack(">I", 1))),  # says nothing
        (A_STATUS, chunk(5, struct.pack(">III", 2, 4, 3))),  # of another context
        (A_STATUS, chunk(5, struct.pack(">IIIII", 1, 2, 3, 2, 0))),  # more than one
        (A_STATUS, chunk(5, struct.pack(">III", 1, 5, 3))),  # too long
    ],
)
def test_the_oracle_refuses_what_is_wrong(draft: Draft, stream: bytes) -> None:
    with pytest.raises(AssertionError):
        answers(stream, {0: draft}, Client(structured=True, contexts=True))


def test_the_oracle_refuses_chunks_that_were_not_negotiated() -> None:
    with pytest.raises(AssertionError):
        answers(data(10, 4), {0: A_READ}, Client())


def test_a_stray_access_is_noted() -> None:
    store = RecordingStore(read_only=True, views=True)
    with pytest.raises(AssertionError):
        store.read(SIZE - 1, memoryview(bytearray(2)))
    with pytest.raises(AssertionError):
        store.write(0, [b"x"])
    assert store.strays == [f"read of 2 bytes at {SIZE - 1}", "write of 1 bytes at 0"]


def test_what_a_server_leaves_behind_is_noted() -> None:
    with pytest.raises(AssertionError, match="descriptors are left"), ExitStack() as stack, Served():
        left, right = socket.socketpair()
        stack.callback(left.close)
        stack.callback(right.close)
