"""Clients that wait for each answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from remuslike.bench.requests import KINDS, ask, kind_of, wanted_at

ANSWERS = {
    "write": b"+OK\r\n",
    "transaction": b"+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n$-1\r\n:7\r\n+OK\r\n",
}


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_is_whole_at_its_end_and_not_before(name: str) -> None:
    answer = ANSWERS[name]
    cuts = range(len(answer) + 1)
    assert [KINDS[name].is_whole(answer[:cut]) for cut in cuts] == [cut == len(answer) for cut in cuts]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("write", b"-OOM command not allowed\r\n"),
        ("write", b"+PONG\r\n"),
        ("transaction", b"+OK\r\n-ERR unknown\r\n"),
        ("transaction", ANSWERS["transaction"].replace(b":7", b"-ERR not an integer")),
    ],
)
def test_any_other_answer_is_an_error(name: str, answer: bytes) -> None:
    with pytest.raises(ValueError, match="the server answers"):
        KINDS[name].is_whole(answer)


@pytest.fixture
def streams() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(3)]
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
        yield pairs


def serve(end: socket.socket, answer: bytes) -> None:
    """Answers each request in two pieces, until the client is gone."""
    while end.recv(4096):
        end.sendall(answer[:3])
        end.sendall(answer[3:])


def test_every_answer_is_timed(streams: list[tuple[socket.socket, socket.socket]]) -> None:
    threads = [threading.Thread(target=serve, args=(there, b"+OK\r\n")) for _, there in streams]
    for thread in threads:
        thread.start()
    try:
        found = ask([here for here, _ in streams], KINDS["write"], seconds=0.05)
    finally:
        for here, _ in streams:
            here.close()
        for thread in threads:
            thread.join()
    assert len(found.latencies_ms) >= len(found.at_s) >= len(streams)
    assert all(latency >= 0 for latency in found.latencies_ms)
    assert found.at_s == sorted(found.at_s)
    assert found.at_s[-1] <= 0.05


def test_several_go_together_and_each_of_them_counts(
    streams: list[tuple[socket.socket, socket.socket]],
) -> None:
    kind = kind_of("write*3")
    assert kind.request(2) == b"".join(KINDS["write"].request(number) for number in (6, 7, 8))
    answers = [b"+OK\r\n" * 2, b"+OK\r\n" * 3, b"+OK\r\n+OK\r"]
    assert [kind.is_whole(answer) for answer in answers] == [False, True, False]
    here, there = streams[0]
    thread = threading.Thread(target=serve, args=(there, b"+OK\r\n" * 3))
    thread.start()
    try:
        found = ask([here], kind, seconds=0.05)
    finally:
        here.close()
        thread.join()
    assert len(found.latencies_ms) >= len(found.at_s) > 0
    assert [len(found.at_s) % 3, len(found.latencies_ms) % 3] == [0, 0]


@pytest.mark.parametrize("name", ["read", "write*many"])
def test_an_unknown_kind_is_an_error(name: str) -> None:
    with pytest.raises((KeyError, ValueError)):
        kind_of(name)


def test_a_load_comes_and_goes() -> None:
    shares = (0, 0.3, 0.34, 0.66, 0.67, 0.999, 1, 1.2)
    assert [wanted_at(share, (1, 64, 2)) for share in shares] == [1, 1, 64, 64, 2, 2, 0, 0]


def test_only_so_many_ask_as_a_step_says(streams: list[tuple[socket.socket, socket.socket]]) -> None:
    for _, there in streams[1:]:
        there.sendall(b"+OK\r\n")
    found = ask([here for here, _ in streams], KINDS["write"], seconds=1e-9, steps=(2,))
    assert found.at_s == [], "the time is over"
    assert len(found.latencies_ms) == 2, "but they were asked"
    assert [_has_data(there) for _, there in streams] == [False, True, True]


def _has_data(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        return bool(end.recv(4096))
    except BlockingIOError:
        return False


def test_a_server_that_closes_is_an_error(streams: list[tuple[socket.socket, socket.socket]]) -> None:
    for _, there in streams:
        there.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed a connection"):
        ask([here for here, _ in streams], KINDS["write"], seconds=5)
