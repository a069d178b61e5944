"""What becomes of a change to the disk: the states of the output buffer, and who waits at its limit.

Data threads ask for admission here, the engine moves the state; neither does any I/O under the lock, so that
no seal, and nobody's write, waits for a store.

Invariants:
1. a change is held, passes or is refused by the state at one instant, under the lock;
2. what passes is counted until it is in the store, and a flush until it is answered (`passing`): held
   epochs are let out behind them, so that no flush is told of a failure that a journal must know of;
3. whoever waits is woken by everything that may end its wait, and then asks for the state again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import Enum

from diskbuf.contract import BufferStatistics, Pressure, State
from diskbuf.errors import HoldError, OpenError, ReleaseError, SealError, UnknownEpochError, WriteRefusedError
from diskbuf.extents import Extent, ExtentMap, held_bytes
from diskbuf.overlay import Overlay, ReadPlan

_RANK = {Pressure.NONE: 0, Pressure.SOON: 1, Pressure.FULL: 2}


class Admission(Enum):
    """What becomes of a change now."""

    HELD = "held"  # it is in the overlay
    PASSES = "passes"  # the caller writes it to the store, then calls `passed`
    WAITS = "waits"  # nothing has happened: there is no room for it yet


class Gate:
    """The overlay, the state and the limit of one disk. Every method may be called from any thread.

    `rose(level)` is called under the lock when the pressure rises, and `began(epoch)` at the first change or
    flush of each epoch from the next one after `tell_beginnings`; they must not block or call back.
    """

    def __init__(
        self,
        *,
        limit_bytes: int,
        depth: int,
        read_only: bool,
        rose: Callable[[Pressure], None],
        began: Callable[[int], None],
    ) -> None:
        self.depth = depth
        self.read_only = read_only
        self.state = State.CLOSED
        self.pressure = Pressure.NONE
        self._rose = rose
        self._began = began
        self._tells_beginnings = False
        self._untold = False  # the open epoch's first output is yet to come, and to be told of
        self._overlay = Overlay(limit_bytes)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.flushes_ignored = False
        self._preparing = False  # a seal is coming: the limit doesn't count
        self._opening = False  # what is held is being let out: no seal beside it
        self._settling = False  # ... and this is the last of it: writes wait, or it would never end
        self._passing = 0
        self._waiting = 0
        self._released_items = self._released_bytes = self._dropped_items = 0

    # --- changes and reads, by data threads ---------------------------------------------------------

    def try_admit(self, changes: Sequence[Extent], *, may_pass: bool) -> tuple[int, Admission]:
        """Decide on changes without waiting, in order: how many of them, and what becomes of those.

        The first that must wait ends it; the answer is `WAITS` if that is the very first, or, unless they
        `may_pass` now, `PASSES` for none of them. Raises `WriteRefusedError`, and none of them has happened.
        """
        with self._lock:
            if self.state is State.OPEN and not may_pass and not self.read_only:
                return 0, Admission.PASSES
            return self._decide(changes)

    def admit(self, extent: Extent, abandoned: Callable[[], bool]) -> Admission:
        """Decide on a change once there is room; `WAITS` only if `abandoned()` before that.

        Whoever makes `abandoned` true calls `wake`. Raises `WriteRefusedError`.
        """
        with self._lock:
            while not abandoned():
                _, decided = self._decide((extent,))
                if decided is not Admission.WAITS:
                    return decided
                self._wait()
            return Admission.WAITS

    def try_pass(self) -> bool:
        """Whether one change or flush passes now, which is then counted until `passed` or `flushed`; nothing
        is refused."""
        with self._lock:
            passes = self.state is State.OPEN and not self.read_only
            self._passing += passes
            return passes

    def flushed(self) -> None:
        """A flush that passed is over."""
        with self._lock:
            self._passing -= 1
            self._note_passed()

    def note_flush(self) -> None:
        """A flush is answered. While holding that is an output, too: the guest goes on as if all was safe."""
        if self._untold and not self.flushes_ignored:
            with self._lock:
                if not self.flushes_ignored:  # it may have waited for the lock that a seal had
                    self._note_output()

    def passed(self, changes: Sequence[Extent], *, written: bool) -> bool:
        """Changes that passed are in the store, or have failed to get there. Whether others pass still: if
        not, an epoch may have begun before they were there."""
        with self._lock:
            self._passing -= len(changes)
            if written:
                self._released_items += len(changes)
                self._released_bytes += sum(map(held_bytes, changes))
            self._note_passed()
            return self.state is State.OPEN

    @property
    def waiting(self) -> int:
        """How many threads wait, having asked for the state since it last changed."""
        return self._waiting

    def wake(self) -> None:
        """Make everyone who waits look again."""
        with self._lock:
            self._look_again()

    def plan(self, offset: int, length: int) -> ReadPlan:
        """Where the bytes of a read are now."""
        with self._lock:
            return self._overlay.plan(offset, length)

    @property
    def holds_nothing(self) -> bool:
        """Whether every byte is the store's. A change that is being answered meanwhile may be missed: whoever
        reads beside it can't tell which came first."""
        return self._overlay.held_items == 0

    # --- the contract, by the engine ----------------------------------------------------------------

    def hold(self, epoch: int) -> None:
        """See `DiskBuffer.hold`."""
        with self._lock:
            if self.state not in (State.CLOSED, State.OPEN):
                raise HoldError(
                    f"hold({epoch}) while {self.state}; only a closed or open buffer begins to hold"
                )
            self._overlay.begin(epoch)
            self._untold = self._tells_beginnings
            self._preparing = False
            self.state = State.HOLDING

    def prepare(self) -> None:
        """See `DiskBuffer.prepare`."""
        with self._lock:
            self._preparing = True
            self._look_again()

    def seal(self, epoch: int) -> None:
        """See `DiskBuffer.seal`."""
        with self._lock:
            sealed = self._overlay.sealed_epochs
            if self.state is not State.HOLDING or self._opening:
                raise SealError(
                    f"seal({epoch}) while {'opening' if self._opening else self.state}; hold first"
                )
            if epoch != self._overlay.open_epoch:
                raise SealError(
                    f"seal({epoch}), but the open epoch is {self._overlay.open_epoch}; seal that one"
                )
            if len(sealed) >= self.depth:
                raise SealError(
                    f"seal({epoch}) with {sealed} unreleased and depth {self.depth}; release one first"
                )
            self._overlay.seal()
            self._untold = self._tells_beginnings
            self._preparing = False

    def discard(self) -> None:
        """See `DiskBuffer.discard`."""
        with self._lock:
            self.state = State.DISCARDED
            self._untold = False
            self._dropped_items += self._overlay.clear()
            self._note_held()
            self._look_again()

    def tell_beginnings(self) -> None:
        """From the next epoch on, have `began` called."""
        self._tells_beginnings = True

    @property
    def open_items(self) -> int:
        """How many changes the open epoch has; 0 unless holding. As of a moment ago: without the lock."""
        return len(self._overlay.open_map) if self.state is State.HOLDING else 0

    def statistics(self) -> BufferStatistics:
        """A consistent snapshot."""
        with self._lock:
            overlay = self._overlay
            return BufferStatistics(
                state=self.state,
                open_epoch=overlay.open_epoch if self.state is State.HOLDING else None,
                sealed_epochs=overlay.sealed_epochs,
                held_items=overlay.held_items,
                held_bytes=overlay.held_bytes,
                limit_bytes=overlay.limit_bytes,
                released_items=self._released_items,
                released_bytes=self._released_bytes,
                dropped_items=self._dropped_items,
                peak_bytes=overlay.peak_bytes,
            )

    # --- letting out, one at a time -----------------------------------------------------------------

    def sealed_map(self, epoch: int) -> ExtentMap:
        """The changes of a sealed, unreleased epoch, which change no more. Raises `UnknownEpochError`."""
        with self._lock:
            changes = self._overlay.sealed_map(epoch)
            if changes is None:
                raise UnknownEpochError(
                    f"sealed({epoch}), but sealed are {self._overlay.sealed_epochs}; ask before the release"
                )
            return changes

    def held_map(self) -> ExtentMap:
        """All that is held as one map; a snapshot."""
        with self._lock:
            return self._overlay.held_map()

    def oldest(self) -> tuple[int, ExtentMap] | None:
        """The oldest sealed epoch, or None."""
        with self._lock:
            return self._overlay.oldest()

    def check_release(self, epoch: int) -> None:
        """Raise `ReleaseError` unless `epoch` may be released now."""
        with self._lock:
            oldest = self._overlay.oldest()
            if self.state is not State.HOLDING or oldest is None or oldest[0] != epoch:
                raise ReleaseError(
                    f"release({epoch}) while {self.state} with {self._overlay.sealed_epochs} sealed;"
                    " release the oldest sealed epoch"
                )

    def begin_opening(self) -> bool:
        """Whether there is something to let out before the buffer is open. Raises `OpenError`."""
        with self._lock:
            if self.state is State.DISCARDED:
                raise OpenError("open() after discard(): what was held is gone; make a new buffer")
            self._opening = self.state is State.HOLDING
            return self._opening

    def settle(self) -> tuple[int, ExtentMap]:
        """Make new changes wait; the open epoch and its changes, the last to be let out."""
        with self._lock:
            self._settling = True
            return self._overlay.open_epoch, self._overlay.open_map

    def end_opening(self, *, opened: bool) -> None:
        """Changes pass from now on, if `opened` and nobody has discarded them; else they are held on."""
        with self._lock:
            self._opening = self._settling = False
            if opened and self.state is not State.DISCARDED:
                self.state = State.OPEN
                self._untold = False
            self._look_again()

    def wait_none_passing(self) -> None:
        """Return when every change that passed is in the store, or the buffer was discarded."""
        with self._lock:
            while self._passing and self.state is not State.DISCARDED:
                self._wait()

    def retire(self, changes: ExtentMap) -> None:
        """Forget changes that are in the store: the oldest sealed epoch's, or the open one's when settled."""
        with self._lock:
            if self.state is State.DISCARDED:
                return
            if changes is self._overlay.open_map:
                self._overlay.retire_open()
            else:
                self._overlay.retire_oldest()
            self._released_items += len(changes)
            self._released_bytes += changes.held_bytes
            self._note_held()
            self._look_again()

    @property
    def discarded(self) -> bool:
        """Whether nothing may reach the store any more."""
        return self.state is State.DISCARDED

    # --- under the lock -----------------------------------------------------------------------------

    def _wait(self) -> None:
        self._waiting += 1
        self._changed.wait()

    def _look_again(self) -> None:
        self._waiting = 0
        self._changed.notify_all()

    def _decide(self, changes: Sequence[Extent]) -> tuple[int, Admission]:
        if not self.read_only:
            if self.state is State.HOLDING:
                if self._settling or (self.pressure is Pressure.FULL and not self._preparing):
                    return 0, Admission.WAITS
                held = self._overlay.put(changes, limited=not self._preparing)
                if self._untold:
                    self._note_output()
                self._note_held()
                return held, Admission.HELD
            if self.state is State.OPEN:
                self._passing += len(changes)
                return len(changes), Admission.PASSES
        reason = "its store is read-only" if self.read_only else f"the buffer is {self.state}"
        extent = changes[0]
        raise WriteRefusedError(f"write of {extent.length} bytes at {extent.offset} refused: {reason}")

    def _note_passed(self) -> None:
        if not self._passing and self.state is not State.OPEN:  # while it is open nobody waits for that
            self._look_again()

    def _note_output(self) -> None:
        if self._untold:
            self._untold = False
            self._began(self._overlay.open_epoch)

    def _note_held(self) -> None:
        before, self.pressure = self.pressure, self._overlay.pressure
        if self.pressure is not before and _RANK[self.pressure] > _RANK[before]:
            self._rose(self.pressure)
