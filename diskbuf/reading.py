"""What a client reads: the held changes, newest first, and the store behind them.

Why reads never go back in time, though the store is read without a lock while epochs are released into it:

- A read plans first, under the gate's lock, and asks the store after that. A byte that the plan takes from
  the overlay was the newest then. A byte that no epoch held was the store's then, and the store gets newer
  changes only: epochs in order, each leaving the overlay after the last of it is written.
- So each byte is as new as when the read began, or newer; newer only by a change that was asked for before
  the read was answered, and which of two such requests comes first is nobody's right to know. It may see
  one part of a change and not another, as on any disk.
- A store in another process may lose what its journal has applied, and has older bytes then. It counts its
  losses: a read that finds that there was one has the journal mend it, and reads again.
- A reply by view may show yet newer changes when it is sent. The read isn't answered until then, so nothing
  is different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from diskbuf.extents import Bytes, Extent, Kind
from diskbuf.gate import Gate
from diskbuf.journal import Journal
from diskbuf.overlay import ReadPlan
from diskbuf.store import Allocation, Losing, Store, losses_of

_T = TypeVar("_T")

_INLINE_READ_BYTES_MAX = 256 << 10
"""The longest read from the page cache that doesn't get a thread: copying it takes about as long as that."""


class Reading:
    """Reads of one disk. Every method may be called from any thread."""

    def __init__(self, gate: Gate, store: Store, journal: Journal | None, *, in_memory: bool) -> None:
        self._gate = gate
        self._store = store
        self._journal = journal if isinstance(store, Losing) else None
        self._in_memory = in_memory

    def from_store(self, read: Callable[[], _T]) -> _T:
        """What `read` finds in the store, as new as the journal has applied. Raises `StoreError`,
        `JournalFormatError`."""
        while True:
            mended = 0 if self._journal is None else self._journal.losses_mended
            found = read()
            if self._journal is None or losses_of(self._store) == mended:
                return found
            self._journal.mend()

    def try_read(self, offset: int, length: int, *, holes: bool = False) -> Bytes | None:
        """See `DiskBuffer.try_read`."""
        if self._in_memory and self._gate.holds_nothing:
            return self._store.read_view(offset, length)
        plan = self._gate.plan(offset, length)
        if plan.length < length:
            return None
        if (whole := plan.whole()) is not None:
            return whole
        if not plan.gaps:
            return b"" if holes and plan.zero else self._compose(plan)
        if self._in_memory:
            return self._compose(plan) if plan.pieces else self._store.read_view(offset, length)
        if length > _INLINE_READ_BYTES_MAX:
            return None
        target = memoryview(bytearray(length))
        if not self._store.read_cached(*plan.span(target)):
            return None
        plan.compose(target)
        return target

    def read(self, offset: int, length: int) -> Bytes:
        """See `DiskBuffer.read`."""
        plan = self._gate.plan(offset, length)
        if (whole := plan.whole()) is not None and plan.length == length:
            return whole
        if plan.length == length:
            return self._compose(plan)
        return b"".join(self._compose(part) for part in self._plans(offset, length))

    def allocation(self, offset: int, length: int) -> Iterator[Allocation]:
        """See `DiskBuffer.allocation`."""
        for plan in self._plans(offset, length):
            parts: list[tuple[int, Extent | int]] = [(piece.offset, piece) for piece in plan.pieces]
            parts += plan.gaps
            for start, part in sorted(parts, key=lambda part: part[0]):
                if isinstance(part, int):
                    yield from self._allocation_of_store(start, part)
                else:
                    yield Allocation(
                        part.length, hole=part.kind is Kind.HOLE, zero=part.kind is not Kind.DATA
                    )

    def _allocation_of_store(self, offset: int, length: int) -> Iterator[Allocation]:
        while length:
            for part in self.from_store(partial(self._store.allocation, offset, length)):
                yield part
                offset += part.length
                length -= part.length

    def _plans(self, offset: int, length: int) -> Iterator[ReadPlan]:
        """Plans for a range, one after another; each is as new as the moment it is made in."""
        end = offset + length
        while offset < end:
            plan = self._gate.plan(offset, end - offset)
            yield plan
            offset += plan.length

    def _compose(self, plan: ReadPlan) -> memoryview:
        target = memoryview(bytearray(plan.length))
        if plan.gaps:
            self.from_store(partial(self._store.read, *plan.span(target)))
        plan.compose(target)
        return target
