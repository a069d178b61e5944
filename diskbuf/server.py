"""Serves disk buffers over NBD, on a unix or a TCP socket.

trio accepts, limits and cancels; each client is served by threads of its own, in `session` and `connection`.
A client can hurt itself only: bytes that aren't NBD close its connection, with one line in the log; what it
may make the server remember is bounded; and nobody waits for it but its own threads.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.crowd import Crowd
from diskbuf.errors import SocketError, SocketInUseError
from diskbuf.session import Session
from diskbuf.wire import Export, check_export_name, export_flags

CONNECTIONS_MAX = 32
"""QEMU makes one per disk, multi-connection tools about eight; with what each may have in flight this bounds
the server's memory."""
NEGOTIATION_S = 10.0
"""The time from connecting to choosing an export: ample for a busy client, and a silent one costs no more."""
_BACKLOG = 16

_log = logging.getLogger("diskbuf")


async def serve_nbd_unix(
    socket_path: str | os.PathLike[str],
    exports: Mapping[str, DiskBuffer],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve each buffer under its export name, until cancelled; `started` once clients can connect.

    Takes over a socket file that a crash left behind, and removes its own at the end. Raises
    `SocketInUseError` if a server lives there, `SocketError` if the path can't be listened on,
    `ExportError` for a name that the protocol can't carry.
    """
    path = Path(socket_path)
    clients = Clients(exports)
    listening, ours = _listen(path)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, clients.serve, [listener])
            task_status.started()
    finally:
        listening.close()
        _unlink_if(path, ours)


async def serve_nbd_tcp(
    host: str,
    port: int,
    exports: Mapping[str, DiskBuffer],
    *,
    tls: ssl.SSLContext | None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As `serve_nbd_unix` on the addresses of `host`; `started` with those that are listened on.

    Clients must use `tls`; None means plaintext, which everyone on the way can read and change. Port 0 is
    any free one. Raises `SocketError`, `SocketInUseError` and `ExportError`.
    """
    clients = Clients(exports, tls)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SocketInUseError(
                f"address {host}, port {port}: in use; stop the other server or give another port"
            ) from error
        raise SocketError(
            f"address {host}, port {port}: {error}; give an address of this machine and a port for you"
        ) from error
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, clients.serve, listeners)
        task_status.started([listener.socket.getsockname()[:2] for listener in listeners])


class Clients:
    """Admits clients up to the limit and serves each of them to its end, in threads of its own."""

    def __init__(
        self,
        exports: Mapping[str, DiskBuffer],
        tls: ssl.SSLContext | None = None,
        negotiation_s: float = NEGOTIATION_S,
    ) -> None:
        self._buffers = exports
        self._tls = tls
        self._negotiation_s = negotiation_s
        self._exports = {
            check_export_name(name): Export(buffer.size_bytes, export_flags(buffer.read_only))
            for name, buffer in exports.items()
        }
        self._crowd = Crowd()
        self._threads = trio.CapacityLimiter(CONNECTIONS_MAX)

    @property
    def connected(self) -> int:
        """How many clients are being served."""
        return self._threads.borrowed_tokens

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it leaves. Cancelled, it returns when the last of its threads has ended."""
        with socket.socket(fileno=stream.socket.detach()) as client_socket:
            try:
                client = _name_of(client_socket)
            except OSError:
                return  # it has gone already
            if not self._threads.available_tokens:
                _log.warning(
                    "%s refused: %d connections are open, which is the limit", client, CONNECTIONS_MAX
                )
                return
            session = Session(
                client_socket,
                client,
                self._buffers,
                self._exports,
                self._tls,
                self._negotiation_s,
                self._crowd,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_when_cancelled, session)
                await trio.to_thread.run_sync(session.run, limiter=self._threads)
                nursery.cancel_scope.cancel()


async def _stop_when_cancelled(session: Session) -> None:
    try:
        await trio.sleep_forever()
    finally:
        session.stop()


def _name_of(client_socket: socket.socket) -> str:
    """How the log calls a client: unix sockets have no addresses, but the kernel knows the process."""
    if client_socket.family == socket.AF_UNIX:
        process_id = client_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED)
        return f"NBD client of process {process_id}"
    host, port = client_socket.getpeername()[:2]
    return f"NBD client of {host}, port {port}"


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
