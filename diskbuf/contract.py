"""The values of the OutputBuffer contract (DESIGN.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """What becomes of the guest's writes."""

    CLOSED = "closed"  # refused; reads are served
    OPEN = "open"  # they go to the store at once
    HOLDING = "holding"  # they belong to the open epoch and wait
    DISCARDED = "discarded"  # refused for ever; what was held is gone


class Pressure(StrEnum):
    """How near the held bytes are to the limit (P6)."""

    NONE = "none"
    SOON = "soon"  # half of it: take an early checkpoint
    FULL = "full"  # at it: writes wait


StepHook = Callable[[str, int], None]
"""(step, epoch): called in a release's thread as it passes "write" (before the first write to the store, and
without a journal before each), "written" and, if it synchronises, "synced". An epoch that changes nothing
passes none."""


def pass_step(_step: str, _epoch: int) -> None:
    """The hook of who wants to know nothing."""


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """A snapshot; items are extents, and `open_epoch` is None while nothing is being held.

    A held extent counts for its data, but for no less than its bookkeeping (`extents.EXTENT_BYTES_MIN`).
    `released_*` count what has reached the store, at once or after its epoch; `peak_bytes` is the most that
    was ever held at once.
    """

    state: State
    open_epoch: int | None
    sealed_epochs: tuple[int, ...]
    held_items: int
    held_bytes: int
    limit_bytes: int
    released_items: int
    released_bytes: int
    dropped_items: int
    peak_bytes: int
