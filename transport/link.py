"""The connection to the peer: frames over a trio stream, heartbeats, and the signs of the peer's life.

Any stream of trio's will do. Over a socket it works without the stream's own copies: frames leave by
`sendmsg` from where they are, and arrive by `recv_into` where they stay.
"""

import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Final

import trio

from transport.errors import ConnectError, LinkBroken, LinkClosed, ListenError
from transport.frames import (
    HEADER_BYTES,
    BytesLike,
    Frame,
    FrameReader,
    FrameType,
    PreparedFrame,
    prepare_frame,
)

# Room for a large batch of pages, so that the sender is seldom woken to hand over the rest of it.
SEND_BUFFER_BYTES: Final = 4 * 1024 * 1024

# Several frames that are more than this go in slices, between which other senders have their turn: a farewell
# that waited for all of a large epoch would come too late.
_SLICE_BYTES: Final = SEND_BUFFER_BYTES

# From Linux asm-generic/socket.h; Python's socket module doesn't have it.
_SO_SNDBUFFORCE: Final = 32

# UIO_MAXIOV of Linux uio.h: sendmsg refuses more parts at once.
_PARTS_PER_CALL: Final = 1024

# Up to this large a payload is judged here, in 0.3 ms; a larger one in a thread.
_JUDGED_AT_ONCE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Traffic:
    """Frames of one type in one direction, and their bytes with headers."""

    frames: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Complete frames since the link was made, by type; a type that never occurred is missing."""

    sent: Mapping[FrameType, Traffic]
    received: Mapping[FrameType, Traffic]

    @property
    def bytes_sent(self) -> int:
        return sum(traffic.bytes for traffic in self.sent.values())

    @property
    def bytes_received(self) -> int:
        return sum(traffic.bytes for traffic in self.received.values())

    @property
    def heartbeats_sent(self) -> int:
        return self.sent.get(FrameType.HEARTBEAT, Traffic()).frames

    @property
    def heartbeats_received(self) -> int:
        return self.received.get(FrameType.HEARTBEAT, Traffic()).frames


class Link:
    """Frames over a connected stream, which it owns from now on.

    Any number of tasks may send. One task receives; `last_heard` is what the failure detector goes by.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        heartbeat_ms: float,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        if heartbeat_ms <= 0:
            raise ValueError(f"heartbeat_ms {heartbeat_ms} must be positive")
        self._stream = stream
        self._socket = stream.socket if isinstance(stream, trio.SocketStream) else None
        if self._socket is not None and self._socket.family != socket.AF_UNIX:
            _tune(self._socket)
        self._heartbeat_s = heartbeat_ms / 1000
        self._clock = clock
        self._send_lock = trio.Lock()
        self._reader = FrameReader()
        # Bounded by one read: it is filled only when it is empty, with what one buffer of the reader held.
        self._frames: deque[Frame] = deque()
        self._sent: dict[FrameType, Traffic] = {}
        self._received: dict[FrameType, Traffic] = {}
        self._broken: str | None = None
        self._closed = False
        self._last_sent = clock()
        self._last_bytes = clock()
        self._listening_since: float | None = None

    @property
    def last_heard(self) -> float:
        """Time of `clock`, in seconds, since which the peer has been silent although somebody listened.

        That is when the last bytes came, or when `receive` began to wait for them if that was later: bytes
        may lie unread as long as nobody listens, so until then the peer counts as heard just now.
        """
        if self._listening_since is None:
            return self._clock()
        return max(self._last_bytes, self._listening_since)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send a heartbeat whenever nothing was sent for `heartbeat_ms`, until cancelled.

        Raises as `send` does.
        """
        task_status.started()
        while True:
            async with self._send_lock:
                # Judged with the lock in hand: a send that has just ended is a sign of life itself.
                wait_s = self._last_sent + self._heartbeat_s - self._clock()
                if wait_s <= 0:
                    await self._send_locked([prepare_frame(FrameType.HEARTBEAT, 0, ())], 0)
                    wait_s = self._heartbeat_s
            await trio.sleep(wait_s)

    async def send(self, type: FrameType, epoch: int = 0, parts: Sequence[BytesLike] = ()) -> int:  # noqa: A002
        """Put one frame on the wire and return its bytes; the parts must not change meanwhile.

        Returns when the operating system has taken all of it, which says nothing about the peer. Raises
        `LinkBroken` or `LinkClosed`, and what `encode_frame` raises with nothing sent. If it is cancelled in
        the middle of the frame the link is broken, since the peer waits for the rest: only `aclose` is left.
        """
        return await self.send_prepared([prepare_frame(type, epoch, parts)])

    async def send_prepared(self, frames: Sequence[PreparedFrame], *, more_follows: bool = False) -> int:
        """As `send`, of several frames in one go: the peer is woken once for what it can take at once.

        They arrive in order, but other senders' frames may come between them after some 4 MiB. With
        `more_follows` the last of it may stay here until the next send, 200 ms at most.
        """
        left_bytes = sum(frame.size_bytes for frame in frames)
        sent_bytes = 0
        for piece in _slices(frames):
            left_bytes -= sum(frame.size_bytes for frame in piece)
            async with self._send_lock:
                flags = socket.MSG_MORE if more_follows or left_bytes else 0
                sent_bytes += await self._send_locked(piece, flags)
        return sent_bytes

    async def receive(self) -> Frame:
        """The next frame other than a heartbeat.

        Raises `LinkClosed` if the peer has closed the link between two frames or this side has closed it,
        `LinkBroken` if it failed or ended within a frame, and a `FrameError` for bytes that aren't our
        protocol. Cancelling it loses nothing.
        """
        if self._frames:
            await trio.lowlevel.checkpoint()
        while not self._frames:
            await self._take(await self._read())
        return self._frames.popleft()

    def statistics(self) -> LinkStatistics:
        """Counts up to now."""
        return LinkStatistics(MappingProxyType(dict(self._sent)), MappingProxyType(dict(self._received)))

    async def aclose(self) -> None:
        """Close the stream. Whoever sends or receives meanwhile gets `LinkClosed`; idempotent.

        What the peer has sent and nobody has received makes the operating system reset the connection, and
        what it had not yet sent is lost. So let the peer close first where a last word matters: send
        `GOODBYE`, receive until `LinkClosed`, then close.
        """
        self._closed = True
        await self._stream.aclose()

    async def _send_locked(self, frames: Sequence[PreparedFrame], flags: int) -> int:
        if self._closed:
            raise LinkClosed("this side has closed the link: nothing more can be sent")
        if self._broken is not None:
            raise LinkBroken(self._broken)
        buffers = [buffer for frame in frames for buffer in frame.buffers]
        try:
            if self._socket is None:
                await self._send_joined(buffers)
            else:
                await self._send_vectored(self._socket, buffers, flags)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._failure("sending", error) from error
        self._last_sent = self._clock()
        for frame in frames:
            _count(self._sent, frame.type, frame.size_bytes)
        return sum(frame.size_bytes for frame in frames)

    async def _send_vectored(
        self, sock: trio.socket.SocketType, buffers: Sequence[memoryview], flags: int
    ) -> None:
        waiting = deque(buffers)
        started = False
        try:
            while waiting:
                sent = await sock.sendmsg(list(islice(waiting, _PARTS_PER_CALL)), (), flags)
                started = True
                while waiting and sent >= len(waiting[0]):
                    sent -= len(waiting.popleft())
                if sent:
                    waiting[0] = waiting[0][sent:]
        finally:
            if started and waiting:
                self._break("an earlier send ended in the middle of its frame: close the link")

    async def _send_joined(self, buffers: Sequence[memoryview]) -> None:
        complete = False
        try:
            await self._stream.send_all(b"".join(buffers))
            complete = True
        finally:
            # A stream doesn't tell how far it got, so the first frame counts as begun.
            if not complete:
                self._break("an earlier send ended before its frame was out: close the link")

    async def _read(self) -> int:
        if self._closed:
            raise LinkClosed("this side has closed the link: nothing more can be received")
        buffer = self._reader.buffer()
        self._listening_since = self._clock()
        try:
            if self._socket is not None:
                return await self._socket.recv_into(buffer)
            received = await self._stream.receive_some(len(buffer))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._failure("receiving", error) from error
        finally:
            self._listening_since = None
        buffer[: len(received)] = received
        return len(received)

    async def _take(self, count: int) -> None:
        if count == 0:
            if self._reader.mid_frame:
                raise LinkBroken(
                    "the connection ended in the middle of a frame: the peer has died or been cut"
                )
            raise LinkClosed("the peer has closed the link")
        self._last_bytes = self._clock()
        if self._reader.judges_bytes(count) <= _JUDGED_AT_ONCE_BYTES:
            frames = self._reader.received(count)
        else:
            with trio.CancelScope(shield=True):  # the bytes have been read: they would be lost
                frames = await trio.to_thread.run_sync(self._reader.received, count)
        for frame in frames:
            _count(self._received, frame.type, HEADER_BYTES + len(frame.payload))
            if frame.type is not FrameType.HEARTBEAT:
                self._frames.append(frame)

    def _failure(self, doing: str, error: Exception) -> LinkBroken | LinkClosed:
        if self._closed:
            return LinkClosed(f"this side has closed the link while {doing}")
        cause = error.__cause__ or error
        reason = f"the link failed while {doing} ({cause}): the peer or the network is down"
        self._break(reason)
        return LinkBroken(reason)

    def _break(self, reason: str) -> None:
        """Refuse all further sends, for the first reason that there was."""
        if self._broken is None:
            self._broken = reason


def _slices(frames: Sequence[PreparedFrame]) -> Iterator[Sequence[PreparedFrame]]:
    """The same frames, in order, in pieces of `_SLICE_BYTES` at most, or of one frame."""
    begin, size_bytes = 0, 0
    for end, frame in enumerate(frames):
        if end > begin and size_bytes + frame.size_bytes > _SLICE_BYTES:
            yield frames[begin:end]
            begin, size_bytes = end, 0
        size_bytes += frame.size_bytes
    yield frames[begin:]


def _count(traffic: dict[FrameType, Traffic], frame_type: FrameType, frame_bytes: int) -> None:
    before = traffic.get(frame_type, Traffic())
    traffic[frame_type] = Traffic(before.frames + 1, before.bytes + frame_bytes)


def _tune(sock: trio.socket.SocketType) -> None:
    """Ready a TCP socket, connected or accepted, for bursts with an answer to each."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Heartbeats are the keepalive, and a faster one.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    # trio limits what is unsent to 16 KiB, for streams that want late decisions; it would wake the sender for
    # each such piece of an epoch. 0 is the system's default: no limit.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
    # Without the capability the system's own sizing stays: an unforced SO_SNDBUF would switch it off and then
    # be cut to net.core.wmem_max, which is mostly smaller.
    with suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)


async def connect(host: str, port: int, *, timeout_s: float) -> trio.SocketStream:
    """A TCP connection to `host`, a name or an address of either family; `ConnectError` if there is none."""
    address = f"{host}:{port}"
    if not 0 < port < 1 << 16:
        raise ConnectError(f"port {port} of {address} is outside 1 to 65535: correct the peer's address")
    try:
        with trio.fail_after(timeout_s):
            return await trio.open_tcp_stream(host, port)
    except trio.TooSlowError:
        raise ConnectError(
            f"{address} didn't answer within {timeout_s} s: check that the peer's host is up and reachable"
        ) from None
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectError(f"{address} can't be resolved ({error}): correct the peer's address") from error
    except OSError as error:
        raise ConnectError(
            f"{address} can't be reached ({_reason(error)}): check that the peer runs and listens there"
        ) from error


async def listen(host: str | None, port: int) -> list[trio.SocketListener]:
    """TCP listeners, one for each address of `host` (None: all there are); port 0 lets the system choose.

    Raises `ListenError`.
    """
    address = f"{host or '*'}:{port}"
    if not 0 <= port < 1 << 16:
        raise ListenError(f"port {port} of {address} is outside 0 to 65535: correct the address to listen on")
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(
            f"{address} can't be resolved ({error}): correct the address to listen on"
        ) from error
    except OSError as error:
        raise ListenError(
            f"{address} can't be listened on ({_reason(error)}): free it or choose another"
        ) from error


def _reason(error: OSError) -> str:
    """What the system said, which trio hides behind a summary of its attempts at a host's addresses."""
    attempts = error.__cause__
    first = attempts.exceptions[0] if isinstance(attempts, ExceptionGroup) else error
    return (isinstance(first, OSError) and first.strerror) or str(first)
