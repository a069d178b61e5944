"""The agent by itself, in this process; what it does with commands is in test_lab_lab."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from remuslike.lab.agent import Agent
from remuslike.lab.wire import Decoder, Frame, Kind, WireError, encode


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Agent]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Agent(theirs.fileno())


def test_it_is_ready_and_ends_when_it_is_told(ends: tuple[socket.socket, Agent]) -> None:
    ours, agent = ends
    ours.sendall(encode(Frame(Kind.KILL)) + encode(Frame(Kind.END)))
    agent.serve()
    assert list(Decoder().feed(ours.recv(100))) == [Frame(Kind.READY)]


def test_it_ends_when_nobody_is_there(ends: tuple[socket.socket, Agent]) -> None:
    ours, agent = ends
    ours.shutdown(socket.SHUT_WR)
    agent.serve()


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"GET / HTTP/1.1", "kind is 71"),
        (encode(Frame(Kind.RUN, b"{}")), "RUN can't be understood"),
        (encode(Frame(Kind.EXIT)), "EXIT is not for the agent"),
    ],
)
def test_it_ends_at_what_is_no_request(
    ends: tuple[socket.socket, Agent], received: bytes, message: str
) -> None:
    ours, agent = ends
    ours.sendall(received)
    with pytest.raises(WireError, match=message):
        agent.serve()
