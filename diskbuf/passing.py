"""Changes that go to the store at once, because the buffer is open."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from diskbuf.chunks import Chunks
from diskbuf.errors import DiskbufError, StoreError
from diskbuf.extents import Extent, Kind
from diskbuf.gate import Gate
from diskbuf.store import InPlace, Store, write_in_order


@dataclass(slots=True)
class Listener:
    """Somebody who flushes, and of how many failed flushes they were told."""

    heard: int


class Passing:
    """What the gate lets pass, on its way. Every method may be called from any thread.

    A write marks its chunks before it reaches the store and again after, so that whoever reads a chunk in
    between finds it marked once more.
    """

    def __init__(self, gate: Gate, store: Store, chunks: Chunks) -> None:
        self._gate = gate
        self._store = store
        self._in_place = store if isinstance(store, InPlace) else None
        self._chunks = chunks
        self._syncing = threading.Lock()  # one sync at a time: the next one's success hides no failure
        self._counting = threading.Lock()  # of what follows; nobody has it for long
        self._failures = 0
        self._failure: StoreError | None = None  # the last one
        self._told = 0  # failures that somebody's client has been told of

    def write(self, changes: Sequence[Extent]) -> None:
        """Write changes that were let pass, in order. Raises `StoreError`."""
        self._chunks.mark(changes)
        written = False
        try:
            write_in_order(self._store, changes)
            written = True
        finally:
            self._chunks.mark(changes)
            self._gate.passed(changes, written=written)

    def listener(self) -> Listener:
        """A client that begins now. It may be one that lost its connection and had no answer to its flush: it
        hears of a failure that nobody was told of."""
        with self._counting:
            return Listener(self._told)

    def told(self, failure: DiskbufError) -> None:
        """An error has been sent to the client that it was raised for. Of the failed flushes that it tells
        of, nobody is told who comes anew."""
        if isinstance(failure, StoreError):
            with self._counting:
                self._told = max(self._told, failure.failed_flushes)

    def has_news(self, listener: Listener) -> bool:
        """Whether a flush failed of which this client hasn't heard: its next one, at the latest, says so."""
        return listener.heard != self._failures

    def sync(self, listener: Listener | None = None) -> bool:
        """Have what has passed on stable storage; False if nothing passes now. Raises `StoreError`.

        A store may tell only once what it has lost. So each client hears of it once, whoever's flush it was
        that failed: all were promised that a flush covers what anybody was answered (CAN_MULTI_CONN).
        """
        if self._gate.flushes_ignored:
            listener = None  # it isn't the guest that would hear of it
        if not self._gate.try_pass():
            self._tell(listener)
            return False
        try:
            with self._syncing:
                self._sync_and_tell(listener)
        finally:
            self._gate.flushed()
        return True

    def _sync_and_tell(self, listener: Listener | None) -> None:
        try:
            self._store.sync()
        except StoreError as error:
            with self._counting:
                self._failures += 1
                self._failure = error
            if listener is None:
                raise
        self._tell(listener)

    def _tell(self, listener: Listener | None) -> None:
        """Raise the last failure, if this listener hasn't heard of it."""
        with self._counting:
            if listener is None or listener.heard == self._failures:
                return
            listener.heard = self._failures
            failure = self._failure
            assert failure is not None
            raised = copy(failure)  # which others raise, too, in threads of their own
            raised.failed_flushes = self._failures
        raise raised from failure

    def begin(self, offset: int, length: int) -> Extent | None:
        """A change whose bytes may be received to where they belong, the store itself; then `end` it soon,
        for a release waits for it. None if it has to be made as any other."""
        if self._in_place is None or (view := self._in_place.write_view(offset, length)) is None:
            return None
        if not self._gate.try_pass():
            return None
        change = Extent(offset, length, Kind.DATA, view)
        self._chunks.mark((change,))
        return change

    def end(self, change: Extent, written_bytes: int) -> bool:
        """At least so many bytes of a change were received. True if that is all of it, and no epoch has begun
        meanwhile; else it has not happened. Of a client that hung up a part stays: as of any write that isn't
        answered, nobody may count on either."""
        assert self._in_place is not None, "nothing began"
        self._in_place.note_written(change.offset, change.length)
        self._chunks.mark((change,))
        whole = written_bytes == change.length
        return self._gate.passed((change,), written=whole) and whole
