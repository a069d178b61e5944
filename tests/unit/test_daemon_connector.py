"""remuslike.daemon.connector over the loopback, to a secondary that does what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
from fakes.peers import HEARTBEAT_MS, FakeSession, hello, unused_port
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from remuslike.config import LinkSettings
from remuslike.daemon import connector
from remuslike.daemon.connector import _HANDSHAKE_LIMIT_S, _LOOK_INTERVAL_S, Connector
from remuslike.engine import events as on
from remuslike.engine.effects import EndSession
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import Hello, Refusal, parse_untrusted
from transport import Frame, FrameType, Link, LinkClosed, connect


class Primary:
    """A connector and all that it did. `leave`: what the core answers to each PeerConnected."""

    def __init__(self) -> None:
        self.port = unused_port()
        self.address = f"127.0.0.1:{self.port}"
        self.posted: list[Any] = []
        self.sessions: list[FakeSession] = []
        self.leave: Callable[[Connector], None] = lambda connector: connector.greet(5)
        self.connector = Connector(
            LinkSettings(address=self.address, detect_ms=60_000),
            hello("node-a"),
            self._post,
            self._make_session,  # type: ignore[arg-type]
        )

    def _post(self, event: Any) -> None:
        self.posted.append(event)
        if isinstance(event, on.PeerConnected):
            self.leave(self.connector)

    def _make_session(self, link: Link) -> FakeSession:
        self.sessions.append(FakeSession(link))
        return self.sessions[-1]

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.posted)

    @asynccontextmanager
    async def secondary(self) -> AsyncIterator[Callable[[], Any]]:
        """Listen; `accept()` gives the link of the next connection."""
        (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")

        async def accept() -> Link:
            return Link(await listener.accept(), heartbeat_ms=HEARTBEAT_MS)

        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(self.connector.run, self.address)
            yield accept
            nursery.cancel_scope.cancel()


@pytest.fixture
def primary() -> Primary:
    return Primary()


async def welcome(link: Link, introduction: Hello | None = None) -> Frame:
    """Hear the hello and accept it; the hello's frame."""
    frame: Frame = await link.receive()
    assert frame.type is FrameType.HELLO
    answer = introduction or hello("node-b", parse_untrusted(Hello, frame.payload).generation)
    await link.send(FrameType.WELCOME, 0, [answer.encode()])
    return frame


async def test_it_greets_under_the_cores_generation_and_begins_a_session(primary: Primary) -> None:
    async with primary.secondary() as accept:
        link = await accept()
        frame = await welcome(link)
        assert parse_untrusted(Hello, frame.payload) == hello("node-a", 5)
        await wait_all_tasks_blocked()
        connected, ready = primary.posted
        assert isinstance(connected, on.PeerConnected)
        assert isinstance(ready, on.PeerReady)
        assert ready.generation == 5
        assert primary.connector.secondary_name == "node-b"
        sessions: list[Any] = [primary.connector.slot.session]
        assert sessions == primary.sessions
        await link.aclose()


async def test_the_core_is_asked_before_anything_is_said(primary: Primary) -> None:
    primary.leave = lambda connector: None
    async with primary.secondary() as accept:
        link = await accept()
        await wait_all_tasks_blocked()
        assert primary.count(on.PeerConnected) == 1
        assert link.statistics().bytes_received == 0
        primary.connector.greet(9)
        frame = await welcome(link)
        assert parse_untrusted(Hello, frame.payload).generation == 9
        await link.aclose()


async def test_a_core_that_wants_no_session_is_asked_again_later(
    primary: Primary, autojump_clock: MockClock
) -> None:
    primary.leave = lambda connector: connector.greet(None)
    async with primary.secondary() as accept:
        for _ in range(3):
            link = await accept()
            with pytest.raises(LinkClosed):
                await link.receive()
            await link.aclose()
    assert primary.count(on.PeerConnected) == 3
    assert primary.sessions == []


async def test_a_core_that_does_not_answer_is_given_up(primary: Primary, autojump_clock: MockClock) -> None:
    primary.leave = lambda connector: None
    async with primary.secondary() as accept:
        link = await accept()
        began = trio.current_time()
        with pytest.raises(LinkClosed):
            await link.receive()
        assert trio.current_time() - began == pytest.approx(_HANDSHAKE_LIMIT_S)
        await link.aclose()


async def test_an_answer_that_nobody_waits_for_is_ignored(primary: Primary) -> None:
    primary.connector.greet(1)
    primary.connector.end(EndSession("nothing to end"))
    assert primary.posted == []


async def test_only_the_first_answer_counts(primary: Primary) -> None:
    def answer_twice(connector: Connector) -> None:
        connector.greet(5)
        connector.greet(6)

    primary.leave = answer_twice
    async with primary.secondary() as accept:
        link = await accept()
        assert parse_untrusted(Hello, (await welcome(link)).payload).generation == 5
        await link.aclose()


async def complaints(primary: Primary, answers: Callable[[Link], Any], times: int) -> list[str]:
    """What the log says when the secondary does `answers` to so many connections."""
    with capture_logs() as logs:
        async with primary.secondary() as accept:
            for _ in range(times):
                link = await accept()
                await answers(link)
                await link.aclose()
            await wait_all_tasks_blocked()
    return [log["error"] for log in logs if log["event"] == "link.no_session"]


async def test_a_refusal_is_logged_once_with_its_reason(primary: Primary, autojump_clock: MockClock) -> None:
    async def refuse(link: Link) -> None:
        await link.receive()
        await link.send(FrameType.REFUSE, 0, [Refusal(reason="'node-b' already has a primary").encode()])
        with pytest.raises(LinkClosed):
            await link.receive()

    assert await complaints(primary, refuse, times=3) == [
        "the secondary refused: 'node-b' already has a primary"
    ]
    assert primary.sessions == []


@pytest.mark.parametrize(
    ("introduction", "reason"),
    [
        (
            hello("node-b", 5, definition={**hello("x").definition, "guest.memory_mib": "512"}),
            "guest.memory_mib: node-b has '512', node-a has '256'",
        ),
        (hello("node-b", 5, protocol=99), "protocol version 99 of 'node-b'"),
        (hello("node-a", 5), "both sides are called 'node-a'"),
    ],
)
async def test_a_welcome_of_another_guest_is_not_taken(
    primary: Primary, autojump_clock: MockClock, introduction: Hello, reason: str
) -> None:
    async def accept_all(link: Link) -> None:
        await welcome(link, introduction)
        with pytest.raises(LinkClosed):
            await link.receive()

    (complaint,) = await complaints(primary, accept_all, times=2)
    assert reason in complaint
    assert primary.sessions == []


@pytest.mark.parametrize(
    "frame_type",
    [kind for kind in FrameType if kind not in (FrameType.WELCOME, FrameType.REFUSE, FrameType.HEARTBEAT)],
)
async def test_another_answer_is_named(
    primary: Primary, autojump_clock: MockClock, frame_type: FrameType
) -> None:
    async def answer(link: Link) -> None:
        await link.receive()
        await link.send(frame_type, 0, [b"x"])
        with pytest.raises(LinkClosed):
            await link.receive()

    (complaint,) = await complaints(primary, answer, times=2)
    assert complaint == f"the secondary answered the hello with {frame_type.name}"


@pytest.mark.parametrize("frame_type", [FrameType.WELCOME, FrameType.REFUSE])
async def test_a_malformed_answer_is_named(
    primary: Primary, autojump_clock: MockClock, frame_type: FrameType
) -> None:
    async def answer(link: Link) -> None:
        await link.receive()
        await link.send(frame_type, 0, [b"garbage"])
        with pytest.raises(LinkClosed):
            await link.receive()

    (complaint,) = await complaints(primary, answer, times=2)
    assert "is malformed" in complaint


async def test_a_secondary_that_hangs_up_is_tried_again(primary: Primary, autojump_clock: MockClock) -> None:
    async def hang_up(link: Link) -> None:
        await link.receive()

    assert await complaints(primary, hang_up, times=3) == ["the peer has closed the link"]


async def test_a_silent_secondary_is_given_up(primary: Primary, autojump_clock: MockClock) -> None:
    async def stay_silent(link: Link) -> None:
        await link.receive()
        with pytest.raises(LinkClosed):
            await link.receive()

    (complaint,) = await complaints(primary, stay_silent, times=1)
    assert complaint == f"the secondary did not answer within {_HANDSHAKE_LIMIT_S:.0f} s"


async def test_a_missing_secondary_is_looked_for_and_named_once(
    primary: Primary, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    looks: list[float] = []

    async def look(_host: str, _port: int, *, timeout_s: float) -> Any:
        looks.append(trio.current_time())
        return await connect(_host, _port, timeout_s=timeout_s)

    monkeypatch.setattr(connector, "connect", look)
    with capture_logs() as logs, trio.move_on_after(20 * _LOOK_INTERVAL_S):
        await primary.connector.run(primary.address)
    assert [after - before for before, after in pairwise(looks)] == pytest.approx(
        [_LOOK_INTERVAL_S] * (len(looks) - 1)
    )
    assert len(looks) >= 20
    (log,) = [log for log in logs if log["event"] == "link.no_session"]
    assert f"{primary.address} can't be reached" in log["error"]
    assert primary.posted == []


async def test_synchronising_and_sending_last_as_long_as_the_session(primary: Primary) -> None:
    async with primary.secondary() as accept:
        link = await accept()
        await welcome(link)
        await wait_all_tasks_blocked()
        primary.connector.start_sync()
        await wait_all_tasks_blocked()
        assert sorted(primary.sessions[0].started) == ["send_epochs", "synchronise"]
        await link.aclose()
        await wait_all_tasks_blocked()
        assert primary.count(on.LinkLost) == 1
        assert primary.connector.slot.session is None


async def test_the_cores_end_closes_the_session_with_a_farewell(primary: Primary) -> None:
    async with primary.secondary() as accept:
        link = await accept()
        await welcome(link)
        await wait_all_tasks_blocked()
        primary.connector.end(EndSession("stop", Farewell.ENDED))
        assert (await link.receive()).type is FrameType.GOODBYE
        await link.aclose()
        await primary.connector.slot.wait_parted()
        assert primary.connector.slot.session is None


async def test_a_lost_secondary_is_looked_for_again(primary: Primary, autojump_clock: MockClock) -> None:
    async with primary.secondary() as accept:
        link = await accept()
        await welcome(link)
        await wait_all_tasks_blocked()
        await link.aclose()
        link = await accept()
        await welcome(link)
        await wait_all_tasks_blocked()
        await link.aclose()
    assert primary.count(on.PeerReady) == 2
    assert len(primary.sessions) == 2
