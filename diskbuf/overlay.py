"""The held writes of all epochs, in front of a store, and what a read sees of them.

Invariants:
1. `_sealed` holds consecutive epochs in ascending order, and `open_epoch` follows the last of them (P5);
2. a byte's newest change is in the newest map that has it; a byte that no map has is the store's;
3. `held_bytes` is the sum over all maps, `_sealed_bytes` over the sealed ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from diskbuf.contract import Pressure
from diskbuf.extents import EXTENT_BYTES_MIN, Extent, ExtentMap, Kind

PIECES_MAX = 64
"""The most pieces of one epoch in one plan. Planning is done under a lock, for which a seal may wait: this
makes it some 20 µs, however small the pieces of a long read are."""

_LENGTH = attrgetter("length")


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Where the bytes of a read come from: held `pieces`, and `gaps` (offset, length) of the store.

    It stays right while epochs are sealed, released and written to: a piece doesn't change, and was the
    newest when the plan was made. A gap's bytes were the store's then; what reaches the store later is
    newer still, and belongs to a write that nobody knew to be before this read.
    """

    offset: int
    length: int
    pieces: tuple[Extent, ...]
    gaps: tuple[tuple[int, int], ...]

    def whole(self) -> memoryview | None:
        """The answer, if it is one held piece and needs no copy."""
        if len(self.pieces) == 1 and not self.gaps and self.pieces[0].kind is Kind.DATA:
            return self.pieces[0].data
        return None

    @property
    def zero(self) -> bool:
        """Whether all of it is known to be zeros."""
        return not self.gaps and all(piece.kind is not Kind.DATA for piece in self.pieces)

    def span(self, target: memoryview) -> tuple[int, memoryview]:
        """Where the shortest range with all gaps begins, and its place in `target`. Reading it at once costs
        less than reading each gap, and `compose` puts the pieces right."""
        start = self.gaps[0][0]
        last, length = self.gaps[-1]
        return start, target[start - self.offset : last + length - self.offset]

    def compose(self, target: memoryview) -> None:
        """Copy the pieces into `target`, the read's `length` bytes, whose span has been read."""
        for piece in self.pieces:
            start = piece.offset - self.offset
            data = piece.data if piece.kind is Kind.DATA else bytes(piece.length)
            target[start : start + piece.length] = data


class Overlay:
    """The open epoch's changes and those of the sealed, unreleased epochs."""

    __slots__ = (
        "_open",
        "_sealed",
        "_sealed_bytes",
        "_sealed_items",
        "limit_bytes",
        "open_epoch",
        "peak_bytes",
    )

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.open_epoch = 0
        self.peak_bytes = 0
        self._open = ExtentMap()
        self._sealed: deque[tuple[int, ExtentMap]] = deque()
        self._sealed_bytes = 0
        self._sealed_items = 0

    @property
    def sealed_epochs(self) -> tuple[int, ...]:
        return tuple(epoch for epoch, _ in self._sealed)

    @property
    def held_items(self) -> int:
        # In this order: `seal` moves items from the one to the other, and readers don't take the lock.
        return len(self._open) + self._sealed_items

    @property
    def held_bytes(self) -> int:
        return self._sealed_bytes + self._open.held_bytes

    @property
    def pressure(self) -> Pressure:
        held = self.held_bytes
        if held * 2 < self.limit_bytes:
            return Pressure.NONE
        return Pressure.FULL if held >= self.limit_bytes else Pressure.SOON

    @property
    def open_map(self) -> ExtentMap:
        return self._open

    def begin(self, epoch: int) -> None:
        """Start to hold, with `epoch`; nothing may be held."""
        assert self.held_items == 0 and not self._sealed, "a new beginning would mix epochs"
        self.open_epoch = epoch

    def put(self, changes: Sequence[Extent], *, limited: bool) -> int:
        """Add changes to the open epoch, none after the one that reaches the limit if `limited`. How many."""
        count = len(changes)
        bound = sum(map(_LENGTH, changes)) + count * EXTENT_BYTES_MIN
        if not limited or self.held_bytes + bound < self.limit_bytes:
            self._open.put_all(changes)
        else:
            count = 0
            while count < len(changes) and self.held_bytes < self.limit_bytes:
                self._open.put(changes[count])
                count += 1
        if self.held_bytes > self.peak_bytes:
            self.peak_bytes = self.held_bytes
        return count

    def seal(self) -> None:
        """Close the open epoch and open the next; takes the same time whatever was written."""
        self._sealed.append((self.open_epoch, self._open))
        self._sealed_bytes += self._open.held_bytes
        self._sealed_items += len(self._open)
        self._open = ExtentMap()
        self.open_epoch += 1

    def sealed_map(self, epoch: int) -> ExtentMap | None:
        """The changes of a sealed, unreleased epoch, or None."""
        return next((changes for sealed, changes in self._sealed if sealed == epoch), None)

    def held_map(self) -> ExtentMap:
        """All held changes as one, the newest where they overlap."""
        merged = ExtentMap()
        for changes in (*(sealed for _, sealed in self._sealed), self._open):
            for extent in changes.extents:
                merged.put(extent)
        return merged

    def oldest(self) -> tuple[int, ExtentMap] | None:
        """The oldest sealed epoch and its changes, or None."""
        return self._sealed[0] if self._sealed else None

    def retire_oldest(self) -> None:
        """Forget the oldest sealed epoch: all of it is in the store."""
        _, changes = self._sealed.popleft()
        self._sealed_bytes -= changes.held_bytes
        self._sealed_items -= len(changes)

    def retire_open(self) -> None:
        """Forget the open epoch's changes: all of them are in the store."""
        assert not self._sealed, "older epochs come first (P5)"
        self._open = ExtentMap()

    def clear(self) -> int:
        """Drop everything; return the number of items dropped."""
        dropped = self.held_items
        self._sealed.clear()
        self._sealed_bytes = self._sealed_items = 0
        self._open = ExtentMap()
        return dropped

    def plan(self, offset: int, length: int) -> ReadPlan:
        """Where a read finds each of its bytes: the newest map that has it, else the store.

        The plan is for the first bytes only, if more than `PIECES_MAX` pieces of a map are in the range.
        """
        maps = (self._open, *(sealed for _, sealed in reversed(self._sealed)))
        end = min(changes.bound(offset, offset + length, PIECES_MAX) for changes in maps)
        gaps = [(offset, end - offset)]
        pieces: list[Extent] = []
        for changes in maps:
            if gaps and len(changes):
                gaps = _fill(gaps, changes, pieces)
        return ReadPlan(offset, end - offset, tuple(pieces), tuple(gaps))


def _fill(gaps: list[tuple[int, int]], changes: ExtentMap, pieces: list[Extent]) -> list[tuple[int, int]]:
    """Add to `pieces` what `changes` has of the gaps; return the gaps that are left."""
    left = []
    for offset, length in gaps:
        position, end = offset, offset + length
        for extent in changes.overlapping(offset, length):
            if extent.offset > position:
                left.append((position, extent.offset - position))
            pieces.append(extent)
            position = extent.end
        if position < end:
            left.append((position, end - position))
    return left
