"""Which image of the store must be found after a crash. Knows nothing of the journal's bytes but what the
workload saw it write: no code of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from .disk import Entry, Ranges, put, whole


@dataclass(frozen=True, slots=True)
class Change:
    """One write of an epoch; zeros and holes are zeros here."""

    offset: int
    data: bytes


@dataclass(slots=True)
class Boundary:
    """The store after an epoch, and all that was written to the journal to say so."""

    epoch: int
    image: bytes
    pieces: list[tuple[int, bytes]] = field(default_factory=list)

    def is_whole(self, journal: bytes) -> bool:
        """Whether the epoch's record is in this journal, every byte of it."""
        return bool(self.pieces) and all(
            journal[offset : offset + len(data)] == data for offset, data in self.pieces
        )


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What may be found at one moment.

    `floor` is the store after the last epoch that was promised, `passing` what others wrote to it since (by
    place in the log). `trying` are the epochs under way, in order; `failed` those whose steps failed, the
    last step first, until another step succeeds.
    """

    floor: bytes
    passing: tuple[tuple[int, Entry], ...] = ()
    trying: tuple[Boundary, ...] = ()
    failed: tuple[tuple[Boundary, ...], ...] = ()

    def expected(self, journal: bytes, left: dict[int, Ranges]) -> bytes:
        """The image after a crash that left this journal, and of others' writes what `left` says."""
        newest = self._newest(journal)
        return self.passed(left) if newest is None else newest.image

    def recovered(self, journal: bytes) -> Knowledge:
        """After a recovery by a process that saw this journal."""
        newest = self._newest(journal)
        return Knowledge(self.floor, self.passing) if newest is None else Knowledge(newest.image)

    def _newest(self, journal: bytes) -> Boundary | None:
        """The last whole epoch under way. Two steps begin at one place, so that both can only have left
        whole records there if they are the same: the same epoch, tried again."""
        longest: list[Boundary] = []
        for path in (self.trying, *self.failed):
            found = list(takewhile(lambda boundary: boundary.is_whole(journal), path))
            longest = max(longest, found, key=len)
        return longest[-1] if longest else None

    def passed(self, left: dict[int, Ranges] | None = None) -> bytes:
        """The floor with what others wrote: all of it, or what a crash left."""
        image = bytearray(self.floor)
        for index, entry in self.passing:
            put(image, entry, whole(entry) if left is None else left.get(index, whole(entry)))
        return bytes(image)

    def attempt(self, epochs: Sequence[tuple[int, Sequence[Change]]]) -> Knowledge:
        """Epochs are being written, one upon the other. What failed before may still be there."""
        boundaries = []
        image = bytearray(self.passed())
        for epoch, changes in epochs:
            for change in changes:
                image[change.offset : change.offset + len(change.data)] = change.data
            boundaries.append(Boundary(epoch, bytes(image)))
        return replace(self, trying=tuple(boundaries))

    def let_pass(self, index: int, entry: Entry) -> Knowledge:
        """Somebody else wrote to the store; `index` is the write's place in the log."""
        return replace(self, passing=(*self.passing, (index, entry)))

    def succeeded(self) -> Knowledge:
        """The step returned: its epochs are promised, and what failed before is gone."""
        if self.trying:
            return Knowledge(self.trying[-1].image)
        return replace(self, failed=())

    def gave_up(self) -> Knowledge:
        """The step failed before its epochs were durable."""
        return replace(self, trying=(), failed=(self.trying, *self.failed) if self.trying else self.failed)
