"""How a guest's writes are noticed: the port of dirty-page trackers, and the one place that picks.

PAGEMAP_SCAN comes first: it forgets nothing but what it reports, and touches only RAM. Soft-dirty bits are
forgotten for all of QEMU at once, which then takes a page fault a page, and KVM loses its own page table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from remuslike.config import GuestSettings
from remuslike.engine.ports import Indices
from remuslike.errors import MissingToolError
from remuslike.guest.dirty import PagemapScan, probe_pagemap_scan
from remuslike.guest.injection import inject_write_protection
from remuslike.guest.memory import GuestMemory
from remuslike.guest.page_table import ProcessPageTable, probe_soft_dirty
from remuslike.guest.soft_dirty import SoftDirty


class DirtyTracker(Protocol):
    """Notices which pages of a region a process writes.

    No write is ever missed, whenever it falls. That a page was given back to the host, and reads as zeros
    now, is no write; `remuslike.guest.refusals` refuses devices that do that.
    """

    @property
    def inline_pages_max(self) -> int:
        """Of up to so many pages a scan is short enough for an event loop."""
        ...

    def scan(self) -> Indices:
        """Ascending page numbers within the region, shape (n,): written since the last call, all at the
        first. They count as clean from now on.

        GuestError if the process is gone, MissingToolError if the kernel refuses."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A tracker that there is. `probe` raises MissingToolError if this kernel hasn't what it takes;
    `open` (process, where it has the memory, the memory) the same if that process can't be tracked."""

    name: str
    title: str
    probe: Callable[[], None]
    open: Callable[[int, int, GuestMemory], DirtyTracker]


@dataclass(frozen=True, slots=True)
class Tracking:
    """A tracker at work, its kind's name, and in a sentence why it is this one, for the log."""

    tracker: DirtyTracker
    name: str
    reason: str


def _open_pagemap_scan(pid: int, start: int, memory: GuestMemory) -> DirtyTracker:
    inject_write_protection(pid, start, memory.length)
    return PagemapScan(pid, start, memory.length)


def _open_soft_dirty(pid: int, start: int, memory: GuestMemory) -> DirtyTracker:
    tracker = SoftDirty(ProcessPageTable(pid, start, memory.length))
    try:
        memory.lock()
    except BaseException:
        tracker.close()
        raise
    return tracker


# Best first.
KINDS = (
    Kind("pagemap-scan", "PAGEMAP_SCAN", probe_pagemap_scan, _open_pagemap_scan),
    Kind("soft-dirty", "soft-dirty bits", probe_soft_dirty, _open_soft_dirty),
)


def require_tracker(guest: GuestSettings, kinds: Sequence[Kind] = KINDS) -> None:
    """MissingToolError, which says what each kind lacks, unless this host can track the guest.

    QEMU may still turn out to be beyond a tracker's reach.
    """
    failures: list[str] = []
    if next(_usable(guest, kinds, failures), None) is None:
        raise _none_is_left(guest, failures)


def open_tracker(
    guest: GuestSettings, pid: int, memory: GuestMemory, kinds: Sequence[Kind] = KINDS
) -> Tracking:
    """The best tracker of those that `guest.tracker` allows, at work on process `pid`. Takes some ms, and for
    soft-dirty as long as the kernel needs to populate the guest's RAM.

    MissingToolError, which says what each kind lacks; GuestError if the process hasn't the memory.
    """
    start = memory.find_in(pid).start
    failures: list[str] = []
    for kind in _usable(guest, kinds, failures):
        try:
            tracker = kind.open(pid, start, memory)
        except MissingToolError as error:
            failures.append(f"{kind.name}: {error}")
            continue
        if guest.tracker != "auto":
            return Tracking(tracker, kind.name, "asked for")
        return Tracking(tracker, kind.name, "; ".join(failures) or f"this kernel has {kind.title}")
    raise _none_is_left(guest, failures)


def _usable(guest: GuestSettings, kinds: Sequence[Kind], failures: list[str]) -> Iterator[Kind]:
    """The kinds that the guest allows and this kernel has; why not the others goes to `failures`."""
    for kind in kinds:
        if guest.tracker not in ("auto", kind.name):
            continue
        try:
            kind.probe()
        except MissingToolError as error:
            failures.append(f"{kind.name}: {error}")
            continue
        yield kind


def _none_is_left(guest: GuestSettings, failures: list[str]) -> MissingToolError:
    return MissingToolError(
        f"guest.tracker = {guest.tracker!r}: the guest's writes can't be noticed here: {'; '.join(failures)}"
    )
