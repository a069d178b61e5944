"""One connection to an NBD server, through libnbd, for several threads at once.

Commands are asynchronous: each thread issues its own, then waits. Of those that wait, one at a time looks
after the socket for all of them; when its own command is done, another takes over. So a lone command costs no
hand-over between threads, and many are in flight together.

Of libnbd only what is used here is typed: its Python binding (Debian's python3-libnbd) has no annotations.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import nbd

CONNECT_S = 10.0
"""What connecting and negotiating may take, TLS included."""
STALL_S = 30.0
"""After this long without a sign of life from a TCP peer that owes one, the kernel gives it up."""
_CLOSE_S = 1.0
"""What a farewell may take; it is a courtesy."""

ALLOCATION_CONTEXT = "base:allocation"
STATE_HOLE = 1
STATE_ZERO = 2

_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(STALL_S / 3)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(STALL_S / 6)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_S * 1e3)),
)


class ErrorNumber(Protocol):
    """libnbd's C `int *` that tells a callback of an error: 0, or an errno."""

    value: int


Completion = Callable[[ErrorNumber], int]
ExtentCallback = Callable[[str, int, list[int], ErrorNumber], int]


class Handle(Protocol):
    """The commands of libnbd's handle, nbd_aio_*(3). Buffers are not copied."""

    def aio_pread(self, buf: memoryview, offset: int, completion: Completion) -> int: ...
    def aio_pwrite(self, buf: memoryview, offset: int, completion: Completion) -> int: ...
    def aio_zero(self, count: int, offset: int, completion: Completion, flags: int) -> int: ...
    def aio_flush(self, completion: Completion) -> int: ...
    def aio_block_status(
        self, count: int, offset: int, extent: ExtentCallback, completion: Completion
    ) -> int: ...


Issue = Callable[[Handle, Completion], object]
"""Issues one command on the handle, with the completion."""

NO_HOLE: int = nbd.CMD_FLAG_NO_HOLE


class ConnectError(Exception):
    """The server can't be reached, or doesn't serve the export; never leaves `nbdstore`."""


class LostError(Exception):
    """The connection is gone, and what became of the commands isn't known; never leaves `nbdstore`."""


class _Command:
    """One command in flight: -1, then what the server answered."""

    __slots__ = ("code",)

    def __init__(self) -> None:
        self.code = -1

    def complete(self, error: ErrorNumber) -> int:
        self.code = error.value
        return 1  # libnbd may forget it


class NbdConnection:
    """Connected from construction on, until it is lost or closed. Raises `ConnectError`."""

    def __init__(self, uri: str) -> None:
        self._handle: Any = nbd.NBD()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake)
        self._turn = threading.Condition()
        self._watched = False
        try:
            self._connect(uri)
        except nbd.Error as error:
            raise ConnectError(error.string) from error

    def _connect(self, uri: str) -> None:
        handle = self._handle
        handle.set_uri_allow_local_file(
            True
        )  # tls-psk-file= and tls-certificates=; the URI is the operator's
        handle.set_pread_initialize(False)  # a target is undefined on failure, as `Store.read` says
        handle.add_meta_context(ALLOCATION_CONTEXT)
        deadline_s = time.monotonic() + CONNECT_S
        handle.aio_connect_uri(uri)
        while handle.aio_is_connecting():
            if time.monotonic() > deadline_s:
                raise ConnectError(f"no NBD server answered within {CONNECT_S:g} s")
            self._step(deadline_s - time.monotonic())
        if not handle.aio_is_ready():
            raise ConnectError("the server ended the connection while it negotiated")
        self.size_bytes: int = handle.get_size()
        self.read_only: bool = handle.is_read_only()
        self.can_zero: bool = handle.can_zero()
        self.can_flush: bool = handle.can_flush()
        self.can_allocation: bool = handle.can_meta_context(ALLOCATION_CONTEXT)
        # 0 is "not said", for which the specification has these defaults.
        self.block_bytes: int = handle.get_block_size(nbd.SIZE_MINIMUM) or 1
        self.payload_bytes_max: int = handle.get_block_size(nbd.SIZE_MAXIMUM) or 32 << 20
        self._keep_alive()

    def perform(self, issues: Sequence[Issue]) -> int:
        """Issue the commands, all at once, and wait for all of them.

        Returns 0, or the errno of the first that the server refused. Raises `LostError`.
        """
        commands: list[_Command] = []
        try:
            for issue in issues:
                command = _Command()
                issue(self._handle, command.complete)
                commands.append(command)
        except nbd.Error as error:
            if self._is_lost():
                raise LostError(error.string) from error
            command.code = error.errnum or errno.EINVAL  # libnbd itself refuses it; others are on their way
            commands.append(command)
        os.eventfd_write(self._wake, 1)  # whoever watches the socket may have to wait for other things now
        self._wait(commands)
        codes = [command.code for command in commands]
        if errno.ENOTCONN in codes or errno.ESHUTDOWN in codes or (any(codes) and self._is_lost()):
            raise LostError("the server closed the connection")
        return next((code for code in codes if code), 0)

    def close(self) -> None:
        """Say goodbye if that is possible. Idempotent; nobody uses the connection meanwhile.

        The socket goes with the last reference to this object: other threads may only just be learning that
        the connection was lost.
        """
        with suppress(nbd.Error):
            if self._handle.aio_is_ready():
                self._handle.aio_disconnect()
                deadline_s = time.monotonic() + _CLOSE_S
                while not self._is_lost() and time.monotonic() < deadline_s:
                    self._step(deadline_s - time.monotonic())

    def _is_lost(self) -> bool:
        return bool(self._handle.aio_is_dead() or self._handle.aio_is_closed())

    def _wait(self, commands: Sequence[_Command]) -> None:
        def done() -> bool:
            return all(command.code >= 0 for command in commands)

        while not done():
            with self._turn:
                self._turn.wait_for(lambda: done() or not self._watched)
                if done():
                    return
                self._watched = True
            try:
                while not done():
                    self._step(None)
            except nbd.Error as error:
                raise LostError(error.string) from error
            finally:
                with self._turn:
                    self._watched = False
                    self._turn.notify_all()

    def _step(self, timeout_s: float | None) -> None:
        """Wait for the socket, and let libnbd do what it can; completions run in here."""
        handle = self._handle
        direction = handle.aio_get_direction()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
            select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        )
        socket_descriptor = handle.aio_get_fd()
        poll.register(socket_descriptor, events)
        ready = dict(poll.poll(None if timeout_s is None else max(timeout_s, 0) * 1e3))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        happened = ready.get(socket_descriptor, 0)
        direction = handle.aio_get_direction()  # another thread's command may have changed it
        if happened & _READABLE and direction & nbd.AIO_DIRECTION_READ:
            handle.aio_notify_read()
        elif happened and direction & nbd.AIO_DIRECTION_WRITE:
            handle.aio_notify_write()
        with self._turn:
            self._turn.notify_all()  # some of the others may be done

    def _keep_alive(self) -> None:
        """A peer that vanished without a word must be noticed; a unix socket's can't."""
        with socket.socket(fileno=os.dup(self._handle.aio_get_fd())) as peer:
            if peer.family in (socket.AF_INET, socket.AF_INET6):
                for level, option, value in _KEEPALIVE:
                    peer.setsockopt(level, option, value)
