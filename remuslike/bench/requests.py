"""Clients that ask one thing at a time and wait for the answer: every answer's latency is kept.

    python -m remuslike.bench.requests HOST PORT CLIENTS SECONDS KIND

A process of its own, since it lives in the client's network namespace. It says "ready" when all connections
stand, begins when it is sent a line, and at the end prints one JSON object: `seconds`, `latencies_ms`, `at_s`
(when each answer came, of those in time). KIND is one of KINDS, or "write*N": N at a time, all of which are
sent before the first is answered. CLIENTS is a number, or several with commas between them: so many ask in
each of as many equal parts of the time.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

KEYS = 10_000
VALUE = b"v" * 64
CONNECT_LIMIT_S = 30.0
_DRAIN_S = 10.0
_RECEIVE_BYTES = 1 << 16


def encode(*words: bytes) -> bytes:
    """A command of the redis serialization protocol."""
    return b"".join((b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)))


def write_request(number: int) -> bytes:
    """One value is set."""
    return encode(b"SET", b"k:%d" % (number % KEYS), VALUE)


def transaction_request(number: int) -> bytes:
    """A customer is read, a counter goes up and an order is written, all or nothing."""
    return b"".join(
        (
            encode(b"MULTI"),
            encode(b"GET", b"customer:%d" % (number % KEYS)),
            encode(b"INCR", b"orders:%d" % (number % 100)),
            encode(b"SET", b"order:%d" % (number % KEYS), VALUE),
            encode(b"EXEC"),
        )
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """A request, and how one knows that its answer is whole: that begins and ends so. It counts `answers`
    times."""

    request: Callable[[int], bytes]
    begins: bytes
    ends: bytes
    answers: int = 1

    def is_whole(self, answer: bytes) -> bool:
        """Raises ValueError for an answer that isn't one to this request."""
        if not answer.startswith(self.begins[: len(answer)]) or b"\r\n-" in answer:
            raise ValueError(f"the server answers {answer[:120]!r}")
        return len(answer) >= len(self.begins) and answer.endswith(self.ends)


KINDS: Mapping[str, Kind] = {
    "write": Kind(write_request, b"+OK\r\n", b"+OK\r\n"),
    "transaction": Kind(transaction_request, b"+OK\r\n" + b"+QUEUED\r\n" * 3 + b"*3\r\n", b"+OK\r\n"),
}


def kind_of(name: str) -> Kind:
    """Of its name on the command line. Raises ValueError or KeyError."""
    base, _, count_text = name.partition("*")
    if not count_text:
        return KINDS[base]
    depth = int(count_text)
    one = KINDS["write"]

    def request(number: int) -> bytes:
        return b"".join(one.request(number * depth + each) for each in range(depth))

    return Kind(request, one.begins * depth, one.ends, depth)


@dataclass(slots=True)
class Asker:
    """One connection and the request that is under way on it."""

    stream: socket.socket
    asked_at: float = 0.0
    answer: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class Found:
    """What came of it: how long each answer was waited for, and when those came that came in time."""

    began: float
    latencies_ms: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    def note(self, asked_at: float, now: float, answers: int, *, in_time: bool) -> None:
        self.latencies_ms += [round((now - asked_at) * 1e3, 3)] * answers
        if in_time:
            self.at_s += [round(now - self.began, 3)] * answers


def ask(streams: list[socket.socket], kind: Kind, seconds: float, steps: Sequence[int] = ()) -> Found:
    """Keeps one request under way on each of `streams` for `seconds`; or on so many of them as each of the
    `steps` says, in as many equal parts of that time.

    What is unanswered by then is waited for: it says how long that takes at the end, and counts as nothing
    done. Raises OSError, ValueError.
    """
    numbers = count()
    with selectors.DefaultSelector() as selector:
        idle = [Asker(stream) for stream in streams]
        for asker in idle:
            selector.register(asker.stream, selectors.EVENT_READ, asker)
        found = Found(time.monotonic())
        until = found.began + seconds

        def begin(now: float) -> int:
            """As many as are wanted now; how many are under way."""
            wanted = wanted_at((now - found.began) / seconds, steps or (len(streams),))
            while idle and len(streams) - len(idle) < wanted:
                _begin(idle.pop(), kind.request(next(numbers)))
            return len(streams) - len(idle)

        under_way = begin(found.began)
        while under_way:
            events = selector.select(_DRAIN_S)
            if not events:
                raise TimeoutError(f"{under_way} requests are unanswered for {_DRAIN_S:g} s")
            for key, _ in events:
                asker = key.data
                data = asker.stream.recv(_RECEIVE_BYTES)
                if not data:
                    raise ConnectionError("the server closed a connection")
                asker.answer += data
                if not kind.is_whole(bytes(asker.answer)):
                    continue
                now = time.monotonic()
                found.note(asker.asked_at, now, kind.answers, in_time=now < until)
                idle.append(asker)
                under_way = begin(now)
    return found


def wanted_at(share: float, steps: Sequence[int]) -> int:
    """How many ask when this share of the time has passed."""
    return steps[int(share * len(steps))] if share < 1 else 0


def _begin(asker: Asker, request: bytes) -> None:
    asker.answer.clear()
    asker.asked_at = time.monotonic()
    asker.stream.sendall(request)


def main(host: str, port: str, clients: str, seconds: str, name: str) -> None:
    """Connects, waits to be told, asks, and reports."""
    steps = tuple(map(int, clients.split(",")))
    streams = [socket.create_connection((host, int(port)), CONNECT_LIMIT_S) for _ in range(max(steps))]
    for stream in streams:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    os.write(sys.stdout.fileno(), b"ready\n")
    if not sys.stdin.readline():
        return
    found = ask(streams, kind_of(name), float(seconds), steps)
    report = {"seconds": float(seconds), "latencies_ms": found.latencies_ms, "at_s": found.at_s}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
