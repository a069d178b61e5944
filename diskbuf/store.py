"""What is behind a buffer: where released writes end up, and how they are written there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol, runtime_checkable

from diskbuf.extents import Bytes, Extent, Kind

ALLOCATIONS_MAX = 4096
"""The most that one answer of `Store.allocation` describes: a fragmented disk can have millions, and who
wants more asks again from where the answer ended."""

PIECES_MAX = 1024
"""The most pieces that `apply_extents` gathers: IOV_MAX of Linux, so that a write is one system call."""
_GATHER_BYTES_MAX = 8 << 20
"""The most that one write gathers: soon enough done for a discard not to be late, and far beyond the size
at which a larger system call is a faster one."""

SCATTERED_BYTES_MAX = 64 << 10
"""The longest piece that is written among others; longer ones are worth a write each."""
_SCATTERED_MAX = 128
"""Pieces at once, after which somebody may stop it: some 0.1 ms."""

_KIND, _LENGTH = attrgetter("kind"), attrgetter("length")


@dataclass(frozen=True, slots=True)
class Allocation:
    """What lies in the next `length` bytes of a store, in the sense of NBD's "base:allocation"."""

    length: int
    hole: bool
    """Nothing is allocated here, or what is may be lost without harm."""
    zero: bool
    """All of it reads as zeros. False means that nobody knows."""


class Store(Protocol):
    """A disk of a fixed size. Ranges are within it and not empty: requests were checked at the gate.

    Every method but `read_view` may block, may be called from several threads at once, and raises a
    `StoreError` on failure. A failed `write` or `zero` may have done a part, and is repeated as a whole.
    Concurrent changes of different bytes don't disturb each other; of the same bytes, either is the last.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def uri(self) -> str:
        """What opens the same store again, from any working directory: for messages, and in journals."""

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target`, of bytes, from `offset`. On failure its content is undefined."""

    def read_cached(self, offset: int, target: memoryview) -> bool:
        """Fill `target` if that needs no waiting; else return False, and its content is undefined."""

    def read_view(self, offset: int, length: int) -> memoryview | None:
        """The range itself, without a copy, which later writes show through; None if that can't be had."""

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """Write the pieces one after another from `offset`."""

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        """Make a range read as zeros; deallocate it if asked and possible, keep it allocated if not."""

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        """What is allocated from `offset` on, at least one byte and at most `length`; unlike neighbours.

        The answer may end early, and calls allocated what it isn't sure of.
        """

    def sync(self) -> None:
        """Return when all writes that had returned are on stable storage.

        A failure is told once: what was written since the last success may be lost, and is to be written
        again.
        """

    def close(self) -> None:
        """Let go of the store; it is not used again. Idempotent."""


@runtime_checkable
class Scattering(Protocol):
    """What a store can do besides, if short pieces here and there cost it less than being asked for each."""

    def write_scattered(self, extents: Sequence[Extent]) -> None:
        """Write extents of data, none longer than SCATTERED_BYTES_MAX, in order if they overlap."""


@runtime_checkable
class InPlace(Protocol):
    """What a store can do besides, if its bytes are this process's memory."""

    def write_view(self, offset: int, length: int) -> memoryview | None:
        """The range itself, to be written to, or None; whoever has done so calls `note_written`."""

    def note_written(self, offset: int, length: int) -> None:
        """Bytes were written to views of the range."""


@runtime_checkable
class Losing(Protocol):
    """What a store can do besides, if its bytes are in another process, whose end it survives."""

    @property
    def losses(self) -> int:
        """How often that may have lost what was written since the last `sync`: since then, older bytes may
        have been read. It grows before the first read of them."""
        ...


def losses_of(store: Store) -> int:
    """Of any store; always 0 of those that lose nothing before they are closed."""
    return store.losses if isinstance(store, Losing) else 0


def apply_extents(store: Store, extents: Sequence[Extent], stopped: Callable[[], bool]) -> bool:
    """Write ascending extents to the store, neighbours together. Repeating it changes nothing more.

    Asks `stopped` before each write, and returns False at once if it says so; True means that all is in the
    store. Raises `StoreError` at the first write that fails.
    """
    if not isinstance(store, Scattering):
        return _gather(store, extents, stopped)
    for first in range(0, len(extents), _SCATTERED_MAX):
        if stopped():
            return False
        some = extents[first : first + _SCATTERED_MAX]
        if _all_short_data(some):
            store.write_scattered(some)
            continue
        store.write_scattered([each for each in some if _is_short_data(each)])
        # They don't overlap: which comes first makes no difference.
        if not _gather(store, (each for each in some if not _is_short_data(each)), stopped):
            return False
    return True


def write_in_order(store: Store, changes: Sequence[Extent]) -> None:
    """Write changes that may overlap, one after another. Raises `StoreError` at the first that fails."""
    if len(changes) > 1 and isinstance(store, Scattering) and _all_short_data(changes):
        store.write_scattered(changes)
        return
    for offset, length, kind, data in changes:
        if kind is Kind.DATA:
            store.write(offset, (data,))
        else:
            store.zero(offset, length, punch_hole=kind is Kind.HOLE)


def _all_short_data(extents: Sequence[Extent]) -> bool:
    """By loops of the interpreter's own, for it is asked of every write."""
    return not any(map(_KIND, extents)) and max(map(_LENGTH, extents)) <= SCATTERED_BYTES_MAX


def _is_short_data(extent: Extent) -> bool:
    return extent.kind is Kind.DATA and extent.length <= SCATTERED_BYTES_MAX


def _gather(store: Store, extents: Iterable[Extent], stopped: Callable[[], bool]) -> bool:
    """Write neighbours together."""
    pieces: list[Bytes] = []
    start = end = gathered_max = 0
    for offset, length, kind, data in extents:
        if kind is Kind.DATA:
            if pieces and offset == end < gathered_max and len(pieces) < PIECES_MAX:
                pieces.append(data)
                end += length
                continue
            if pieces:
                if stopped():
                    return False
                store.write(start, pieces)
            pieces = [data]
            start, end, gathered_max = offset, offset + length, offset + _GATHER_BYTES_MAX
        else:
            if pieces:
                if stopped():
                    return False
                store.write(start, pieces)
                pieces = []
            if stopped():
                return False
            store.zero(offset, length, punch_hole=kind is Kind.HOLE)
    if pieces:
        if stopped():
            return False
        store.write(start, pieces)
    return True
