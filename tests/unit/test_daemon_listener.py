"""remuslike.daemon.listener over the loopback: who is let in, and what the others are told."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from fakes.peers import FakeSession, connect_link, hello, unused_port
from trio.testing import MockClock, wait_all_tasks_blocked

from remuslike.config import LinkSettings
from remuslike.daemon.listener import _HANDSHAKE_LIMIT_S, _STRANGERS_MAX, Listener
from remuslike.engine import events as on
from remuslike.engine.effects import EndSession
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import PROTOCOL_VERSION, Goodbye, Hello, Refusal, parse_untrusted
from transport import FrameType, Link, LinkClosed, ListenError, TransportError


class Secondary:
    """A listener and all that it did."""

    def __init__(self) -> None:
        self.port = unused_port()
        self.posted: list[Any] = []
        self.sessions: list[FakeSession] = []
        self.unwelcome: str | None = None
        self.listener = Listener(
            LinkSettings(address=f"127.0.0.1:{self.port}", detect_ms=60_000),
            hello("node-b"),
            self.posted.append,
            self._make_session,  # type: ignore[arg-type]
            self._refusal,
        )

    async def _refusal(self, _theirs: Hello) -> str | None:
        return self.unwelcome

    def _make_session(self, link: Link) -> FakeSession:
        self.sessions.append(FakeSession(link))
        return self.sessions[-1]


@pytest.fixture
async def secondary(nursery: trio.Nursery) -> Secondary:
    made = Secondary()
    await nursery.start(made.listener.run)
    return made


@pytest.fixture
async def primary(secondary: Secondary) -> AsyncIterator[Link]:
    """One that is accepted, under generation 7."""
    link = await connect_link(secondary.port)
    await greet(link, hello("node-a", 7))
    frame = await link.receive()
    assert frame.type is FrameType.WELCOME
    yield link
    await link.aclose()


async def greet(link: Link, introduction: Hello) -> None:
    await link.send(FrameType.HELLO, 0, [introduction.encode()])


async def refusal(link: Link) -> str:
    """Why the listener refuses, after which it hangs up."""
    frame = await link.receive()
    assert frame.type is FrameType.REFUSE
    with pytest.raises(TransportError):
        await link.receive()
    await link.aclose()
    return parse_untrusted(Refusal, frame.payload).reason


async def refused(secondary: Secondary, introduction: Hello) -> str:
    link = await connect_link(secondary.port)
    await greet(link, introduction)
    return await refusal(link)


async def assert_still_open(secondary: Secondary) -> None:
    """An honest primary is accepted after all."""
    link = await connect_link(secondary.port)
    await greet(link, hello("node-a"))
    assert (await link.receive()).type is FrameType.WELCOME
    await link.aclose()


async def test_a_primary_of_the_same_guest_is_welcome(secondary: Secondary) -> None:
    link = await connect_link(secondary.port)
    await greet(link, hello("node-a", 7))
    frame = await link.receive()
    assert frame.type is FrameType.WELCOME
    assert parse_untrusted(Hello, frame.payload) == hello("node-b", 7)
    await wait_all_tasks_blocked()
    (ready,) = secondary.posted
    assert isinstance(ready, on.PeerReady)
    assert ready.generation == 7
    sessions: list[Any] = [secondary.listener.slot.session]
    assert sessions == secondary.sessions
    await link.aclose()


async def test_its_frames_reach_the_session(secondary: Secondary, primary: Link) -> None:
    await primary.send(FrameType.EPOCH_BEGIN, 3)
    await wait_all_tasks_blocked()
    assert [frame.epoch for frame in secondary.sessions[0].frames] == [3]


async def test_a_second_primary_is_refused_and_the_first_stays(secondary: Secondary, primary: Link) -> None:
    assert await refused(secondary, hello("node-c", 8)) == "'node-b' already has a primary"
    await primary.send(FrameType.EPOCH_BEGIN, 4)
    await wait_all_tasks_blocked()
    assert [frame.epoch for frame in secondary.sessions[0].frames] == [4]
    assert len(secondary.posted) == len(secondary.sessions) == 1


async def test_when_the_first_has_gone_another_may_come(secondary: Secondary, primary: Link) -> None:
    await primary.aclose()
    await wait_all_tasks_blocked()
    assert [type(event) for event in secondary.posted] == [on.PeerReady, on.LinkLost]
    assert secondary.listener.slot.session is None
    await assert_still_open(secondary)


async def test_two_that_come_at_once_are_one_welcome_and_one_refusal(secondary: Secondary) -> None:
    links = [await connect_link(secondary.port) for _ in range(2)]
    for number, link in enumerate(links):
        await greet(link, hello(f"node-{number}"))
    answers = sorted([(await link.receive()).type for link in links])
    assert answers == [FrameType.WELCOME, FrameType.REFUSE]
    for link in links:
        await link.aclose()


@pytest.mark.parametrize(
    ("introduction", "reason"),
    [
        (
            hello("node-a", definition={**hello("x").definition, "guest.memory_mib": "512"}),
            "guest.memory_mib: node-a has '512', node-b has '256'",
        ),
        (
            hello("node-a", definition={**hello("x").definition, "qemu version": "8.2.0"}),
            "qemu version: node-a has '8.2.0', node-b has '7.2.22'",
        ),
        (hello("node-a", definition={}), "page size: node-a has 'nothing', node-b has '4096'"),
        (
            hello("node-a", protocol=PROTOCOL_VERSION + 1),
            f"protocol version {PROTOCOL_VERSION + 1} of 'node-a'",
        ),
        (hello("node-b"), "both sides are called 'node-b'"),
    ],
)
async def test_another_guest_is_refused_with_both_values(
    secondary: Secondary, introduction: Hello, reason: str
) -> None:
    assert reason in await refused(secondary, introduction)
    assert secondary.posted == secondary.sessions == []
    await assert_still_open(secondary)


async def test_the_cores_reason_is_told(secondary: Secondary) -> None:
    secondary.unwelcome = "takes no primary: it is active"
    assert await refused(secondary, hello("node-a")) == "'node-b' takes no primary: it is active"
    secondary.unwelcome = None
    await assert_still_open(secondary)


async def test_a_refusal_of_any_length_is_told(secondary: Secondary) -> None:
    definition = {f"key-{number}": "v" * 50 for number in range(500)}
    assert len(await refused(secondary, hello("node-a", definition=definition))) == 4096


@pytest.mark.parametrize(
    "frame_type", [kind for kind in FrameType if kind not in (FrameType.HELLO, FrameType.HEARTBEAT)]
)
async def test_a_peer_that_begins_otherwise_is_refused(secondary: Secondary, frame_type: FrameType) -> None:
    link = await connect_link(secondary.port)
    await link.send(frame_type, 1, [b"something"])
    assert f"began with {frame_type.name}, expected HELLO" in await refusal(link)
    await assert_still_open(secondary)


@pytest.mark.parametrize("payload", [b"", b"garbage", b"{}", b"[" * 10_000, b"\0" * 70_000])
async def test_a_malformed_hello_is_refused(secondary: Secondary, payload: bytes) -> None:
    link = await connect_link(secondary.port)
    await link.send(FrameType.HELLO, 0, [payload])
    assert "the peer's Hello" in await refusal(link)
    await assert_still_open(secondary)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100, b"\0" * 4096, b"RMSL" + b"\xff" * 60]
)
async def test_bytes_that_are_not_ours_do_no_harm(secondary: Secondary, data: bytes) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", secondary.port) as stream:
        await stream.send_all(data)
        received = b""
        while more := await stream.receive_some(65536):
            received += more
    assert received.startswith(b"RMSL")  # it is told why, in our protocol
    assert secondary.posted == []
    await assert_still_open(secondary)


@pytest.mark.parametrize("data", [b"", b"RM", b"RMSL\1\0\1\0"])
async def test_a_peer_that_hangs_up_before_its_hello_is_forgotten(secondary: Secondary, data: bytes) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", secondary.port)
    if data:
        await stream.send_all(data)
    await stream.aclose()
    await wait_all_tasks_blocked()
    assert secondary.posted == []
    await assert_still_open(secondary)


async def test_a_silent_stranger_is_given_up(secondary: Secondary, autojump_clock: MockClock) -> None:
    link = await connect_link(secondary.port)
    began = trio.current_time()
    assert await refusal(link) == f"no hello came within {_HANDSHAKE_LIMIT_S:.0f} s"
    assert trio.current_time() - began == pytest.approx(_HANDSHAKE_LIMIT_S, abs=1)


async def test_silent_strangers_delay_a_primary_no_longer_than_their_limit(
    secondary: Secondary, autojump_clock: MockClock
) -> None:
    strangers = [await connect_link(secondary.port) for _ in range(_STRANGERS_MAX)]
    await wait_all_tasks_blocked()
    began = trio.current_time()
    link = await connect_link(secondary.port)
    await greet(link, hello("node-a"))
    assert (await link.receive()).type is FrameType.WELCOME
    assert trio.current_time() - began <= _HANDSHAKE_LIMIT_S + 1
    for each in (link, *strangers):
        await each.aclose()


async def test_a_goodbye_is_heard(secondary: Secondary, primary: Link) -> None:
    await wait_all_tasks_blocked()
    secondary.listener.slot.end(EndSession("the operator's stop", Farewell.LEAVING))
    frame = await primary.receive()
    assert frame.type is FrameType.GOODBYE
    assert (
        json.loads(bytes(frame.payload))
        == Goodbye(farewell="leaving", reason="the operator's stop").model_dump()
    )
    await primary.aclose()
    await secondary.listener.slot.wait_parted()
    assert secondary.listener.slot.session is None


async def test_a_session_that_is_ended_closes_its_connection(secondary: Secondary, primary: Link) -> None:
    await wait_all_tasks_blocked()
    secondary.listener.slot.end(EndSession("the core says so"))
    with pytest.raises(LinkClosed):
        await primary.receive()
    await assert_still_open(secondary)


async def test_an_address_in_use_is_named() -> None:
    made = Secondary()
    with socket.socket() as other:
        other.bind(("127.0.0.1", made.port))
        other.listen()
        with pytest.raises(ListenError, match=f"127.0.0.1:{made.port} can't be listened on"):
            await made.listener.run()
