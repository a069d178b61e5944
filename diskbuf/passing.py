"""Changes that go to the store at once, because the buffer is open."""

from __future__ import annotations

from collections.abc import Sequence

from diskbuf.chunks import Chunks
from diskbuf.errors import StoreError
from diskbuf.extents import Extent, Kind
from diskbuf.gate import Gate
from diskbuf.store import InPlace, Store, write_in_order


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
        self._untold: StoreError | None = None

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

    def sync(self, *, by_client: bool = True) -> bool:
        """Have what has passed on stable storage; False if nothing passes now. Raises `StoreError`.

        A store may tell only once what it has lost. If that was not to a client, the next one hears of it.
        """
        if not self._gate.try_pass():
            return False
        try:
            self._store.sync()
        except StoreError as error:
            if not by_client:
                self._untold = error
            raise
        finally:
            self._gate.flushed()
        if by_client and self._untold is not None:
            untold, self._untold = self._untold, None
            raise untold
        return True

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
