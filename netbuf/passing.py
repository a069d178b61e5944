"""When the kernel may pass a guest's frames around a plug that is open.

Invariant: the gate opens in `open_gate` only, while the ledger is open and every frame that the gate has kept
back so far has gone through the plug, or was refused there. So none is overtaken (P5).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from netbuf.gate import Gate
from netbuf.gatemeter import GateMeter
from netbuf.ledger import HoldState, Ledger
from netbuf.plugmeter import PlugMeter
from netbuf.redirect import Undelivered
from netbuf.sizing import POLL_S_MAX

# The IFB counts a frame as left just before it hands it on, maybe on another processor than the guest's. So
# long after its count the last frame has reached the bridge.
_SETTLED_S = 0.001

# While the kernel passes frames around the plug there is nothing to see, but that both ends are still there.
_PASSING_LOOK_S = 0.2


class Passing:
    """Opens and shuts one gate, and has the ledger know what passed."""

    def __init__(
        self, gate: Gate, ledger: Ledger, meter: PlugMeter, undelivered: Callable[[], Undelivered]
    ) -> None:
        """`meter` knows what has left, `undelivered` what never reached the plug."""
        self._gate = gate
        self._ledger = ledger
        self._gate_meter = GateMeter(ledger, gate)
        self._meter = meter
        self._undelivered = undelivered
        self._passing_after: int | None = None  # what the gate is open behind
        self._settled: tuple[int, float] | None = None  # what it could be opened behind, and since when
        self._undelivered_items = 0  # of what the gate has kept, as far as we have asked

    def book(self) -> None:
        """Book what has passed."""
        self._gate_meter.book()

    def open_gate(self) -> None:
        """If we may, have the kernel pass what comes, unless it has kept a frame that has not left for long.

        Prerequisite: the plug's counters were booked just now.
        """
        kept_items = self._gate.reading().kept_items
        if self._ledger.state is not HoldState.OPEN or kept_items == self._passing_after:
            return
        self._passing_after = None
        if kept_items > self._meter.left_items + self._undelivered_items:
            self._undelivered_items = self._undelivered().redirected_items
        if kept_items != self._meter.left_items + self._undelivered_items:
            self._settled = None
        elif self._settled is None or self._settled[0] != kept_items:
            self._settled = kept_items, trio.current_time()
        elif trio.current_time() - self._settled[1] >= _SETTLED_S:
            self._gate.pass_after(kept_items)
            self._passing_after = kept_items

    def shut_gate(self) -> None:
        """What comes from now on is kept back; what has passed is booked."""
        self._gate.shut()
        self._gate_meter.book()
        self._passing_after = self._settled = None

    def pause_s(self) -> float:
        """While the hold is open: when to look again."""
        if self._passing_after is not None:
            return _PASSING_LOOK_S
        return POLL_S_MAX if self._settled is None else _SETTLED_S
