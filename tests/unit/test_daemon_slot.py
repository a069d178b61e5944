"""remuslike.daemon.slot: how a session begins, and every way in which it ends."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from fakes.peers import HEARTBEAT_MS, FakeSession
from trio.testing import (
    MemoryReceiveStream,
    MemorySendStream,
    MockClock,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from diskbuf.errors import SealedWritesError
from remuslike.daemon.slot import FAREWELL_LIMIT_S, SessionSlot
from remuslike.engine import events as on
from remuslike.engine.effects import EndSession
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import Goodbye, parse_untrusted
from remuslike.errors import PayloadError
from transport import FrameType, Link, LinkClosed, PagesError

Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]

READY = on.PeerReady(now=1.0, generation=4)


class Fixture:
    """A slot, what it has posted, a session for it, and the peer."""

    def __init__(self) -> None:
        ours, self.peer_stream = memory_stream_pair()
        self.posted: list[Any] = []
        self.slot: SessionSlot[FakeSession] = SessionSlot(self.posted.append)
        self.session = FakeSession(Link(ours, heartbeat_ms=HEARTBEAT_MS))
        self.peer = Link(self.peer_stream, heartbeat_ms=HEARTBEAT_MS)

    async def serve(self) -> None:
        await self.slot.serve(self.session, READY)

    def lost(self) -> str:
        """The reason of the one LinkLost that was posted, after PeerReady."""
        ready, lost = self.posted
        assert ready == READY
        assert isinstance(lost, on.LinkLost)
        return lost.reason


@pytest.fixture
async def at() -> Fixture:
    return Fixture()


async def test_a_session_is_reported_and_runs(at: Fixture, nursery: trio.Nursery) -> None:
    nursery.start_soon(at.serve)
    await wait_all_tasks_blocked()
    assert at.posted == [READY]
    assert at.slot.session is at.session
    await at.peer.send(FrameType.EPOCH_BEGIN, 7)
    await wait_all_tasks_blocked()
    assert [(frame.type, frame.epoch) for frame in at.session.frames] == [(FrameType.EPOCH_BEGIN, 7)]


async def test_a_peer_that_hangs_up_is_a_lost_link(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await at.peer.aclose()
    assert at.lost() == "the peer has closed the link"
    assert at.slot.session is None


async def test_a_connection_that_ends_within_a_frame_is_a_lost_link(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await at.peer_stream.send_all(b"RMSL\1\0")
        await at.peer_stream.aclose()
    assert "in the middle of a frame" in at.lost()


async def test_bytes_that_are_not_ours_end_the_session_and_nothing_else(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await at.peer_stream.send_all(b"GET / HTTP/1.1\r\nHost: somebody else\r\n\r\n")
    assert "doesn't speak this protocol" in at.lost()
    assert at.slot.session is None


@pytest.mark.parametrize(
    "failure",
    [PayloadError("device state is damaged"), SealedWritesError("an extent"), PagesError("a page")],
    ids=lambda failure: type(failure).__name__,
)
async def test_data_that_do_not_fit_end_the_session_with_their_name(at: Fixture, failure: Exception) -> None:
    at.session.failure = failure
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await at.peer.send(FrameType.SYNC_DISK)
    assert at.lost() == str(failure)


async def test_a_defect_is_not_taken_for_the_peers_fault(at: Fixture) -> None:
    at.session.failure = KeyError("a defect of ours")
    await at.peer.send(FrameType.SYNC_DISK)
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        await at.serve()
    assert at.posted == [READY]
    assert at.slot.session is None


async def test_tasks_of_a_session_end_with_it(at: Fixture) -> None:
    ended: list[str] = []

    async def task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("task")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        at.slot.start(task)
        await wait_all_tasks_blocked()
        assert ended == []
        await at.peer.aclose()
    assert ended == ["task"]


async def test_an_end_without_farewell_is_at_once_and_no_loss(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        at.slot.end(EndSession("the core says so"))
    assert at.posted == [READY]
    assert at.slot.session is None
    await at.slot.wait_parted()


@pytest.mark.parametrize("farewell", Farewell)
async def test_a_farewell_is_heard_by_the_peer_that_then_hangs_up(at: Fixture, farewell: Farewell) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        at.slot.end(EndSession("the operator's stop", farewell))
        frame = await at.peer.receive()
        assert frame.type is FrameType.GOODBYE
        assert parse_untrusted(Goodbye, frame.payload) == Goodbye(
            farewell=farewell.value, reason="the operator's stop"
        )
        await wait_all_tasks_blocked()
        assert at.slot.session is at.session  # until the peer hangs up
        await at.peer.aclose()
        await at.slot.wait_parted()
    assert at.slot.session is None


async def test_a_peer_that_does_not_hang_up_is_left(at: Fixture, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        at.slot.end(EndSession("stop", Farewell.LEAVING))
        await at.slot.wait_parted()
    assert trio.current_time() - began == pytest.approx(FAREWELL_LIMIT_S)
    assert at.posted == [READY]


async def test_a_reason_of_any_length_fits_a_farewell(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        at.slot.end(EndSession("x" * 10_000, Farewell.ENDED))
        goodbye = parse_untrusted(Goodbye, (await at.peer.receive()).payload)
        assert goodbye.reason == "x" * 4096
        await at.peer.aclose()


async def test_a_farewell_to_a_dead_peer_ends_too(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        await at.peer.aclose()
        at.slot.end(EndSession("stop", Farewell.ENDED))
        await at.slot.wait_parted()
    assert at.slot.session is None


async def test_without_a_session_there_is_nothing_to_end(at: Fixture) -> None:
    at.slot.end(EndSession("nothing", Farewell.ENDED))
    await at.slot.wait_parted()
    assert at.posted == []


async def test_the_slot_takes_another_session(at: Fixture) -> None:
    for _ in range(2):
        other = Fixture()
        other.slot = at.slot
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.serve)
            await wait_all_tasks_blocked()
            assert at.slot.session is other.session
            await other.peer.aclose()
    assert [type(event) for event in at.posted] == [on.PeerReady, on.LinkLost] * 2


async def test_when_the_peer_was_heard_outlives_the_session(at: Fixture, autojump_clock: MockClock) -> None:
    assert at.slot.heard() == 0.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await trio.sleep(3)
        await at.peer.send(FrameType.EPOCH_BEGIN, 1)
        await wait_all_tasks_blocked()
        heard = at.slot.heard()
        await trio.sleep(5)
        assert at.slot.heard() == heard == pytest.approx(trio.current_time() - 5)
        nursery.cancel_scope.cancel()
    await trio.sleep(5)
    assert at.slot.heard() == heard


async def test_cancelling_the_daemon_cancels_the_session(at: Fixture) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.serve)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert at.slot.session is None
    assert at.posted == [READY]
    await at.session.link.aclose()
    with pytest.raises(LinkClosed):
        await at.peer.receive()
