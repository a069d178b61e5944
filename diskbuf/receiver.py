"""What a client sends, cut into headers and payloads.

Short requests come through a read-ahead buffer, many per system call. It is a slab of the arena, and their
payloads are views of it: nothing is copied, and one held byte keeps the slab. Where the arena has no more,
payloads are copied into memory of their own; so what is kept beyond the held bytes is bounded by the arena.

A long payload is received straight into a slab of its own; what comes after one is likely to be its like, so
of that only a header is read.
"""

from __future__ import annotations

from diskbuf.arena import SLAB_BYTES_MIN, Arena
from diskbuf.endpoint import Endpoint, PlainEndpoint
from diskbuf.errors import ProtocolError
from diskbuf.extents import Bytes
from diskbuf.wire import DRAIN_BYTES_MAX, REQUEST_BYTES, Request, decode_writes

READ_AHEAD_BYTES = 256 << 10
"""Sixty writes of 4 KiB, and a payload that is too short for a slab of its own at any rate."""
_ROOM_BYTES_MIN = 128 << 10
"""With less left of a read-ahead buffer the next system call gets a new one."""


class Receiver:
    """The receiving side of a connection; one thread uses it. `tail` is what has been received before."""

    def __init__(self, endpoint: Endpoint, arena: Arena, tail: bytes) -> None:
        self._endpoint = endpoint
        self._arena = arena
        self._buffer = memoryview(bytearray(tail))
        self._start = 0
        self._end = len(tail)
        self._shared = False  # the buffer is the arena's, so that payloads may be views of it
        self._lent = False  # ... and some are
        self._long = False  # the last payload was a long one

    def header(self) -> memoryview | None:
        """The next request's header, valid until the next call, or None if `fill` must receive it first."""
        header = self.next_header()
        if header is not None:
            self._start += REQUEST_BYTES
        return header

    def next_header(self) -> memoryview | None:
        """What `header` would return, which is then to be asked for it."""
        start = self._start
        return None if self._end - start < REQUEST_BYTES else self._buffer[start : start + REQUEST_BYTES]

    def short_writes(self, count_max: int | None = None) -> tuple[list[Request], list[memoryview]]:
        """The short writes that are whole in the read-ahead buffer, up to the first other request, and up to
        `count_max` of them."""
        requests, payloads, self._start = decode_writes(
            self._buffer, self._start, self._end, SLAB_BYTES_MIN - 1, count_max
        )
        if payloads and not self._shared:
            return requests, [memoryview(bytes(payload)) for payload in payloads]
        if payloads:
            self._lent = True
        return requests, payloads

    def fill_now(self, endpoint: PlainEndpoint) -> bool:
        """Receive what has come, without waiting; False if there won't be more, which `fill` finds again."""
        self._make_room()
        received = endpoint.receive_now(self._buffer[self._end :])
        self._end += received or 0
        return received != 0

    def fill(self) -> bool:
        """Receive more of a header; False if the client hung up, which it should do between requests only."""
        left = self._end - self._start
        self._make_room()
        wanted = REQUEST_BYTES - left if self._long else len(self._buffer)
        self._long = False
        received = self._endpoint.receive_into(self._buffer[self._end : self._end + wanted])
        self._end += received
        if not received and left:
            raise ProtocolError(f"hung up after {left} bytes of a request header of {REQUEST_BYTES}")
        return received > 0

    def waits_for(self, length: int) -> bool:
        """Whether a payload of `length` bytes has not been received yet."""
        return self._end - self._start < length

    def payload(self, length: int, begun: Bytes = b"") -> memoryview:
        """The next `length` bytes, in memory that nobody else writes to; what was `begun` to be received
        elsewhere, by `payload_soon`, is the first of them."""
        if length >= SLAB_BYTES_MIN:
            return self._long_payload(length, begun)
        while self._end - self._start < length:
            self._receive_short(length)
        start = self._start
        self._start = end = start + length
        if self._shared:
            self._lent = True
            return self._buffer[start:end]
        return memoryview(bytes(self._buffer[start:end]))

    def payload_soon(self, target: memoryview) -> int:
        """Fill `target` with the next bytes, or as much of it as the client sends soon; how much."""
        there = self._take_ahead(target)
        if there < len(target):
            there += self._endpoint.receive_soon(target[there:])
        self._long = self._start == self._end
        return there

    def drain(self, length: int) -> None:
        """Throw the next `length` bytes away, to find the next request behind a refused write."""
        if length > DRAIN_BYTES_MAX:
            raise ProtocolError(f"a write of {length} bytes is refused, and too long to be skipped")
        left = length - min(length, self._end - self._start)
        self._start += length - left
        while left:
            self._renew()
            received = self._endpoint.receive_into(self._buffer[: min(left, len(self._buffer))])
            if not received:
                raise ProtocolError(f"hung up with {left} bytes of a refused write to come")
            left -= received

    def _long_payload(self, length: int, begun: Bytes) -> memoryview:
        target = self._arena.take(length)
        if target is None:
            target = memoryview(bytearray(length))
        target[: len(begun)] = begun
        there = len(begun) + self._take_ahead(target[len(begun) :])
        there += self._endpoint.receive_exactly(target[there:]) if there < length else 0
        if there < length:
            raise ProtocolError(f"hung up after {there} of a write's {length} bytes")
        self._long = self._start == self._end
        return target

    def _take_ahead(self, target: memoryview) -> int:
        """Fill `target` as far as what has been received already goes; how far."""
        start, there = self._start, min(self._end - self._start, len(target))
        target[:there] = self._buffer[start : start + there]
        self._start = start + there
        return there

    def _receive_short(self, length: int) -> None:
        """Receive more of a short payload, and what comes behind it."""
        if self._start + length > len(self._buffer):
            self._renew()
        received = self._endpoint.receive_into(self._buffer[self._end :])
        if not received:
            left = self._end - self._start
            raise ProtocolError(f"hung up after {left} of a write's {length} bytes")
        self._end += received

    def _make_room(self) -> None:
        if not self._lent or len(self._buffer) - self._end < _ROOM_BYTES_MIN:
            self._renew()

    def _renew(self) -> None:
        """Go on at the front of a buffer that nobody else has views of, with what is left."""
        left = bytes(self._buffer[self._start : self._end])
        if self._lent or not self._shared:
            own = None if self._lent or len(self._buffer) < READ_AHEAD_BYTES else self._buffer
            self._buffer = memoryview(b"")  # may well be what the arena gives next
            slab = self._arena.take(READ_AHEAD_BYTES)
            self._shared, self._lent = slab is not None, False
            self._buffer = slab or own or memoryview(bytearray(READ_AHEAD_BYTES))
        self._buffer[: len(left)] = left
        self._start, self._end = 0, len(left)
