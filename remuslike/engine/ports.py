"""The ports through which the engine meets the world; adapters satisfy them structurally."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096

Pages = NDArray[np.uint8]  # shape (n, PAGE_BYTES)
Indices = NDArray[np.int64]  # shape (n,), ascending page or chunk numbers


class BufferStatistics(Protocol):
    """A moment of an OutputBuffer; frozen."""

    @property
    def held_items(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def limit_bytes(self) -> int: ...
    @property
    def released_items(self) -> int: ...
    @property
    def released_bytes(self) -> int: ...
    @property
    def dropped_items(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...


class OutputBuffer(Protocol):
    """Holds what a guest emits, epoch by epoch (DESIGN.md, section 4, is the contract)."""

    @property
    def depth(self) -> int: ...
    def hold(self, epoch: int) -> None: ...
    def prepare(self) -> None: ...
    def seal(self, epoch: int) -> None: ...
    async def release(self, epoch: int) -> None: ...
    async def open(self) -> None: ...
    def discard(self) -> None: ...
    def statistics(self) -> BufferStatistics: ...
    def on_output(self, callback: Callable[[int], None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Capture:
    """What a paused guest is, short of its disks: `indices` (n,), `pages` (n, PAGE_BYTES), the
    device state, and how long each part took. `pages` is reused once as many more captures were
    taken as the guest was told may be in use."""

    indices: Indices
    pages: Pages
    devices: bytes
    scan_ms: float
    copy_ms: float
    devices_ms: float


@dataclass(frozen=True, slots=True)
class Token:
    """The witness's record: `generation` 0 and holder "" mean that there is none yet."""

    generation: int
    holder: str


class Witness(Protocol):
    """The third party that decides who may open output alone (P3).

    Both calls raise an error of `remuslike.errors.WitnessError` when there is no answer: then
    nothing is known, and the caller asks again.
    """

    async def read(self) -> Token: ...

    async def acquire(self, expected_generation: int, holder: str) -> tuple[bool, Token]:
        """Compare-and-swap. True: the token is now (expected_generation + 1, holder). False: the
        token as it stands. Asking again after a lost answer is safe: a token that already is
        (expected_generation + 1, holder) counts as granted."""
        ...


class RunningGuest(Protocol):
    """A guest that can be paused and captured: the primary's side."""

    page_count: int

    async def pause(self, *, capture_follows: bool = False) -> None:
        """Stop its processors. On return it emits nothing until `resume`. Idempotent.

        `capture_follows`: `capture` comes next, and its work may begin."""

    async def resume(self) -> None:
        """Let it run. Idempotent."""

    async def capture(self) -> Capture:
        """Prerequisite: paused. Pages written since the last capture or `dirty_pages`, and the
        device state."""
        ...

    def start_tracking(self) -> None:
        """From now on writes are noticed; every page counts as written."""

    async def dirty_pages(self) -> Indices:
        """Page numbers written since the last call or capture; they count as clean from now on."""
        ...

    def read_pages(self, indices: Indices) -> Pages:
        """A copy of these pages, which a running guest may be writing: then the page is dirty."""
        ...

    async def destroy(self) -> None:
        """End it at once; nothing of it runs on return. Idempotent, never raises."""


class StandbyGuest(Protocol):
    """A guest that waits to take over: the secondary's side."""

    @property
    def ram(self) -> Pages: ...

    async def activate(self, devices: bytes) -> None:
        """Load the device state and run. Raises an error of `remuslike.errors.GuestError`."""

    async def destroy(self) -> None: ...


StepHook = Callable[[str, int], None]  # (name of the step, epoch): called as a driver passes it

PRIMARY_STEPS: Sequence[str] = (
    "checkpoint.begin",
    "checkpoint.paused",
    "checkpoint.sealed",
    "checkpoint.captured",
    "checkpoint.resumed",
    "send.begin",
    "send.half",
    "send.end",
    "ack.received",
    "release.begin",
    "release.end",
)
SHARED_STEPS: Sequence[str] = (
    "release.write",  # before each of an epoch's writes to a disk
    "release.written",
    "release.synced",
    "released.sent",
)
"""What a primary passes besides if its hosts share disks: but for the last, between a release's begin and
end, and only for an epoch that writes."""

BACKUP_STEPS: Sequence[str] = (
    "receive.begin",
    "receive.complete",
    "log.end",
    "ack.sent",
    "apply.begin",
    "apply.end",
)
