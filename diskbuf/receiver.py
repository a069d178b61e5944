"""What a client sends, cut into headers and payloads.

Short requests come through a read-ahead buffer, many per system call. A long payload is received straight
into memory of its own; what comes after one is likely to be its like, so of that only a header is read.
"""

from __future__ import annotations

from diskbuf.arena import SLAB_BYTES_MIN, Arena
from diskbuf.endpoint import Endpoint
from diskbuf.errors import ProtocolError
from diskbuf.wire import DRAIN_BYTES_MAX, REQUEST_BYTES

READ_AHEAD_BYTES = 128 << 10
"""Twenty writes of 4 KiB per system call, and a payload that is too short for a slab at any rate."""


class Receiver:
    """The receiving side of a connection; one thread uses it. `tail` is what has been received before."""

    def __init__(self, endpoint: Endpoint, arena: Arena, tail: bytes) -> None:
        self._endpoint = endpoint
        self._arena = arena
        self._buffer = memoryview(bytearray(max(READ_AHEAD_BYTES, len(tail))))
        self._buffer[: len(tail)] = tail
        self._start = 0
        self._end = len(tail)
        self._long = False  # the last payload was a long one

    def header(self) -> memoryview | None:
        """The next request's header, valid until the next call, or None if `fill` must receive it first."""
        start = self._start
        if self._end - start < REQUEST_BYTES:
            return None
        self._start = start + REQUEST_BYTES
        return self._buffer[start : start + REQUEST_BYTES]

    def fill(self) -> bool:
        """Receive more of a header; False if the client hung up, which it should do between requests only."""
        left = self._move_to_front()
        wanted = REQUEST_BYTES if self._long else len(self._buffer)
        self._long = False
        received = self._endpoint.receive_into(self._buffer[left:wanted])
        self._end += received
        if not received and left:
            raise ProtocolError(f"hung up after {left} bytes of a request header of {REQUEST_BYTES}")
        return received > 0

    def waits_for(self, length: int) -> bool:
        """Whether a payload of `length` bytes has not been received yet."""
        return self._end - self._start < length

    def payload(self, length: int) -> memoryview:
        """The next `length` bytes, in memory of their own."""
        start, there = self._start, self._end - self._start
        if length < SLAB_BYTES_MIN:
            while there < length:
                there = self._receive_short(length)
                start = self._start
            self._start = start + length
            return memoryview(bytes(self._buffer[start : start + length]))
        target = self._arena.take(length)
        there = min(there, length)
        target[:there] = self._buffer[start : start + there]
        self._start = start + there
        there += self._endpoint.receive_exactly(target[there:]) if there < length else 0
        if there < length:
            raise ProtocolError(f"hung up after {there} of a write's {length} bytes")
        self._long = self._start == self._end
        return target

    def drain(self, length: int) -> None:
        """Throw the next `length` bytes away, to find the next request behind a refused write."""
        if length > DRAIN_BYTES_MAX:
            raise ProtocolError(f"a write of {length} bytes is refused, and too long to be skipped")
        left = length - min(length, self._end - self._start)
        self._start += length - left
        while left:
            received = self._endpoint.receive_into(self._buffer[: min(left, len(self._buffer))])
            if not received:
                raise ProtocolError(f"hung up with {left} bytes of a refused write to come")
            left -= received

    def _receive_short(self, length: int) -> int:
        """Receive more of a short payload; how much of it, or beyond it, is there now."""
        left = self._move_to_front() if self._start + length > len(self._buffer) else self._end - self._start
        received = self._endpoint.receive_into(self._buffer[self._end :])
        if not received:
            raise ProtocolError(f"hung up after {left} of a write's {length} bytes")
        self._end += received
        return left + received

    def _move_to_front(self) -> int:
        left = self._end - self._start
        if self._start:
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        return left
