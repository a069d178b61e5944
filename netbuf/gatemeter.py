"""What a gate has passed, told to the ledger. Pure."""

from __future__ import annotations

from typing import Protocol

from netbuf.gatewire import GateReading
from netbuf.ledger import HoldState, Ledger


class Readable(Protocol):
    """As much of a gate as is asked here."""

    def reading(self) -> GateReading:
        """The counters."""
        ...


class GateMeter:
    """Keeps one ledger in step with one gate."""

    def __init__(self, ledger: Ledger, gate: Readable, *, header_bytes: int = 0) -> None:
        """`header_bytes`: by how much a frame that is held is longer than one that passes."""
        self._ledger = ledger
        self._gate = gate
        self._header_bytes = header_bytes
        self._booked = GateReading()
        self._lost_items = 0

    def book(self, lost_items: int = 0) -> None:
        """Book what has passed since the last call, if the ledger is open; else it never was the ledger's.

        `lost_items`: how many of all that have passed came nowhere, counted before this call. Whoever tells
        of losses counts them as dropped. The bytes of a lost frame are taken to be the mean of these.
        """
        now, before = self._gate.reading(), self._booked
        items = now.passed_items - before.passed_items
        if self._ledger.state is not HoldState.OPEN or not items:
            return
        size_bytes = now.passed_bytes - before.passed_bytes + items * self._header_bytes
        left = max(0, items - (lost_items - self._lost_items))
        self._ledger.passed(size_bytes * left // items, left)
        self._booked = now
        self._lost_items = lost_items
