"""Any NBD export as a store: qemu-nbd brings qcow2, nbdkit brings the rest.

A connection that is lost is made again, within bounds, and what was under way is repeated: reads, writes and
zeroes do the same twice. But the server may have died, and with it what it had acknowledged and not yet
flushed. So the first `sync` after a loss fails if anything was written since the last good one: whoever
asked for it (a journal, or a client's flush) must write again what it can't do without.

Zeros are left to the server (NBD_CMD_WRITE_ZEROES) or else written. NBD_CMD_TRIM alone is of no use here:
nobody knows what a trimmed range reads as.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

from diskbuf.blockedges import BlockEdges
from diskbuf.errors import (
    StoreError,
    StoreFullError,
    StoreIOError,
    StoreOpenError,
    StoreReadOnlyError,
    StoreShortError,
)
from diskbuf.extents import Bytes
from diskbuf.store import ALLOCATIONS_MAX, Allocation, Store

try:
    from diskbuf.nbdconnection import (
        NO_HOLE,
        STATE_HOLE,
        STATE_ZERO,
        Completion,
        ConnectError,
        ErrorNumber,
        Handle,
        Issue,
        LostError,
        NbdConnection,
    )
except ModuleNotFoundError as missing:
    if missing.name not in ("nbd", "libnbdmod"):
        raise
    raise StoreOpenError(
        "NBD stores need libnbd's Python binding; install it: apt-get install python3-libnbd"
    ) from missing

RECONNECT_S = 15.0
"""How long a lost server is looked for before an operation fails: time for it to be started again."""
_RETRY_S_MIN = 0.05
_RETRY_S_MAX = 1.0
_LOSSES_MAX = 3
"""So often an operation survives the loss of the connection: one that kills its server must not go on."""

_PIECE_BYTES_MIN = 64 << 10
"""Shorter pieces of a write are copied together: a command's cost is that of copying about so much."""
_COMMAND_BYTES_MAX = 8 << 20
"""The longest read or write: enough for full throughput; servers buffer a command whole."""
_RANGE_BYTES_MAX = 1 << 30
"""The longest range that one command zeroes or describes: it must fit 32 bits, and end in bounded time."""
_COMMANDS_MAX = 32
"""Commands of one operation in flight: enough to hide the way there and back, and no flood."""
_ZEROS = bytes(1 << 20)

_log = logging.getLogger("diskbuf")


def open_nbd_store(uri: str, *, read_only: bool = False, reconnect_s: float = RECONNECT_S) -> Store:
    """Connect to an NBD URI, as libnbd takes it (nbd_connect_uri(3)).

    Raises `StoreOpenError` if there is no such server or export, or if it is read-only and `read_only` isn't
    asked for.
    """
    store = NbdStore(uri, read_only=read_only, reconnect_s=reconnect_s)
    return BlockEdges(store, store.block_bytes) if store.block_bytes > 1 else store


class NbdStore:
    """An export, exact to its blocks of `block_bytes`. `open_nbd_store` makes one exact to the byte of it."""

    def __init__(self, uri: str, *, read_only: bool = False, reconnect_s: float = RECONNECT_S) -> None:
        self._uri = uri
        self._read_only = read_only
        self._reconnect_s = reconnect_s
        self._closing = threading.Event()
        self._reconnecting = threading.Lock()
        self._attempts = 0
        self._unreachable = ""
        # Counted from before a write is issued: what a loss finds here above `_synced` may be gone.
        self._state = threading.Lock()
        self._written = 0
        self._synced = 0
        self._lost_writes = False
        self._losses = 0
        try:
            self._connection = NbdConnection(uri)
        except ConnectError as error:
            raise StoreOpenError(f"store {uri}: {error}; is its server running?") from error
        self._size_bytes = self._connection.size_bytes
        self.block_bytes = self._connection.block_bytes
        self._check_opened()

    def _check_opened(self) -> None:
        connection, problem = self._connection, ""
        if connection.size_bytes == 0:
            problem = "the export has 0 bytes; give it the disk's size"
        elif connection.read_only and not self._read_only:
            problem = "the server exports it read-only; open it so, or have it exported writable"
        elif connection.size_bytes % connection.block_bytes:
            problem = (
                f"the server wants blocks of {connection.block_bytes} bytes, and the export's"
                f" {connection.size_bytes} are no multiple; mend the server"
            )
        if problem:
            self.close()
            raise StoreOpenError(f"store {self._uri}: {problem}")
        if not (connection.can_flush or self._read_only):
            _log.warning("store %s: its server can't flush; what it answers is taken for stable", self._uri)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def losses(self) -> int:
        """See `store.Losing`."""
        return self._losses

    def read(self, offset: int, target: memoryview) -> None:
        def issues(_connection: NbdConnection) -> Iterator[Issue]:
            for start in range(0, len(target), step):
                yield partial(_pread, target[start : start + step], offset + start)

        step = self._command_bytes
        self._perform("read", offset, len(target), issues)

    def read_cached(self, offset: int, target: memoryview) -> bool:
        return False

    def read_view(self, offset: int, length: int) -> memoryview | None:
        return None

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        def issues(_connection: NbdConnection) -> Iterator[Issue]:
            position = offset
            for payload in payloads:
                yield partial(_pwrite, payload, position)
                position += len(payload)

        length = sum(map(len, pieces))
        self._begin_write("write", offset, length)
        payloads = list(_payloads(pieces, self._command_bytes))
        self._perform("write", offset, length, issues)

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        def issues(connection: NbdConnection) -> Iterator[Issue]:
            end = offset + length
            step = _RANGE_BYTES_MAX if connection.can_zero else min(len(_ZEROS), self._command_bytes)
            for start in range(offset, end, step):
                count = min(step, end - start)
                if connection.can_zero:
                    yield partial(_zero, count, start, 0 if punch_hole else NO_HOLE)
                else:
                    yield partial(_pwrite, memoryview(_ZEROS)[:count], start)

        self._begin_write("zero", offset, length)
        self._perform("zero", offset, length, issues)

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        length = min(length, _RANGE_BYTES_MAX)
        entries: list[int] = []

        def extents(_context: str, start: int, found: list[int], error: ErrorNumber) -> int:
            if start == offset and not error.value:
                entries[:] = found
            return 1

        def issues(connection: NbdConnection) -> Iterator[Issue]:
            if connection.can_allocation:
                yield lambda handle, done: handle.aio_block_status(length, offset, extents, done)

        self._perform("allocation", offset, length, issues)
        return _allocations(entries, length)

    def sync(self) -> None:
        def issues(connection: NbdConnection) -> Iterator[Issue]:
            if connection.can_flush:
                yield _flush

        if self._read_only:
            return
        with self._state:
            written = self._written
        self._perform("sync", 0, self._size_bytes, issues)
        with self._state:
            self._synced = written
            lost, self._lost_writes = self._lost_writes, False
        if lost:
            raise StoreIOError(
                f"store {self._uri}: the server was lost, and may have lost what was written since the last"
                " sync; write it again"
            )

    def close(self) -> None:
        self._closing.set()
        self._connection.close()

    @property
    def _command_bytes(self) -> int:
        limit = min(_COMMAND_BYTES_MAX, self._connection.payload_bytes_max)
        return max(limit // self.block_bytes, 1) * self.block_bytes

    def _begin_write(self, operation: str, offset: int, length: int) -> None:
        if self._read_only:
            raise StoreReadOnlyError(
                f"store {self._uri}: {operation} of {length} bytes at {offset}, but it was opened read-only"
            )
        with self._state:
            self._written += 1

    def _perform(
        self, operation: str, offset: int, length: int, issues: Callable[[NbdConnection], Iterator[Issue]]
    ) -> None:
        """Have the server do it; over a new connection, from the beginning, if this one is lost."""
        connection = self._connection
        what = f"store {self._uri}: {operation} of {length} bytes at {offset} failed"
        for _ in range(_LOSSES_MAX):
            try:
                code = 0
                pending = issues(connection)
                while not code and (batch := list(islice(pending, _COMMANDS_MAX))):
                    code = connection.perform(batch)
            except LostError as error:
                _log.warning("store %s: connection lost: %s", self._uri, error)
                connection = self._reconnected(connection, what)
                continue
            if code:
                raise _refused(what, code)
            return
        raise StoreIOError(f"{what}: the connection was lost {_LOSSES_MAX} times; look into the server's log")

    def _reconnected(self, lost: NbdConnection, what: str) -> NbdConnection:
        """The connection after `lost`: whoever comes first makes it, and whoever waits shares its fate."""
        attempt = self._attempts
        with self._reconnecting:
            if self._connection is not lost:
                return self._connection
            if self._attempts == attempt:
                self._attempts += 1
                self._unreachable = ""
                self._unreachable = self._reconnect()
            if self._unreachable:
                raise StoreIOError(f"{what}: {self._unreachable}; start its server, then repeat")
            return self._connection

    def _reconnect(self) -> str:
        """Replace the connection; why that failed, or nothing."""
        deadline_s = time.monotonic() + self._reconnect_s
        delay_s = _RETRY_S_MIN
        while True:
            try:
                connection = NbdConnection(self._uri)
                break
            except ConnectError as error:
                if time.monotonic() + delay_s > deadline_s:
                    return f"no connection within {self._reconnect_s:g} s: {error}"
                if self._closing.wait(delay_s):
                    return "closed"
                delay_s = min(delay_s * 2, _RETRY_S_MAX)
        if (changed := self._changed(connection)) is not None:
            connection.close()
            raise changed
        with self._state:
            if self._written != self._synced:
                self._lost_writes = True
                self._losses += 1
        self._connection = connection
        _log.warning("store %s: connected again", self._uri)
        return ""

    def _changed(self, connection: NbdConnection) -> StoreError | None:
        """Why what is served now can't be the same disk."""
        if connection.size_bytes != self._size_bytes:
            kind = StoreShortError if connection.size_bytes < self._size_bytes else StoreIOError
            return kind(
                f"store {self._uri}: it has {connection.size_bytes} bytes now, not its {self._size_bytes};"
                " serve the same disk again, then repeat"
            )
        if connection.read_only and not self._read_only:
            return StoreReadOnlyError(
                f"store {self._uri}: it is read-only now; serve it writable, then repeat"
            )
        if connection.block_bytes > self.block_bytes:
            return StoreIOError(
                f"store {self._uri}: it wants blocks of {connection.block_bytes} bytes now, not of"
                f" {self.block_bytes}; serve it as before, then repeat"
            )
        return None


def _pread(target: memoryview, offset: int, handle: Handle, done: Completion) -> None:
    handle.aio_pread(target, offset, done)


def _pwrite(payload: memoryview, offset: int, handle: Handle, done: Completion) -> None:
    handle.aio_pwrite(payload, offset, done)


def _zero(count: int, offset: int, flags: int, handle: Handle, done: Completion) -> None:
    handle.aio_zero(count, offset, done, flags)


def _flush(handle: Handle, done: Completion) -> None:
    handle.aio_flush(done)


def _payloads(pieces: Sequence[Bytes], limit: int) -> Iterator[memoryview]:
    """What to write by one command each: long pieces as they are, or parts of them; short ones together.

    All but the last are multiples of a block, if `limit` is one and there is a block of more than a byte.
    """
    if any(len(piece) < _PIECE_BYTES_MIN for piece in pieces):
        pieces = [b"".join(pieces)] if len(pieces) > 1 else pieces
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), limit):
            yield view[start : start + limit]


def _allocations(entries: Sequence[int], length: int) -> list[Allocation]:
    """The server's (length, state) pairs, cut to `length`; no pairs are a server that doesn't know."""
    found: list[Allocation] = []
    for count, state in zip(entries[::2], entries[1::2], strict=True):
        count = min(count, length)
        if count == 0 or len(found) == ALLOCATIONS_MAX:
            break
        allocation = Allocation(count, bool(state & STATE_HOLE), bool(state & STATE_ZERO))
        if found and (found[-1].hole, found[-1].zero) == (allocation.hole, allocation.zero):
            allocation = Allocation(found.pop().length + count, allocation.hole, allocation.zero)
        found.append(allocation)
        length -= count
    return found or [Allocation(length, hole=False, zero=False)]


def _refused(what: str, code: int) -> StoreError:
    """The server's answer as an error of ours: "Error values" of the specification."""
    name = errno.errorcode.get(code, str(code))
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFullError(f"{what}: {name} from the server; make room there, then release again")
    if code in (errno.EPERM, errno.EROFS, errno.EACCES):
        return StoreReadOnlyError(f"{what}: {name} from the server; make it writable")
    return StoreIOError(f"{what}: {name} from the server; look into its log")
