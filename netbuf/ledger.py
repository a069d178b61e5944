"""Which held output belongs to which epoch, and what may happen to it next.

Pure, and shared by all backends of this package: a backend asks the ledger before it acts and tells it
what came of it. The ledger counts items (frames as the backend sees them) and bytes; it holds no frame.

    closed ──hold──> holding <──hold── open
    closed, holding ──begin_open, opened──> open
    any ──discard──> discarded

Invariants:

- `sealed` is ascending and without gaps, and its last epoch is `open_epoch - 1` (P5).
- `len(sealed) <= depth` (P6).
- Outputs leave from the oldest epoch only, and only between `begin_release` or `begin_open` and the end
  of that call; the backend lets only one such call run at a time (P1, P5).
- `held` equals the sum over the sealed epochs and the open one.
- Nothing leaves `discarded`, and nothing is held in it (P4).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from netbuf.errors import (
    AnnounceError,
    HoldError,
    LimitError,
    OpenError,
    ReleaseError,
    SealedFramesError,
    SealError,
)


class Backend(StrEnum):
    """Where the frames wait."""

    PLUG = "plug"  # in the kernel: an IFB whose queueing discipline is sch_plug
    TAP = "tap"  # in this process


class HoldState(StrEnum):
    """What becomes of an output that the guest emits now."""

    CLOSED = "closed"
    OPEN = "open"
    HOLDING = "holding"
    DISCARDED = "discarded"


class Pressure(StrEnum):
    """How near the held bytes are to the limit (P6)."""

    NONE = "none"
    SOON = "soon"  # at least half of the limit
    FULL = "full"  # at the limit or above it


_RANK = {Pressure.NONE: 0, Pressure.SOON: 1, Pressure.FULL: 2}


@dataclass(frozen=True, slots=True)
class BufferStatistics:
    """One buffer at one instant. Items are frames; bytes are those of the frames as they are held.

    `released_*` count what has left, at once or after its epoch; `dropped_items` what never will;
    `peak_bytes` is the largest `held_bytes` so far. `open_epoch` is None except while holding.
    """

    backend: Backend
    state: HoldState
    open_epoch: int | None
    sealed_epochs: tuple[int, ...]
    held_items: int
    held_bytes: int
    limit_bytes: int
    released_items: int
    released_bytes: int
    dropped_items: int
    peak_bytes: int


@dataclass(slots=True)
class _Account:
    """The outputs of one epoch that have not left yet."""

    epoch: int
    items: int = 0
    size_bytes: int = 0


class Ledger:
    """The account book of one buffer; see the head of this module."""

    def __init__(self, *, depth: int, limit_bytes: int, backend: Backend = Backend.TAP) -> None:
        """Start `closed` and empty; `backend` is only told on.

        Raises `LimitError` for a depth or limit under 1.
        """
        if depth < 1:
            raise LimitError(f"depth={depth}: a buffer holds at least 1 sealed epoch; set depth to 1 or more")
        if limit_bytes < 1:
            raise LimitError(f"limit_bytes={limit_bytes}: nothing could be held; set it to 1 or more")
        self.depth = depth
        self._backend = backend
        self.limit_bytes = limit_bytes
        self.state = HoldState.CLOSED
        self.held_items = 0
        self.held_bytes = 0
        self._opened_before = False
        self._sealed: deque[_Account] = deque()
        self._current: _Account | None = None  # the open epoch; None unless holding
        self._leaving = False  # a release or an opening is under way
        self._opening = False  # it is an opening
        self._newest_sealed = 0
        self._released_items = 0
        self._released_bytes = 0
        self._dropped_items = 0
        self._peak_bytes = 0
        self._told = Pressure.NONE

    # --- the epochs -----------------------------------------------------------------------------

    @property
    def open_epoch(self) -> int | None:
        """The epoch to which an output belongs now; None unless holding."""
        return self._current.epoch if self._current else None

    @property
    def oldest_items(self) -> int:
        """How many outputs of the oldest sealed epoch have not left yet; 0 if none is sealed."""
        return self._sealed[0].items if self._sealed else 0

    @property
    def open_items(self) -> int:
        """How many outputs the open epoch has; 0 unless holding."""
        return self._current.items if self._current else 0

    @property
    def open_bytes(self) -> int:
        """How much they are; 0 unless holding."""
        return self._current.size_bytes if self._current else 0

    def place_of(self, epoch: int) -> tuple[int, int]:
        """Of all that is held, oldest first: where the outputs of a sealed epoch begin, and their number.

        Raises `SealedFramesError`.
        """
        first = 0
        for account in self._sealed:
            if account.epoch == epoch:
                return first, account.items
            first += account.items
        sealed = [account.epoch for account in self._sealed]
        raise SealedFramesError(f"sealed_frames({epoch}), but sealed are {sealed}; ask before the release")

    @property
    def leaving(self) -> bool:
        """Whether a release or an opening is under way."""
        return self._leaving

    @property
    def opening(self) -> bool:
        """Whether an opening is under way: the open epoch should not grow meanwhile."""
        return self._opening

    def check_hold(self, epoch: int) -> None:
        """Raise `HoldError` unless `hold(epoch)` is allowed now."""
        if self.state not in (HoldState.CLOSED, HoldState.OPEN):
            raise HoldError(f"hold({epoch}) while {self.state}: hold only a buffer that is closed or open")
        if self._opening:
            raise HoldError(f"hold({epoch}) while open() is under way: wait for it or cancel it first")
        if epoch <= self._newest_sealed:
            raise HoldError(f"hold({epoch}) after seal({self._newest_sealed}): epochs start at 1 and rise")

    def hold(self, epoch: int) -> None:
        """Outputs belong to `epoch` from now on. Prerequisite: closed or open, and a new epoch.

        Raises `HoldError`, and then nothing has changed.
        """
        self.check_hold(epoch)
        self.state = HoldState.HOLDING
        self._current = _Account(epoch)

    def check_seal(self, epoch: int) -> None:
        """Raise `SealError` unless `seal(epoch)` is allowed now."""
        if self._current is None:
            raise SealError(f"seal({epoch}) while {self.state}: call hold first")
        if self._opening:
            raise SealError(f"seal({epoch}) while open() is under way: wait for it or cancel it first")
        if epoch != self._current.epoch:
            raise SealError(f"seal({epoch}) while epoch {self._current.epoch} is open: seal the open epoch")
        if len(self._sealed) >= self.depth:
            raise SealError(
                f"seal({epoch}) with {len(self._sealed)} epochs sealed and depth={self.depth}: "
                f"release epoch {self._sealed[0].epoch} first"
            )

    def seal(self, epoch: int) -> None:
        """Close `epoch`; later outputs belong to `epoch + 1`. Raises `SealError`: nothing has changed."""
        self.check_seal(epoch)
        assert self._current is not None
        self._sealed.append(self._current)
        self._current = _Account(epoch + 1)
        self._newest_sealed = epoch

    # --- outputs come ---------------------------------------------------------------------------

    def admit(self, size_bytes: int, items: int = 1) -> None:
        """Outputs were kept, for the open epoch. Prerequisite: holding. May pass the limit (a seal must)."""
        assert self._current is not None, f"output kept while {self.state}"
        self._current.items += items
        self._current.size_bytes += size_bytes
        self.held_items += items
        self.held_bytes += size_bytes
        self._peak_bytes = max(self._peak_bytes, self.held_bytes)

    def passed(self, size_bytes: int, items: int = 1) -> None:
        """Outputs went out without being kept. Prerequisite: open."""
        assert self.state is HoldState.OPEN, f"output passed while {self.state}"
        self._released_items += items
        self._released_bytes += size_bytes

    def dropped(self, items: int = 1) -> None:
        """Outputs that were never kept are lost."""
        self._dropped_items += items

    # --- outputs leave --------------------------------------------------------------------------

    def begin_release(self, epoch: int) -> None:
        """Outputs of `epoch` may leave until `end_release`. Raises `ReleaseError`: nothing may leave."""
        assert not self._leaving, f"release({epoch}) beside another release or opening"
        if not self._sealed:
            raise ReleaseError(f"release({epoch}) while {self.state} with nothing sealed: seal first")
        if epoch != self._sealed[0].epoch:
            raise ReleaseError(
                f"release({epoch}) before {self._sealed[0].epoch}: release the oldest epoch first"
            )
        self._leaving = True

    def end_release(self, *, released: bool) -> None:
        """The release is over. If `released` all of the epoch has left; else the rest of it stays sealed."""
        self._leaving = False
        if released:
            account = self._sealed.popleft()
            assert not account.items, f"epoch {account.epoch} released with {account.items} outputs held"

    def begin_open(self) -> None:
        """All that is held may leave until `end_open`. Raises `OpenError`: nothing may leave."""
        if self.state is HoldState.DISCARDED:
            raise OpenError("open() of a discarded buffer: make a new one; this one never lets anything out")
        assert not self._leaving, "open() beside a release or another opening"
        self._leaving = self._opening = True

    def end_open(self, *, opened: bool) -> None:
        """The opening is over. Prerequisite of `opened`: nothing is held; outputs then pass at once."""
        self._leaving = self._opening = False
        if opened:
            assert not self.held_items, f"opened with {self.held_items} outputs held"
            self._sealed.clear()
            self.state = HoldState.OPEN
            self._opened_before = True
            self._current = None

    def check_leaving(self) -> None:
        """Raise `ReleaseError` or `OpenError` if the buffer was discarded while its outputs were leaving."""
        if self.state is HoldState.DISCARDED:
            what, error = ("open()", OpenError) if self._opening else ("a release", ReleaseError)
            raise error(f"the buffer was discarded during {what}: what had not left never will")

    def left(self, size_bytes: int, *, delivered: bool) -> None:
        """The oldest held output has left, or was lost at the door if not `delivered`."""
        assert self._leaving, "an output left outside of release and open"
        self._depart(self._oldest(), 1, size_bytes, delivered=delivered)

    def left_together(self, items: int, size_bytes: int, *, lost_items: int = 0) -> None:
        """The `items` oldest held outputs have left, for a backend that counts them and doesn't see each.

        `size_bytes` is their measure where they are not the whole of an epoch: then that epoch's own counts.
        `lost_items` of them were lost at the door. Prerequisite: at least `items` are held.
        """
        while items:
            account = self._oldest()
            count = min(items, account.items)
            share = account.size_bytes if count == account.items else min(size_bytes, account.size_bytes)
            lost = min(lost_items, count)
            self._depart(account, lost, 0, delivered=False)
            self._depart(account, count - lost, share, delivered=True)
            items, size_bytes, lost_items = items - count, max(0, size_bytes - share), lost_items - lost

    def carry_over(self) -> int:
        """What has not left of the oldest sealed epoch belongs to the next one after all; how many those are.

        For a backend whose count at the seal may include outputs that came while it was made.
        """
        account = self._sealed[0]
        heir = self._sealed[1] if len(self._sealed) > 1 else self._current
        assert heir is not None, f"epoch {account.epoch} is sealed while {self.state}"
        carried = account.items
        heir.items += carried
        heir.size_bytes += account.size_bytes
        account.items = account.size_bytes = 0
        return carried

    def _oldest(self) -> _Account:
        if self._opening:
            while self._sealed and not self._sealed[0].items:
                self._sealed.popleft()
        account = self._sealed[0] if self._sealed else self._current
        assert account is not None, f"an output left while {self.state}"
        assert account.items > 0, f"more outputs left than epoch {account.epoch} held"
        return account

    def _depart(self, account: _Account, items: int, size_bytes: int, *, delivered: bool) -> None:
        account.items -= items
        account.size_bytes -= size_bytes
        self.held_items -= items
        self.held_bytes -= size_bytes
        if delivered:
            self._released_items += items
            self._released_bytes += size_bytes
        else:
            self._dropped_items += items
        self._told = min(self._told, self.pressure, key=_RANK.__getitem__)

    def discard(self) -> None:
        """Drop all that is held, for ever. Idempotent, never raises."""
        self.state = HoldState.DISCARDED
        self._dropped_items += self.held_items
        self.held_items = self.held_bytes = 0
        self._sealed.clear()
        self._current = None
        self._told = Pressure.NONE

    def check_announce(self, what: str = "announce()") -> None:
        """Raise `AnnounceError` unless others may know of the guest: open, or holding after having been."""
        if not self._opened_before or self.state not in (HoldState.OPEN, HoldState.HOLDING):
            raise AnnounceError(f"{what} while {self.state} and not yet opened: call open first")

    # --- what others ask ------------------------------------------------------------------------

    @property
    def pressure(self) -> Pressure:
        """The level that the held bytes have reached."""
        if self.held_bytes >= self.limit_bytes:
            return Pressure.FULL
        return Pressure.SOON if 2 * self.held_bytes >= self.limit_bytes else Pressure.NONE

    def take_rise(self) -> Pressure | None:
        """The level if it has risen since the last call, else None."""
        level = self.pressure
        if _RANK[level] <= _RANK[self._told]:
            return None
        self._told = level
        return level

    def statistics(self, *, dropped_elsewhere_items: int = 0) -> BufferStatistics:
        """A snapshot; `dropped_elsewhere_items` is what the kernel's own counters add to the losses."""
        return BufferStatistics(
            backend=self._backend,
            state=self.state,
            open_epoch=self.open_epoch,
            sealed_epochs=tuple(account.epoch for account in self._sealed),
            held_items=self.held_items,
            held_bytes=self.held_bytes,
            limit_bytes=self.limit_bytes,
            released_items=self._released_items,
            released_bytes=self._released_bytes,
            dropped_items=self._dropped_items + dropped_elsewhere_items,
            peak_bytes=self._peak_bytes,
        )
