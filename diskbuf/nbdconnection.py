"""One connection to an NBD server, through libnbd, for several threads at once.

Commands are asynchronous: each thread issues its own, then waits. Of those that wait, one at a time looks
after the socket for all of them; when its own command is done, another takes over. So a lone command costs no
hand-over between threads, and many are in flight together: measured against nbdkit's memory plugin, 4 KiB
reads of one thread reach 24,000 a second, and of eight threads 34,000.

Of libnbd only what is used here is typed: its Python binding (Debian's python3-libnbd) has no annotations.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol

import nbd

CONNECT_S = 10.0
"""What connecting and negotiating may take, TLS included."""
STALL_S = 30.0
"""After this long without a sign of life from a TCP peer that owes one, the kernel gives it up."""
SILENT_S = 60.0
"""After this long without a byte from a server that owes one, be it stopped or stuck, the log says so: twice
what Linux gives a disk to answer. It is waited for all the same: what it has been told it may yet do, over
what came by another connection meanwhile."""
_CLOSE_S = 1.0
"""What a farewell may take; it is a courtesy."""

_log = logging.getLogger("diskbuf")

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


class _Batch:
    """Commands that this thread waits for together."""

    __slots__ = ("codes", "count", "thread", "wake", "watches", "woken")

    def __init__(self, count: int, wake: int) -> None:
        self.count = count
        self.wake = wake
        self.thread = threading.get_ident()
        self.codes: list[int] = []  # of those that are done: 0, or an errno
        self.watches = False  # it is this thread's turn at the socket
        self.woken: SimpleQueue[None] = SimpleQueue()

    @property
    def done(self) -> bool:
        return len(self.codes) >= self.count

    def complete(self, error: ErrorNumber) -> int:
        self.end(error.value)
        return 1  # libnbd may forget it

    def end(self, code: int) -> None:
        self.codes.append(code)
        if self.done:
            self.woken.put(None)
            if self.watches and threading.get_ident() != self.thread:
                # A command of another thread has noticed that the connection is lost, and ended all of them.
                os.eventfd_write(self.wake, 1)


class NbdConnection:
    """Connected from construction on, until it is lost or closed. Raises `ConnectError`."""

    def __init__(self, uri: str) -> None:
        self._handle: Any = nbd.NBD()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake)
        self._turn = threading.Lock()
        self._watched = False  # by the thread of a batch
        self._waiting: dict[_Batch, None] = {}  # for their end, or their turn; in order
        try:
            self._connect(uri)
        except nbd.Error as error:
            raise ConnectError(error.string) from error

    def _connect(self, uri: str) -> None:
        handle = self._handle
        handle.set_uri_allow_local_file(True)  # for tls-certificates=; the URI is the operator's
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
        batch = _Batch(len(issues), self._wake)
        try:
            for issue in issues:
                issue(self._handle, batch.complete)
        except nbd.Error as error:
            if self._is_lost():
                raise LostError(error.string) from error
            # libnbd itself refuses this one, and the rest isn't issued. Those before are on their way.
            batch.count = issues.index(issue) + 1
            batch.end(error.errnum or errno.EINVAL)
        if self._handle.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
            os.eventfd_write(self._wake, 1)  # whoever watches the socket must do so for writing, too
        self._wait(batch)
        if errno.ENOTCONN in batch.codes or errno.ESHUTDOWN in batch.codes:
            raise LostError("the server closed the connection")
        code = next((code for code in batch.codes if code), 0)
        if code and self._is_lost():
            raise LostError("the server failed a command, and closed the connection")
        return code

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

    def _wait(self, batch: _Batch) -> None:
        """Return when all of the batch is done. Raises `LostError`."""
        with self._turn:
            if self._watched:
                self._waiting[batch] = None
            else:
                self._watched = batch.watches = True
        if not batch.watches:
            batch.woken.get()  # it is done, or it is our turn
            with self._turn:
                self._waiting.pop(batch, None)
            if not batch.watches:
                return
        try:
            while not batch.done:
                if not self._step(SILENT_S):
                    _log.warning(
                        "an NBD server owes an answer and has been silent for %g s; it is waited for: "
                        "end it, or have it go on", SILENT_S,
                    )  # fmt: skip
        except nbd.Error as error:
            raise LostError(error.string) from error
        finally:
            self._hand_over()

    def _hand_over(self) -> None:
        """Somebody else watches the socket from now on: the one who has waited longest, if any."""
        with self._turn:
            while self._waiting:
                batch = next(iter(self._waiting))
                del self._waiting[batch]
                if not batch.done:
                    batch.watches = True
                    batch.woken.put(None)
                    return
            self._watched = False

    def _step(self, timeout_s: float) -> bool:
        """Wait for the socket, and let libnbd do what it can; completions run in here. False if nothing came
        in time."""
        handle = self._handle
        direction = handle.aio_get_direction()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
            select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        )
        socket_descriptor = handle.aio_get_fd()
        poll.register(socket_descriptor, events)
        ready = dict(poll.poll(max(timeout_s, 0) * 1e3))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        happened = ready.get(socket_descriptor, 0)
        direction = handle.aio_get_direction()  # another thread's command may have changed it
        if happened & _READABLE and direction & nbd.AIO_DIRECTION_READ:
            handle.aio_notify_read()
        elif happened and direction & nbd.AIO_DIRECTION_WRITE:
            handle.aio_notify_write()
        return bool(ready)

    def _keep_alive(self) -> None:
        """A peer that vanished without a word must be noticed soon; a unix socket's can't."""
        with socket.socket(fileno=os.dup(self._handle.aio_get_fd())) as peer:
            if peer.family in (socket.AF_INET, socket.AF_INET6):
                for level, option, value in _KEEPALIVE:
                    peer.setsockopt(level, option, value)
