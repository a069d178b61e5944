"""Serves disk buffers over NBD on a unix socket: what the pure `wire` decides, carried out by trio.

A client can hurt itself only: bytes that aren't NBD close its connection, with one line in the log; what it
may make the server remember is bounded; and each connection has a task of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.connection import Connection
from diskbuf.errors import ProtocolError, SocketError, SocketInUseError
from diskbuf.wire import Export, Negotiation, export_flags

CONNECTIONS_MAX = 32
"""QEMU makes one per disk, multi-connection tools about eight; with what each may have in flight this bounds
the server's memory."""
NEGOTIATION_S = 10.0
"""The time from connecting to choosing an export: ample for a busy client, and a silent one costs no more."""
_BACKLOG = 16
_RECEIVE_BYTES = 4096

_log = logging.getLogger("diskbuf")


async def serve_nbd_unix(
    socket_path: str | os.PathLike[str],
    exports: Mapping[str, DiskBuffer],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve each buffer under its export name, until cancelled; `started` once clients can connect.

    Takes over a socket file that a crash left behind, and removes its own at the end. Raises
    `SocketInUseError` if a server lives there, `SocketError` if the path can't be listened on.
    """
    path = Path(socket_path)
    listening, ours = _listen(path)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    clients = Clients(exports)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, clients.serve, [listener])
            task_status.started()
    finally:
        listening.close()
        _unlink_if(path, ours)


class Clients:
    """Admits clients up to the limit and serves each of them to its end."""

    def __init__(self, exports: Mapping[str, DiskBuffer]) -> None:
        self._buffers = exports
        self._exports = {
            name: Export(buffer.size_bytes, export_flags(buffer.read_only))
            for name, buffer in exports.items()
        }
        self._connected = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client. What it does wrong ends here; our own defects don't."""
        async with stream:
            client = _name_of(stream.socket)
            if self._connected >= CONNECTIONS_MAX:
                _log.warning(
                    "%s refused: %d connections are open, which is the limit", client, self._connected
                )
                return
            self._connected += 1
            try:
                await self._serve_admitted(stream.socket, client)
            except* ProtocolError as errors:
                _log.warning("%s disconnected: %s", client, _first(errors))
            except* OSError as errors:
                _log.info("%s left: %s", client, _first(errors))
            finally:
                self._connected -= 1

    async def _serve_admitted(self, client_socket: trio.socket.SocketType, client: str) -> None:
        negotiation = Negotiation(self._exports)
        try:
            with trio.fail_after(NEGOTIATION_S):
                await _negotiate(client_socket, negotiation)
        except trio.TooSlowError:
            raise ProtocolError(f"no export was chosen within {NEGOTIATION_S:g} s") from None
        if negotiation.chosen is not None:
            buffer = self._buffers[negotiation.chosen]
            await Connection(client_socket, buffer, client, negotiation.tail).serve()


async def _negotiate(client_socket: trio.socket.SocketType, negotiation: Negotiation) -> None:
    """Negotiate until the client has chosen an export or given up."""
    replies = negotiation.greeting
    while True:
        while replies:
            replies = replies[await client_socket.send(replies) :]
        if negotiation.finished:
            return
        received = await client_socket.recv(_RECEIVE_BYTES)
        if not received:
            return
        replies = negotiation.receive(received)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error within a group of groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _name_of(client_socket: trio.socket.SocketType) -> str:
    """How the log calls a client: unix sockets have no addresses, but the kernel knows the process."""
    process_id = client_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED)
    return f"NBD client of process {process_id}"


def _listen(path: Path) -> tuple[socket.socket, os.stat_result]:
    """A listening socket at `path`, for this user only, and the identity of its file."""
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
        return listening, path.stat()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise SocketInUseError(f"socket {path}: in use; another server was faster") from error
        raise SocketError(f"socket {path}: {error}; give a shorter or existing, writable path") from error


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more; whatever else is at `path` stays."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(f"socket {path}: {error.strerror}; give another path") from error
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(
            f"socket {path}: there is something else at this path; move it or give another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            _unlink_if(path, found)
            return
        except BlockingIOError:
            pass  # its backlog is full, so it lives
        except OSError as error:
            raise SocketError(f"socket {path}: {error.strerror}; give another path") from error
    raise SocketInUseError(f"socket {path}: in use by a living server; stop it or give another path")


def _unlink_if(path: Path, found: os.stat_result) -> None:
    """Remove the file that was found at `path`, but not another one that took its place."""
    try:
        if os.path.samestat(path.stat(), found):
            path.unlink()
    except FileNotFoundError:
        pass
