"""A client's socket as a connection's threads use it: one receives, any of them sends, any may end it.

Blocking calls, out of which `shut_down` wakes every thread.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeVar

from diskbuf.extents import Bytes, rest_of

_T = TypeVar("_T")

_TIMEVAL = struct.Struct("ll")

SOCKET_BUFFER_BYTES = 4 << 20
"""Room in the kernel for 16 reads of 256 KiB: the server goes on while the client takes them."""

SOON_S = 0.1
"""How long a change that is under way in the store may wait for its client, and a release for it."""

_PARTS_MAX = 1024
"""IOV_MAX of Linux."""
_SOON, _EVER = _TIMEVAL.pack(0, int(SOON_S * 1e6)), _TIMEVAL.pack(0, 0)
_RECORD_BYTES_MAX = 16384
"""The most that one TLS record carries."""


class Endpoint(Protocol):
    """What a connection needs of a socket. All raise OSError when it breaks, TimeoutError when it is late."""

    def receive_into(self, target: memoryview) -> int:
        """Wait for bytes and take as many as are there and fit; 0 if the client hung up."""

    def receive_exactly(self, target: memoryview) -> int:
        """Fill `target`; how much of it was filled before the client hung up."""

    def receive_soon(self, target: memoryview) -> int:
        """Fill `target`, or as much of it as comes within SOON_S; how much, perhaps nothing."""

    def send_all(self, parts: Sequence[Bytes]) -> None:
        """Send the parts one after another."""

    def set_timeout(self, timeout_s: float | None) -> None:
        """Let no later call wait longer than that."""

    def say_goodbye(self) -> None:
        """The client has, and nothing is left to be sent. Never raises."""

    def shut_down(self) -> None:
        """Whoever receives finds that the client hung up; whoever sends, that it broke. From any thread."""

    def close(self) -> None:
        """When no thread uses it any more."""


class PlainEndpoint:
    """A unix or TCP socket as it is."""

    def __init__(self, client_socket: socket.socket) -> None:
        self._socket = client_socket
        client_socket.setblocking(True)
        _tune(client_socket)

    def fileno(self) -> int:
        """For who waits for it himself."""
        return self._socket.fileno()

    def receive_into(self, target: memoryview) -> int:
        return self._socket.recv_into(target)

    def receive_now(self, target: memoryview) -> int | None:
        """As `receive_into`, without waiting: None if nothing is there."""
        try:
            return self._socket.recv_into(target, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def receive_exactly(self, target: memoryview) -> int:
        done = 0
        while done < len(target):
            received = self._socket.recv_into(target[done:], 0, socket.MSG_WAITALL)
            if not received:
                break
            done += received
        return done

    def receive_soon(self, target: memoryview) -> int:
        # Here the kernel waits, not Python, whose own timeouts cost two more system calls a piece.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SOON)
        try:
            return self._socket.recv_into(target, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            return 0
        finally:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _EVER)

    def send_all(self, parts: Sequence[Bytes]) -> None:
        for first in range(0, len(parts), _PARTS_MAX):
            some = parts[first : first + _PARTS_MAX]
            sent = self._socket.sendmsg(some)
            if sent < sum(map(len, some)):
                self._send_rest(some, sent)

    def send_now(self, parts: Sequence[Bytes]) -> list[Bytes]:
        """Send as much as there is room for; what is left."""
        some = parts[:_PARTS_MAX]
        try:
            sent = self._socket.sendmsg(some, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return list(parts)
        if sent == sum(map(len, some)):
            return list(parts[_PARTS_MAX:])
        return [*rest_of(some, sent), *parts[_PARTS_MAX:]]

    def _send_rest(self, parts: Sequence[Bytes], sent: int) -> None:
        while pending := rest_of(parts, sent):
            parts, sent = pending, self._socket.sendmsg(pending)

    def set_timeout(self, timeout_s: float | None) -> None:
        self._socket.settimeout(timeout_s)

    def say_goodbye(self) -> None:
        pass  # closing says it

    def shut_down(self) -> None:
        with suppress(OSError):  # it is broken already, or closed
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class TlsEndpoint:
    """A TLS session over a socket; `handshake` comes first.

    OpenSSL has one state for both directions and lets no two threads into it. So nobody waits inside: a
    thread that finds nothing to receive, or no room to send, leaves and waits for the socket outside.
    """

    def __init__(self, client_socket: ssl.SSLSocket) -> None:
        self._socket = client_socket
        self._timeout_s: float | None = None
        self._lock = threading.Lock()
        client_socket.setblocking(False)
        _tune(client_socket)

    def handshake(self) -> None:
        """Raises ssl.SSLError if the client's TLS and ours don't agree."""
        self._step(self._socket.do_handshake)

    def receive_into(self, target: memoryview) -> int:
        try:
            return self._step(partial(self._socket.recv_into, target))
        except ssl.SSLEOFError:
            return 0  # hung up without a close_notify: the layer above knows whether that was the end

    def receive_exactly(self, target: memoryview) -> int:
        done = 0
        while done < len(target):
            received = self.receive_into(target[done:])
            if not received:
                break
            done += received
        return done

    def receive_soon(self, target: memoryview) -> int:
        return 0  # what comes is decrypted in pieces of 16 KiB, by the side of which a copy is nothing

    def send_all(self, parts: Sequence[Bytes]) -> None:
        """Small parts go in records together; OpenSSL takes one buffer at a time."""
        gathered = bytearray()
        for part in parts:
            if len(part) >= _RECORD_BYTES_MAX:
                self._send(gathered)
                gathered = bytearray()
                self._send(part)
            else:
                gathered += part
        self._send(gathered)

    def _send(self, data: Bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._step(partial(self._socket.send, rest)) :]

    def _step(self, operation: Callable[[], _T]) -> _T:
        while True:
            with self._lock:
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
            poller = select.poll()
            poller.register(self._socket.fileno(), wanted)
            if not poller.poll(None if self._timeout_s is None else self._timeout_s * 1000):
                raise TimeoutError("timed out")

    def set_timeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def say_goodbye(self) -> None:
        # Sends close_notify, without which the end looks like an attack (RFC 8446, section 6.1); the client's
        # own isn't waited for.
        with self._lock, suppress(OSError, ValueError):
            self._socket.unwrap()

    def shut_down(self) -> None:
        with suppress(OSError):  # it is broken already, or closed
            # Not SSLSocket's own, which forgets the session under the feet of other threads.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def _tune(client_socket: socket.socket) -> None:
    """Ask for buffers as large as the system allows to anybody (net.core.wmem_max); over TCP, send at once,
    and find out when the client's host is dead."""
    client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    if client_socket.family != socket.AF_UNIX:
        client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
