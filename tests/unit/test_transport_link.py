"""The link: over memory with a clock that jumps, and over real sockets of this machine."""

import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from transport import errors
from transport.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    BytesLike,
    Frame,
    FrameReader,
    FrameType,
    encode_frame,
    prepare_frame,
)
from transport.link import SEND_BUFFER_BYTES, Link, Traffic, connect, listen

HEARTBEAT_MS = 100.0


def _wire(type: FrameType, epoch: int = 0, payload: bytes = b"") -> bytes:  # noqa: A002
    return b"".join(encode_frame(type, epoch, [payload]))


def _memory_links() -> tuple[Link, Link]:
    ours, theirs = trio.testing.memory_stream_pair()
    return Link(ours, heartbeat_ms=HEARTBEAT_MS), Link(theirs, heartbeat_ms=HEARTBEAT_MS)


def _half_link() -> tuple[Link, trio.abc.Stream]:
    """A link, and the raw stream of its peer."""
    ours, theirs = trio.testing.memory_stream_pair()
    return Link(ours, heartbeat_ms=HEARTBEAT_MS), theirs


@asynccontextmanager
async def _socket_links() -> AsyncIterator[tuple[Link, Link]]:
    """Over a socketpair with the smallest buffers there are, so that sends come in many pieces."""
    pair = trio.socket.socketpair()
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    ours, theirs = (Link(trio.SocketStream(end), heartbeat_ms=HEARTBEAT_MS) for end in pair)
    try:
        yield ours, theirs
    finally:
        await ours.aclose()
        await theirs.aclose()


async def test_frames_arrive_in_order_with_their_epoch() -> None:
    ours, theirs = _memory_links()
    for epoch in range(3):
        sent_bytes = await ours.send(FrameType.DEVICES, epoch, [b"state ", b"%d" % epoch])
        assert sent_bytes == HEADER_BYTES + 7
    for epoch in range(3):
        frame = await theirs.receive()
        assert (frame.type, frame.epoch, frame.payload.tobytes()) == (
            FrameType.DEVICES,
            epoch,
            b"state %d" % epoch,
        )


async def test_idle_link_beats_and_receiver_swallows_it(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = _memory_links()
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.run)
        nursery.start_soon(theirs.receive)
        await trio.sleep(1.05)
        assert trio.current_time() - theirs.last_heard == pytest.approx(0.05)
        nursery.cancel_scope.cancel()
    assert ours.statistics().heartbeats_sent == 10
    assert theirs.statistics().heartbeats_received == 10


async def test_busy_link_needs_no_heartbeat(autojump_clock: trio.testing.MockClock) -> None:
    ours, _ = _memory_links()
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.run)
        for _turn in range(20):
            await trio.sleep(HEARTBEAT_MS / 2000)
            await ours.send(FrameType.ACKNOWLEDGE)
        nursery.cancel_scope.cancel()
    assert ours.statistics().heartbeats_sent == 0


async def test_heartbeat_neither_enters_nor_follows_a_slow_send(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    link = Link(ours, heartbeat_ms=HEARTBEAT_MS)
    wire = _wire(FrameType.PAGES, 1, bytes(10))
    received = b""
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        nursery.start_soon(link.send, FrameType.PAGES, 1, [bytes(10)])
        while len(received) < len(wire):
            await trio.sleep(1)
            received += await theirs.receive_some(1)
        nursery.cancel_scope.cancel()
    assert received == wire
    assert link.statistics().heartbeats_sent == 0


async def test_every_byte_is_a_sign_of_life(autojump_clock: trio.testing.MockClock) -> None:
    link, peer = _half_link()
    wire = _wire(FrameType.PAGES, 1, bytes(5))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            assert (await link.receive()).payload == bytes(5)

        for position in range(len(wire)):
            await trio.sleep(1)
            await peer.send_all(wire[position : position + 1])
            await trio.testing.wait_all_tasks_blocked()
            assert link.last_heard == trio.current_time()
    assert link.last_heard == pytest.approx(len(wire))


async def test_silence_shows(autojump_clock: trio.testing.MockClock) -> None:
    link, _ = _half_link()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.receive)
        await trio.sleep(5)
        assert trio.current_time() - link.last_heard == pytest.approx(5)
        nursery.cancel_scope.cancel()


async def test_silence_counts_only_while_somebody_listens(autojump_clock: trio.testing.MockClock) -> None:
    link, _ = _half_link()
    await trio.sleep(5)
    assert link.last_heard == trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.receive)
        await trio.sleep(2)
        assert trio.current_time() - link.last_heard == pytest.approx(2)
        nursery.cancel_scope.cancel()


async def test_time_comes_from_the_given_clock() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    link = Link(ours, heartbeat_ms=HEARTBEAT_MS, clock=lambda: 3.0)
    await theirs.send_all(_wire(FrameType.HELLO))
    await link.receive()
    assert link.last_heard == 3.0


async def test_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    link, peer = _half_link()
    wire = _wire(FrameType.DEVICES, 2, b"state")
    for cut in (wire[:10], wire[10:30]):
        await peer.send_all(cut)
        with trio.move_on_after(1):
            await link.receive()
    await peer.send_all(wire[30:] + _wire(FrameType.EPOCH_END, 2))
    assert (await link.receive()).payload.tobytes() == b"state"
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.receive()
    assert (await link.receive()).type is FrameType.EPOCH_END


async def test_waiting_frame_is_a_checkpoint_and_survives_cancellation() -> None:
    link, peer = _half_link()
    await peer.send_all(b"".join(_wire(FrameType.ACKNOWLEDGE, epoch) for epoch in range(3)))
    assert (await link.receive()).epoch == 0
    with trio.CancelScope() as scope:
        scope.cancel()
        await link.receive()
    with trio.testing.assert_checkpoints():
        assert (await link.receive()).epoch == 1
    assert (await link.receive()).epoch == 2


async def test_concurrent_sends_do_not_interleave() -> None:
    async with _socket_links() as (ours, theirs), trio.open_nursery() as nursery:
        for epoch in range(8):
            nursery.start_soon(ours.send, FrameType.DISK_WRITES, epoch, [bytes([epoch]) * 10_000] * 10)
        epochs = set()
        for _turn in range(8):
            frame = await theirs.receive()
            assert frame.payload == bytes([frame.epoch]) * 100_000
            epochs.add(frame.epoch)
    assert epochs == set(range(8))


async def test_more_parts_than_one_call_takes() -> None:
    parts: list[BytesLike] = [b"%05d" % number for number in range(3000)]
    async with _socket_links() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, FrameType.DISK_WRITES, 1, parts)
        frame = await theirs.receive()
    assert frame.payload == b"".join(parts)


@pytest.mark.parametrize("more_follows", [False, True])
async def test_several_frames_go_at_once(more_follows: bool) -> None:
    async with _socket_links() as (ours, theirs):
        frames = [prepare_frame(FrameType.PAGES, epoch, [b"page", b"", b"s"]) for epoch in range(3)]
        sent_bytes = await ours.send_prepared(frames, more_follows=more_follows)
        assert sent_bytes == 3 * (HEADER_BYTES + 5)
        await ours.send(FrameType.EPOCH_END, 3)
        received = [await theirs.receive() for _ in range(4)]
        assert [(frame.type, frame.epoch, bytes(frame.payload)) for frame in received] == [
            *((FrameType.PAGES, epoch, b"pages") for epoch in range(3)),
            (FrameType.EPOCH_END, 3, b""),
        ]
        assert ours.statistics().sent[FrameType.PAGES] == Traffic(3, sent_bytes)


async def test_a_large_epoch_lets_others_send_between_its_frames() -> None:
    async with _socket_links() as (ours, theirs), trio.open_nursery() as nursery:
        frames = [prepare_frame(FrameType.PAGES, epoch, [bytes(3 << 20)]) for epoch in range(3)]
        nursery.start_soon(ours.send_prepared, frames)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ours.send, FrameType.GOODBYE)
        await trio.testing.wait_all_tasks_blocked()
        received = [await theirs.receive() for _ in range(4)]
        assert [(frame.type, frame.epoch) for frame in received] == [
            (FrameType.PAGES, 0),
            (FrameType.GOODBYE, 0),
            (FrameType.PAGES, 1),
            (FrameType.PAGES, 2),
        ]


async def test_an_ordinary_epoch_is_not_sliced_and_only_the_end_of_a_large_one_is_pushed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, int]] = []

    async def note(_link: Link, _sock: object, buffers: Sequence[memoryview], flags: int) -> None:
        calls.append((sum(map(len, buffers)) >> 20, flags))

    monkeypatch.setattr(Link, "_send_vectored", note)
    async with _socket_links() as (ours, _theirs):
        frames = [prepare_frame(FrameType.PAGES, 1, [bytes(1 << 20)]) for _ in range(7)]
        await ours.send_prepared(frames[:3])
        assert calls == [(3, 0)]
        calls.clear()
        sent_bytes = await ours.send_prepared(frames)
        assert calls == [(3, socket.MSG_MORE), (3, socket.MSG_MORE), (1, 0)]
        assert sent_bytes == sum(frame.size_bytes for frame in frames)
        await ours.send_prepared(frames, more_follows=True)
        assert calls[3:] == [(3, socket.MSG_MORE), (3, socket.MSG_MORE), (1, socket.MSG_MORE)]


async def test_a_large_payload_is_judged_in_a_thread_and_cancellation_loses_nothing() -> None:
    scope = trio.CancelScope()

    class Reader(FrameReader):
        def received(self, count: int) -> list[Frame]:
            if self.judges_bytes(count):
                trio.from_thread.run_sync(scope.cancel)  # an error but in a worker thread
            return super().received(count)

    async with _socket_links() as (ours, theirs), trio.open_nursery() as nursery:
        theirs._reader = Reader()
        payload = b"x" * MAX_PAYLOAD_BYTES
        nursery.start_soon(ours.send, FrameType.DISK_WRITES, 7, [payload])
        with scope:
            frame = await theirs.receive()
        assert scope.cancel_called
        assert (frame.type, frame.epoch, frame.payload) == (FrameType.DISK_WRITES, 7, payload)


async def test_send_cancelled_within_a_frame_breaks_the_link() -> None:
    with trio.fail_after(10):
        async with _socket_links() as (ours, theirs):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send, FrameType.PAGES, 1, [bytes(1_000_000)])
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            with pytest.raises(errors.LinkBroken, match="in the middle of its frame"):
                await ours.send(FrameType.GOODBYE)
            with pytest.raises(errors.LinkBroken, match="in the middle of its frame"):
                await ours.run()
            await ours.aclose()
            with pytest.raises(errors.LinkBroken, match="middle of a frame"):
                await theirs.receive()


async def test_send_cancelled_while_it_waits_for_another_leaves_the_link_whole() -> None:
    async with _socket_links() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, FrameType.PAGES, 1, [bytes(1_000_000)])
        await trio.testing.wait_all_tasks_blocked()
        waiting = trio.CancelScope()

        @nursery.start_soon
        async def send() -> None:
            with waiting:
                await ours.send(FrameType.DEVICES, 1)

        await trio.testing.wait_all_tasks_blocked()
        waiting.cancel()
        assert (await theirs.receive()).type is FrameType.PAGES
        await ours.send(FrameType.EPOCH_END, 1)
        assert (await theirs.receive()).type is FrameType.EPOCH_END


async def test_send_cancelled_before_its_first_byte_leaves_the_link_whole() -> None:
    near, far = trio.socket.socketpair()
    with far:
        link = Link(trio.SocketStream(near), heartbeat_ms=HEARTBEAT_MS)
        filler_bytes = _fill(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send, FrameType.DEVICES, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        while filler_bytes:
            filler_bytes -= len(await far.recv(filler_bytes))
        await link.send(FrameType.EPOCH_END, 1)
        assert await far.recv(1000) == _wire(FrameType.EPOCH_END, 1)
        await link.aclose()


def _fill(sock: trio.socket.SocketType) -> int:
    """Send until the socket takes no more, and return how many bytes that was."""
    filler_bytes = 0
    with socket.socket(fileno=os.dup(sock.fileno())) as same, suppress(BlockingIOError):
        same.setblocking(False)
        while True:
            filler_bytes += same.send(bytes(4096))
    return filler_bytes


async def test_cancelled_send_over_a_plain_stream_counts_as_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, _theirs = trio.testing.lockstep_stream_pair()
    link = Link(ours, heartbeat_ms=HEARTBEAT_MS)
    with trio.move_on_after(1):
        await link.send(FrameType.PAGES, 1, [bytes(100)])
    with pytest.raises(errors.LinkBroken, match="before its frame was out"):
        await link.send(FrameType.GOODBYE)


async def test_payload_over_the_limit_sends_nothing() -> None:
    ours, theirs = _memory_links()
    with pytest.raises(errors.PayloadTooLongError):
        await ours.send(FrameType.DEVICES, 1, [bytes(1 << 20)] * 9)
    await ours.send(FrameType.GOODBYE)
    assert (await theirs.receive()).type is FrameType.GOODBYE


async def test_end_between_frames_is_orderly() -> None:
    ours, theirs = _memory_links()
    await ours.send(FrameType.GOODBYE)
    await ours.aclose()
    assert (await theirs.receive()).type is FrameType.GOODBYE
    for _turn in range(2):
        with pytest.raises(errors.LinkClosed, match="peer has closed"):
            await theirs.receive()
    with pytest.raises(errors.LinkBroken, match="while sending"):
        await theirs.send(FrameType.GOODBYE)


@pytest.mark.parametrize("cut", [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1])
async def test_end_within_a_frame_is_not(cut: int) -> None:
    link, peer = _half_link()
    await peer.send_all(_wire(FrameType.DEVICES, 1, b"state")[:cut])
    await peer.aclose()
    with pytest.raises(errors.LinkBroken, match="in the middle of a frame"):
        await link.receive()


async def test_garbage_ends_the_link_after_the_frames_before_it() -> None:
    link, peer = _half_link()
    await peer.send_all(_wire(FrameType.ACKNOWLEDGE, 1) + _wire(FrameType.HEARTBEAT) + b"GET / HTTP/1.1")
    assert (await link.receive()).epoch == 1
    for _turn in range(2):
        with pytest.raises(errors.MagicError):
            await link.receive()


async def test_own_close_wakes_receiver_and_sender() -> None:
    async def expect_closed(operation: Any, *arguments: Any) -> None:
        with pytest.raises(errors.LinkClosed, match="this side has closed"):
            await operation(*arguments)

    async with _socket_links() as (ours, _theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, ours.receive)
            nursery.start_soon(expect_closed, ours.send, FrameType.PAGES, 1, [bytes(1_000_000)])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(expect_closed, ours.send, FrameType.EPOCH_END, 1)
            await trio.testing.wait_all_tasks_blocked()
            await ours.aclose()
        await expect_closed(ours.receive)
        await expect_closed(ours.send, FrameType.GOODBYE)
        await expect_closed(ours.run)
        await ours.aclose()


async def test_statistics_count_by_type_and_are_a_snapshot() -> None:
    ours, theirs = _memory_links()
    empty = ours.statistics()
    await ours.send(FrameType.PAGES, 1, [bytes(72)])
    await ours.send(FrameType.PAGES, 1, [bytes(100)])
    await ours.send(FrameType.EPOCH_END, 1)
    for _turn in range(3):
        await theirs.receive()
    expected = {
        FrameType.PAGES: Traffic(2, 2 * HEADER_BYTES + 172),
        FrameType.EPOCH_END: Traffic(1, HEADER_BYTES),
    }
    assert ours.statistics().sent == theirs.statistics().received == expected
    assert ours.statistics().bytes_sent == theirs.statistics().bytes_received == 3 * HEADER_BYTES + 172
    assert ours.statistics().heartbeats_sent == theirs.statistics().heartbeats_received == 0
    assert empty.sent == {}


async def test_heartbeat_interval_must_be_positive() -> None:
    stream, _ = trio.testing.memory_stream_pair()
    with pytest.raises(ValueError, match="heartbeat_ms 0"):
        Link(stream, heartbeat_ms=0)


@asynccontextmanager
async def _loopback_links() -> AsyncIterator[tuple[Link, Link]]:
    (listener,) = await listen("127.0.0.1", 0)
    async with listener:
        port = listener.socket.getsockname()[1]
        ours = Link(await connect("127.0.0.1", port, timeout_s=5), heartbeat_ms=HEARTBEAT_MS)
        theirs = Link(await listener.accept(), heartbeat_ms=HEARTBEAT_MS)
        try:
            yield ours, theirs
        finally:
            await ours.aclose()
            await theirs.aclose()


async def test_over_loopback_both_ways() -> None:
    payload = bytes(range(256)) * 4096 * 4
    async with _loopback_links() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, FrameType.PAGES, 1, [payload])
        nursery.start_soon(theirs.send, FrameType.PAGES, 2, [payload, payload])
        assert (await theirs.receive()).payload == payload
        assert (await ours.receive()).payload == payload * 2


async def test_both_sockets_are_tuned() -> None:
    async with _loopback_links() as links:
        for link in links:
            sock = link._socket
            assert sock is not None
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
async def test_privileged_send_buffer_is_forced() -> None:
    async with _loopback_links() as (ours, _theirs):
        assert ours._socket is not None
        # The kernel doubles what it is asked for, for its own book-keeping (socket(7)).
        found_bytes = ours._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert found_bytes == 2 * SEND_BUFFER_BYTES


async def test_reset_between_frames_breaks_the_link() -> None:
    async with _loopback_links() as (ours, theirs):
        assert theirs._socket is not None
        theirs._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await theirs.aclose()
        with pytest.raises(errors.LinkBroken, match=r"while receiving .*reset"):
            await ours.receive()
        with pytest.raises(errors.LinkBroken, match="while receiving"):
            await ours.send(FrameType.GOODBYE)


async def test_nobody_listens() -> None:
    (listener,) = await listen("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(errors.ConnectError, match=rf"127\.0\.0\.1:{port} can't be reached .*refused"):
        await connect("127.0.0.1", port, timeout_s=5)


class _Resolver(trio.abc.HostnameResolver):
    """Knows no name; of `slow.invalid` it never says so."""

    async def getaddrinfo(self, host: bytes | None, *_arguments: Any) -> NoReturn:
        if host == b"slow.invalid":
            await trio.sleep_forever()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, *_arguments: Any) -> NoReturn:
        raise NotImplementedError


async def test_names_that_do_not_resolve(autojump_clock: trio.testing.MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(_Resolver())
    with pytest.raises(errors.ConnectError, match=r"nowhere\.invalid:7000 can't be resolved .*not known"):
        await connect("nowhere.invalid", 7000, timeout_s=5)
    with pytest.raises(errors.ListenError, match=r"nowhere\.invalid:7000 can't be resolved .*not known"):
        await listen("nowhere.invalid", 7000)
    with pytest.raises(errors.ConnectError, match=r"slow\.invalid:7000 didn't answer within 5 s"):
        await connect("slow.invalid", 7000, timeout_s=5)
    assert trio.current_time() == pytest.approx(5)


async def test_names_that_are_none() -> None:
    with pytest.raises(errors.ConnectError, match=r"a\.\.b:7000 can't be resolved"):
        await connect("a..b", 7000, timeout_s=5)
    with pytest.raises(errors.ListenError, match=r"a\.\.b:7000 can't be resolved"):
        await listen("a..b", 7000)


async def test_address_in_use() -> None:
    (listener,) = await listen("127.0.0.1", 0)
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(errors.ListenError, match=rf"127\.0\.0\.1:{port} can't be listened on .*in use"):
            await listen("127.0.0.1", port)


async def test_address_of_another_machine() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): nobody's own.
    with pytest.raises(errors.ListenError, match=r"192\.0\.2\.1:7000 can't be listened on"):
        await listen("192.0.2.1", 7000)


@pytest.mark.parametrize("port", [-1, 65536])
async def test_ports_out_of_range(port: int) -> None:
    with pytest.raises(errors.ConnectError, match=f"port {port}"):
        await connect("127.0.0.1", port, timeout_s=5)
    with pytest.raises(errors.ListenError, match=f"port {port}"):
        await listen(None, port)
