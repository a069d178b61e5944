"""The running server in this process, and clients that say whatever they are told to."""

from __future__ import annotations

import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.extents import Bytes
from diskbuf.server import serve_nbd_unix
from diskbuf.store import Allocation

from .grammar import EXPORTS, SIZE

PATIENCE_S = 20.0
"""Far beyond what any exchange takes: a server that hangs fails."""
_LIMIT_BYTES = 1 << 30  # far beyond what a disk of SIZE can hold: nobody waits for a release


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

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _check(self, operation: str, offset: int, length: int, *, changing: bool = False) -> None:
        if offset < 0 or length <= 0 or offset + length > SIZE or (changing and self.read_only):
            self.strays.append(f"{operation} of {length} bytes at {offset}")
            raise AssertionError(self.strays[-1])


class Served:
    """A server with one disk in each state. Leaving the block ends it, and fails if it crashed, hung, left
    a thread or a descriptor behind, or had its stores asked for what they haven't got."""

    def __init__(self) -> None:
        self.stores = {
            name: RecordingStore(read_only=name == "read-only", views=name != "öffen") for name in EXPORTS
        }
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
        buffers = {name: DiskBuffer(store, limit_bytes=_LIMIT_BYTES) for name, store in self.stores.items()}
        buffers["held"].hold(1)
        await buffers["öffen"].open()
        await buffers["read-only"].open()
        self._end = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_nbd_unix, self.path, buffers)
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
