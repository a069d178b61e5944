"""What the kernel's counters say about the outputs in a plug, told to the ledger. Pure.

A frame is counted three times on its way: as waiting in the qdisc, as given to the IFB, as left. While
nothing is being released the three can't differ but by new frames, so anything else is somebody's doing and
the hold is broken (P4).

The kernel counts an epoch's frames by itself, at the seal; our count is its echo, read an instant later. With
a paused guest they are the same. Frames of a guest that is not paused can come in between: they are in our
count of the sealed epoch, the kernel keeps them, and after the release they are carried over to the next.
`_late` is how many of those the kernel may yet turn out to have released.
"""

from __future__ import annotations

from netbuf.errors import HoldBrokenError
from netbuf.ledger import HoldState, Ledger
from netbuf.plugwire import PassageReading, QueueReading


class PlugMeter:
    """Keeps one ledger in step with one plug."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        """`name` of the hold is for messages."""
        self._ledger = ledger
        self._name = name
        self._left_items = 0
        self._left_bytes = 0
        self._lost_items = 0
        self._late = 0

    @property
    def left_items(self) -> int:
        """How many outputs have left so far, as far as they are booked."""
        return self._left_items

    def observe(self, passage: PassageReading, queue: QueueReading) -> None:
        """Book what the two say, `passage` read before `queue`. Raises `HoldBrokenError`."""
        left = passage.left_items - self._left_items
        match self._ledger.state:
            case HoldState.OPEN:
                self._book_passed(passage, left)
            case HoldState.HOLDING if self._ledger.leaving:
                most = self._ledger.held_items if self._ledger.opening else self._ledger.oldest_items
                if left > most and not self._ledger.opening:
                    raise self._broken(f"{left - most} frames more than were released have left")
                self._book_left(passage, min(left, most))
            case HoldState.HOLDING:
                if left > self._late:
                    raise self._broken(f"{left - self._late} frames have left that nobody released")
                self._late -= left
                self._book_left(passage, left)
                self.waiting(queue)
            case _:
                if left:
                    raise self._broken(f"{left} frames have left while {self._ledger.state}")

    def waiting(self, queue: QueueReading) -> None:
        """Book what came. Prerequisite: holding, nothing is being released. Raises `HoldBrokenError`."""
        new_items = queue.items - self._ledger.held_items
        if new_items < -self._late:
            raise self._broken(f"{-new_items} frames are gone from its queue")
        if new_items > 0:
            self._ledger.admit(max(0, queue.size_bytes - self._ledger.held_bytes), new_items)

    def carry_over(self) -> None:
        """What has not left of the epoch that is being released came after its seal."""
        self._late = self._ledger.carry_over()

    def _book_passed(self, passage: PassageReading, left: int) -> None:
        lost = passage.lost_items - self._lost_items
        self._ledger.dropped(lost)
        self._ledger.passed(passage.left_bytes - self._left_bytes, left - lost)
        self._left_items += left
        self._left_bytes = passage.left_bytes
        self._lost_items = passage.lost_items

    def _book_left(self, passage: PassageReading, items: int) -> None:
        """`items` of those that have left were held; what has left beyond them will be booked as passed."""
        lost = min(items, passage.lost_items - self._lost_items)
        held_bytes = self._ledger.held_bytes
        self._ledger.left_together(items, passage.left_bytes - self._left_bytes, lost_items=lost)
        self._left_items += items
        self._lost_items += lost
        if self._left_items == passage.left_items:
            self._left_bytes = passage.left_bytes
        else:
            booked_bytes = held_bytes - self._ledger.held_bytes
            self._left_bytes = min(self._left_bytes + booked_bytes, passage.left_bytes)

    def _broken(self, what: str) -> HoldBrokenError:
        return HoldBrokenError(f"the hold of {self._name} is cut: {what}; find out who changes its plug")
