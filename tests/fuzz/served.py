"""The running server in this process, and clients that say whatever they are told to."""

from __future__ import annotations

import os
import select
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType

import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.extents import Bytes
from diskbuf.server import serve_nbd_tcp, serve_nbd_unix
from diskbuf.store import Allocation

from .grammar import CLIENT_FLAGS, EXPORTS, SIZE, STARTTLS, option

PATIENCE_S = 20.0
"""Far beyond what any exchange takes: a server that hangs fails."""
_LIMIT_BYTES = 1 << 30  # far beyond what a disk of SIZE can hold: nobody waits for a release
_LIMIT_BUSY_BYTES = 2048
_EPOCH_S = 0.001


HOST = "localhost"
_GREETING_BYTES, _ACKNOWLEDGEMENT_BYTES = 18, 20


class RecordingStore:
    """A disk in memory that notes what it should never be asked for.

    With `views` it is read in place, by the thread that received the request; without, by workers.
    """

    def __init__(self, *, read_only: bool, views: bool) -> None:
        self.size_bytes = SIZE
        self.read_only = read_only
        self.uri = "memory:fuzzed"
        self.strays: list[str] = []
        self._image = memoryview(bytearray(SIZE))
        self._views = views

    def read(self, offset: int, target: memoryview) -> None:
        self._check("read", offset, len(target))
        target[:] = self._image[offset : offset + len(target)]

    def read_cached(self, offset: int, target: memoryview) -> bool:
        if self._views:
            self.read(offset, target)
        return self._views

    def read_view(self, offset: int, length: int) -> memoryview | None:
        self._check("read_view", offset, length)
        return self._image[offset : offset + length].toreadonly() if self._views else None

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        data = b"".join(pieces)
        self._check("write", offset, len(data), changing=True)
        self._image[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._check("zero", offset, length, changing=True)
        self._image[offset : offset + length] = bytes(length)

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        self._check("allocation", offset, length)
        first = min(length, 4096)
        rest = [Allocation(length - first, hole=True, zero=True)] if length > first else []
        return [Allocation(first, hole=False, zero=False), *rest]

    def write_view(self, offset: int, length: int) -> memoryview | None:
        self._check("write_view", offset, length, changing=True)
        return self._image[offset : offset + length] if self._views else None

    def note_written(self, offset: int, length: int) -> None:
        self._check("note_written", offset, length, changing=True)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _check(self, operation: str, offset: int, length: int, *, changing: bool = False) -> None:
        if offset < 0 or length <= 0 or offset + length > SIZE or (changing and self.read_only):
            self.strays.append(f"{operation} of {length} bytes at {offset}")
            raise AssertionError(self.strays[-1])


def contexts(key: Path, certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, with a certificate for HOST that vouches for itself."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


class Served:
    """A server with one disk in each state. Leaving the block ends it, and fails if it crashed, hung, left
    a thread or a descriptor behind, or had its stores asked for what they haven't got."""

    def __init__(self, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None) -> None:
        """With `tls`, the server's context and a client's, all that is asked for travels encrypted, over
        TCP."""
        self.stores = {
            name: RecordingStore(read_only=name == "read-only", views=name not in ("öffen", "busy"))
            for name in EXPORTS
        }
        self._encrypted = tls
        self._failure: BaseException | None = None
        self._started = threading.Event()
        self._end: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def __enter__(self) -> Served:
        self._descriptors, self._threads = _descriptors(), set(threading.enumerate())
        self._directory = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.path = Path(self._directory.name, "nbd")
        self._thread = threading.Thread(target=self._run, name="fuzzed server")
        self._thread.start()
        if not self._started.wait(PATIENCE_S) or self._failure is not None:
            raise AssertionError("the server didn't start") from self._failure
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None and self._end is not None and self._failure is None:
            self._token.run_sync_soon(self._end.set)
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            raise AssertionError("the server didn't end when it was cancelled")
        self._directory.cleanup()
        if self._failure is not None:
            raise AssertionError("the server crashed") from self._failure
        if error is None:
            self.check_stores()
            self._check_nothing_left()

    def check_stores(self) -> None:
        """Nothing out of range has reached a store so far."""
        assert not any(store.strays for store in self.stores.values()), {
            name: store.strays for name, store in self.stores.items()
        }

    def exchange(self, pieces: list[bytes], *, patient: bool = True) -> bytes:
        """Say the pieces one by one to a new connection, then nothing more; all that the server answers until
        it hangs up. An impatient client hangs up itself, and reads nothing."""
        if self._encrypted is not None:
            with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as client:
                return _exchange_encrypted(client, self._encrypted[1], pieces, patient)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(self.path))
            client.setblocking(False)
            return _exchange(client, pieces, patient)

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as failure:
            self._failure = failure
            self._started.set()

    async def _serve(self) -> None:
        buffers = {
            name: DiskBuffer(store, limit_bytes=_LIMIT_BUSY_BYTES if name == "busy" else _LIMIT_BYTES)
            for name, store in self.stores.items()
        }
        buffers["held"].hold(1)
        for name in ("öffen", "read-only", "in place"):
            await buffers[name].open()
        self._end = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_seal_and_release, buffers["busy"])
            if self._encrypted is None:
                await nursery.start(serve_nbd_unix, self.path, buffers)
            else:
                serve = partial(serve_nbd_tcp, "127.0.0.1", 0, buffers, tls=self._encrypted[0])
                ((_, self._port),) = await nursery.start(serve)
            self._started.set()
            await self._end.wait()
            nursery.cancel_scope.cancel()

    def _check_nothing_left(self) -> None:
        # trio keeps idle threads for the next job; they have such a name only while they are idle.
        threads = [
            thread
            for thread in set(threading.enumerate()) - self._threads
            if not thread.name.startswith("Trio thread")
        ]
        assert threads == [], "threads are left"
        assert _descriptors() == self._descriptors, "descriptors are left"


def _exchange(client: socket.socket, pieces: list[bytes], patient: bool) -> bytes:
    deadline = time.monotonic() + PATIENCE_S
    received = bytearray()
    pending = [memoryview(piece) for piece in pieces if piece]
    speaking = True
    while True:
        if speaking and not pending:
            if not patient:
                return bytes(received)
            speaking = False
            _hush(client)
        left_s = deadline - time.monotonic()
        readable, writable, _ = select.select(
            [client] if patient else [], [client] if speaking else [], [], max(left_s, 0)
        )
        assert readable or writable, f"the server hangs; it answered {len(received)} bytes so far"
        if readable:
            try:
                part = client.recv(1 << 16)
            except ConnectionResetError:  # it hung up before it had read all
                part = b""
            if not part:
                return bytes(received)
            received += part
        if writable:
            try:
                sent = client.send(pending[0])
            except (BrokenPipeError, ConnectionResetError):
                if not patient:
                    return bytes(received)
                speaking = False
                continue
            pending[0] = pending[0][sent:]
            if not pending[0]:
                del pending[0]


async def _seal_and_release(buffer: DiskBuffer) -> None:
    """An epoch after the other, for ever."""
    for epoch in count(1):
        if epoch == 1:
            buffer.hold(epoch)
        await trio.sleep(_EPOCH_S)
        buffer.seal(epoch)
        await buffer.release(epoch)


def _exchange_encrypted(
    client: socket.socket, context: ssl.SSLContext, pieces: list[bytes], patient: bool
) -> bytes:
    """As `_exchange`, once both sides have begun TLS. The client flags went before it, in clear.

    All is sent before anything is read: a socket has room for the answers.
    """
    received = _received(client, _GREETING_BYTES)
    client.sendall(CLIENT_FLAGS + option(STARTTLS))
    _received(client, _ACKNOWLEDGEMENT_BYTES)
    hung_up = suppress(ssl.SSLError, BrokenPipeError, ConnectionResetError)  # before it had read all
    with context.wrap_socket(client, server_hostname=HOST) as encrypted, hung_up:
        encrypted.sendall(b"".join(pieces).removeprefix(CLIENT_FLAGS))
        if patient:
            # Without close_notify: to Python's wrapper that would be the end of both directions.
            socket.socket.shutdown(encrypted, socket.SHUT_WR)
            while part := encrypted.recv(1 << 16):
                received += part
    return received


def _received(client: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        received += (part := client.recv(length - len(received)))
        assert part, "the server hung up before TLS began"
    return received


def _hush(client: socket.socket) -> None:
    with suppress(OSError):  # the server may have gone already
        client.shutdown(socket.SHUT_WR)


def _descriptors() -> list[str]:
    """What each open descriptor of this process is."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found.append(str(link.readlink()))
    return sorted(found)
