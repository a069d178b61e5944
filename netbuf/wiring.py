"""The three interfaces of a tap hold, the redirects between them and the gate before the first.

    guest tap --ingress redirect--> hold  (read by the TapHold)
    guest tap --gate, while open, as if just received--> outlet
    (written by the TapHold) outlet, a bridge port --egress redirect--> guest tap

Order is what keeps this shut (P4): the guest tap comes up last, when its frames already have nowhere to go
but the hold; the outlet comes up only when asked; at the end the outlet goes first. A gate that was open when
the process died leads to an outlet that went with it, and drops.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Protocol

from netbuf.errors import InterfaceVanishedError, NetbufError
from netbuf.gate import Gate, make_gate
from netbuf.leftovers import HoldLock
from netbuf.redirect import NO_IPV6_MTU_BYTES, Hook, Network, Undelivered
from netbuf.tap import OUTLET_SUFFIX, TAP_HOLD_SUFFIX, Guest, Tap


class Wiring(Protocol):
    """What a `TapHold` needs of its interfaces; frames on both descriptors begin with a vnet header."""

    @property
    def gate(self) -> Gate:
        """Passes frames from the guest to the LAN. What it keeps back is read from the hold, or was lost."""
        ...

    def hold_fileno(self) -> int:
        """Descriptor from which the guest's frames are read, one a read; non-blocking."""
        ...

    def outlet_fileno(self) -> int:
        """Descriptor to which frames for the LAN are written, one a write; non-blocking."""
        ...

    def raise_outlet(self) -> None:
        """Let frames pass between the LAN and the outlet. Idempotent."""
        ...

    def cut_outlet(self) -> None:
        """Part from the LAN for ever. Idempotent, never raises."""
        ...

    def check_guest(self) -> None:
        """Raise `InterfaceVanishedError` if the guest tap is gone."""
        ...

    def check_outlet(self) -> None:
        """Raise `InterfaceVanishedError` if the outlet is gone, and not cut by us."""
        ...

    def undelivered(self) -> Undelivered:
        """How many of the guest's frames were lost so far on their way to the hold, and to the outlet."""
        ...

    def close(self) -> None:
        """Remove what was set up, the outlet first. Idempotent, never raises."""
        ...


class TapWiring:
    """The real wiring, in the network namespace in which it is made."""

    def __init__(self, guest: Guest, bridge: str, network: Network | None = None) -> None:
        """Set all up around `guest`, and bring it up; the outlet stays down, a port of `bridge`.

        Raises errors of `netbuf.errors`; then only the guest tap is left, down or without a way out.
        """
        with ExitStack() as undo:
            self._lock = HoldLock(guest.name)
            undo.callback(self._lock.close)
            self._network = network or Network()
            undo.callback(self._network.close)
            lan = self._network.bridge(bridge)
            self._hold = Tap(guest.prefix + TAP_HOLD_SUFFIX, vnet_header=True)
            undo.callback(self._hold.close)
            self._outlet = Tap(guest.prefix + OUTLET_SUFFIX, vnet_header=True)
            undo.callback(self._outlet.close)
            self._network.quieten(self._hold.name, mtu_bytes=NO_IPV6_MTU_BYTES)
            for interface in (guest.name, self._outlet.name):
                self._network.quieten(interface, mtu_bytes=lan.mtu_bytes)
            self._network.redirect(guest.name, Hook.INGRESS, self._hold.name)
            self._network.redirect(self._outlet.name, Hook.EGRESS, guest.name)
            self._network.enslave(self._outlet.name, lan)
            self._guest = guest.name
            self._guest_index = self._network.index(guest.name)
            self._outlet_index = self._network.index(self._outlet.name)
            self._gate = make_gate(self._network, guest.name, self._outlet.name)
            undo.callback(self._gate.close)
            self._network.up(self._hold.name)
            self._network.up(guest.name)
            undo.pop_all()
        self._outlet_up = False
        self._closed = False
        self._undelivered = Undelivered()

    @property
    def gate(self) -> Gate:
        """To the outlet."""
        return self._gate

    def hold_fileno(self) -> int:
        """Descriptor of the hold."""
        return self._hold.fileno()

    def outlet_fileno(self) -> int:
        """Descriptor of the outlet."""
        return self._outlet.fileno()

    def raise_outlet(self) -> None:
        """Bring the outlet up, about 1 ms the first time. Raises `InterfaceVanishedError`."""
        if not self._outlet_up:
            self._network.up(self._outlet.name)
            self._outlet_up = True

    def cut_outlet(self) -> None:
        """Delete the outlet by closing its only descriptor: some 20 ms, the kernel waits for its readers."""
        self._outlet.close()

    def check_guest(self) -> None:
        """About 0.3 ms. Raises `InterfaceVanishedError`, also if another tap has its name by now."""
        if not self._network.is_there(self._guest, self._guest_index):
            raise InterfaceVanishedError(f"the guest tap {self._guest!r} is gone; end its hold")

    def check_outlet(self) -> None:
        """About 0.3 ms."""
        if self._outlet.fileno() >= 0 and not self._network.is_there(self._outlet.name, self._outlet_index):
            raise InterfaceVanishedError(f"the outlet of {self._guest} is gone; find out who deletes it")

    def undelivered(self) -> Undelivered:
        """The filters' own counts, about 0.4 ms; the last one known if the guest tap is gone."""
        if not self._closed:
            with suppress(NetbufError):
                self._undelivered = self._network.undelivered(self._guest_index, Hook.INGRESS)
        return self._undelivered

    def close(self) -> None:
        """Outlet, then hold. The guest tap keeps its redirect, which now drops every frame."""
        if not self._closed:
            self.undelivered()
            self._closed = True
            self._gate.close()
            self._outlet.close()
            self._hold.close()
            self._network.close()
            self._lock.close()
