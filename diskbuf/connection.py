"""One NBD client in the transmission phase.

Requests that need no wait are answered in the order they came, many per system call; the others get a task
each and are answered when they are done, as the specification allows ("Ordering of messages and writes").

Invariant: every request that was taken counts as in flight until its reply is with the kernel. In flight
are at most `IN_FLIGHT_MAX` requests, and less than `IN_FLIGHT_BYTES_MAX` bytes before the last of them.
"""

from __future__ import annotations

import logging

import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.errors import (
    DiskbufError,
    ProtocolError,
    RequestError,
    StoreFullError,
    StoreReadOnlyError,
    WriteRefusedError,
)
from diskbuf.extents import Bytes, Extent, Kind
from diskbuf.wire import (
    DRAIN_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    REQUEST_BYTES,
    Command,
    CommandFlag,
    NbdError,
    Request,
    decode_request,
    encode_reply,
    validate_request,
)

IN_FLIGHT_MAX = 128
"""Twice the deepest queue that common clients have (libnbd's and fio's 64), so that it never stalls them."""
IN_FLIGHT_BYTES_MAX = PAYLOAD_BYTES_MAX
"""One longest payload before the next request is taken: at most two of them per connection."""

_RECEIVE_BYTES = 32 << 10
"""A read-ahead of eight 4 KiB writes per system call; the rest of a longer payload is received in place."""
_PARTS_MAX = 1024
"""IOV_MAX of Linux."""

_log = logging.getLogger("diskbuf")


class Connection:
    """Serves one client out of `buffer` until it leaves; `tail` is what it sent with its negotiation."""

    def __init__(
        self, client_socket: trio.socket.SocketType, buffer: DiskBuffer, client: str, tail: bytes
    ) -> None:
        self._socket = client_socket
        self._buffer = buffer
        self._client = client
        self._receiver = _Receiver(client_socket, tail)
        self._replies: list[Bytes] = []
        self._replied: list[Request] = []
        self._sending = False
        self._in_flight = 0
        self._in_flight_bytes = 0
        self._room = trio.lowlevel.ParkingLot()
        self._failure_logged = False

    async def serve(self) -> None:
        """Return when the client has said goodbye and all it asked for is answered, or when it hung up.

        Raises `ProtocolError` if its bytes aren't NBD, OSError if the socket breaks, in a group perhaps.
        """
        async with trio.open_nursery() as nursery:
            while (request := await self._next_request()) is not None:
                if request.command == Command.DISC:
                    await self._send_replies()
                    return
                await self._take(request, nursery)
            nursery.cancel_scope.cancel()  # nobody is left to answer

    async def _next_request(self) -> Request | None:
        """The next request, or None if the client hung up."""
        if self._in_flight >= IN_FLIGHT_MAX or self._in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
            await self._make_room()
        while (header := self._receiver.take(REQUEST_BYTES)) is None:
            await self._send_replies()
            if not await self._receiver.fill():
                return None
        return decode_request(header)

    async def _make_room(self) -> None:
        await self._send_replies()
        while self._in_flight >= IN_FLIGHT_MAX or self._in_flight_bytes >= IN_FLIGHT_BYTES_MAX:
            await self._room.park()

    async def _take(self, request: Request, nursery: trio.Nursery) -> None:
        """Receive the request's payload, and answer it now or start a task that will."""
        self._in_flight += 1
        self._in_flight_bytes += _cost_bytes(request)
        try:
            validate_request(request, self._buffer.size_bytes, self._buffer.read_only)
        except RequestError as error:
            if request.payload_bytes:
                await self._receiver.drain(request.payload_bytes)
            self._reply(request, error.code)
            return
        payload = await self._receiver.payload(request.payload_bytes) if request.payload_bytes else b""
        try:
            answered = self._try_answer(request, payload)
        except DiskbufError as error:
            self._reply(request, self._code_of(error))
            return
        if not answered:
            nursery.start_soon(self._answer_later, request, payload)

    def _try_answer(self, request: Request, payload: Bytes) -> bool:
        """Answer the request if that needs no wait; whether it did."""
        match request.command:
            case Command.READ:
                data = self._buffer.try_read(request.offset, request.length)
                if data is None:
                    return False
                self._reply(request, NbdError.OK, data)
                return True
            case Command.FLUSH:
                answered = self._buffer.try_flush()
            case _:
                answered = self._buffer.try_change(_change_of(request, payload))
        if answered:
            self._reply(request, NbdError.OK)
        return answered

    async def _answer_later(self, request: Request, payload: Bytes) -> None:
        """Answer a request that has to wait."""
        data: Bytes = b""
        code = NbdError.OK
        try:
            match request.command:
                case Command.READ:
                    data = await self._buffer.read(request.offset, request.length)
                case Command.FLUSH:
                    await self._buffer.flush()
                case _:
                    await self._buffer.change(_change_of(request, payload))
                    if request.flags & CommandFlag.FUA:
                        await self._buffer.flush()
        except DiskbufError as error:
            code = self._code_of(error)
        self._reply(request, code, data)
        await self._send_replies()

    def _reply(self, request: Request, code: int, data: Bytes = b"") -> None:
        self._replies.append(encode_reply(request.cookie, code))
        if data:
            self._replies.append(data)
        self._replied.append(request)

    async def _send_replies(self) -> None:
        """Send the replies that are ready. If another task is sending, it takes them along."""
        if self._sending:
            return
        self._sending = True
        try:
            while self._replies:
                replies, self._replies = self._replies, []
                replied, self._replied = self._replied, []
                for first in range(0, len(replies), _PARTS_MAX):
                    await _send_all(self._socket, replies[first : first + _PARTS_MAX])
                self._in_flight -= len(replied)
                self._in_flight_bytes -= sum(map(_cost_bytes, replied))
                self._room.unpark_all()
        finally:
            self._sending = False

    def _code_of(self, error: DiskbufError) -> NbdError:
        """The error value that tells the client of a failure; the first one is logged."""
        if not self._failure_logged:
            _log.warning("%s gets errors, this one first: %s", self._client, error)
            self._failure_logged = True
        match error:
            case StoreFullError():
                return NbdError.ENOSPC
            case WriteRefusedError() | StoreReadOnlyError():
                return NbdError.EPERM
            case _:
                return NbdError.EIO


def _cost_bytes(request: Request) -> int:
    """What a request in flight makes the server remember, in either direction."""
    return min(request.length, PAYLOAD_BYTES_MAX) if request.command in (Command.READ, Command.WRITE) else 0


def _change_of(request: Request, payload: Bytes) -> Extent:
    """What a valid writing request does to the disk. A trim reads as zeros: both sides must agree on it."""
    if request.command == Command.WRITE:
        return Extent.of_data(request.offset, payload)
    keep = request.command == Command.WRITE_ZEROES and request.flags & CommandFlag.NO_HOLE
    return Extent(request.offset, request.length, Kind.ZERO if keep else Kind.HOLE)


async def _send_all(client_socket: trio.socket.SocketType, parts: list[Bytes]) -> None:
    pending = [memoryview(part) for part in parts]
    while pending:
        sent = await client_socket.sendmsg(pending)
        index = 0
        while index < len(pending) and sent >= len(pending[index]):
            sent -= len(pending[index])
            index += 1
        pending = pending[index:]
        if sent:
            pending[0] = pending[0][sent:]


class _Receiver:
    """What a client sends: headers through a read-ahead buffer, long payloads straight into their own."""

    def __init__(self, client_socket: trio.socket.SocketType, tail: bytes) -> None:
        self._socket = client_socket
        self._buffer = memoryview(bytearray(max(_RECEIVE_BYTES, len(tail))))
        self._buffer[: len(tail)] = tail
        self._start = 0
        self._end = len(tail)

    def take(self, length: int) -> bytes | None:
        """The next `length` bytes, or None if they haven't been received yet."""
        if self._end - self._start < length:
            return None
        taken = bytes(self._buffer[self._start : self._start + length])
        self._start += length
        return taken

    async def fill(self) -> bool:
        """Receive more; False if the client hung up, which it should do between two requests only."""
        left = self._end - self._start
        self._buffer[:left] = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, left
        received = await self._socket.recv_into(self._buffer[left:])
        self._end += received
        if not received and left:
            raise ProtocolError(f"hung up after {left} bytes of a request header of {REQUEST_BYTES}")
        return received > 0

    async def payload(self, length: int) -> Bytes:
        """The next `length` bytes in a buffer of their own."""
        if (buffered := self.take(length)) is not None:
            return buffered
        payload = bytearray(length)
        view = memoryview(payload)
        done = self._end - self._start
        view[:done] = self._buffer[self._start : self._end]
        self._start = self._end = 0
        while done < length:
            received = await self._socket.recv_into(view[done:])
            if not received:
                raise ProtocolError(f"hung up after {done} of a write's {length} bytes")
            done += received
        return payload

    async def drain(self, length: int) -> None:
        """Throw the next `length` bytes away, to find the next request behind a refused write."""
        if length > DRAIN_BYTES_MAX:
            raise ProtocolError(f"a write of {length} bytes is refused, and too long to be skipped")
        left = length - min(length, self._end - self._start)
        self._start += length - left
        while left:
            received = await self._socket.recv_into(self._buffer[: min(left, len(self._buffer))])
            if not received:
                raise ProtocolError(f"hung up with {left} bytes of a refused write to come")
            left -= received
