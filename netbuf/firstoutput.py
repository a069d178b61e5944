"""How many outputs the open epoch has, and that it has its first. Pure.

The gate's counter knows both at once and without a system call. Where there is no gate, the ledger knows what
the hold has read or been told by the kernel so far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from netbuf.gatewire import GateReading
from netbuf.ledger import Ledger


class Counting(Protocol):
    """As much of a gate as is asked here."""

    def reading(self) -> GateReading:
        """The counters."""
        ...


class FirstOutput:
    """Tells of the first output of each epoch, at most once; of one ledger and one gate."""

    def __init__(self, ledger: Ledger, gate: Counting) -> None:
        self._ledger = ledger
        self._gate = gate
        self._kept_before = 0  # when the open epoch began
        self._told_epoch = 0
        self._callbacks: list[Callable[[int], None]] = []

    def on_output(self, callback: Callable[[int], None]) -> None:
        """From the next epoch on, have `callback(epoch)` called at its first output."""
        self._callbacks.append(callback)

    @property
    def wanted(self) -> bool:
        """Whether there is anybody to be told."""
        return bool(self._callbacks)

    def begin(self, kept_items: int) -> None:
        """The open epoch has begun when the gate had kept so many."""
        self._kept_before = kept_items

    def open_items(self) -> int:
        """Outputs of the open epoch; 0 unless holding. The gate's count includes what was lost behind it."""
        if self._ledger.open_epoch is None:
            return 0
        return max(self._ledger.open_items, self._gate.reading().kept_items - self._kept_before)

    def tell(self, *, noticed: bool = False) -> None:
        """Tell, if there is something to be told: an output is held, or the gate has `noticed` one."""
        epoch = self._ledger.open_epoch
        if not self._callbacks or epoch is None or epoch <= self._told_epoch:
            return
        if noticed or self.open_items():
            self._told_epoch = epoch
            for callback in self._callbacks:
                callback(epoch)
