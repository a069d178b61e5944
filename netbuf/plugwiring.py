"""The interfaces of a plug hold, the redirect between them and the gate before it.

    guest tap --ingress redirect--> IFB, its root a plug --as if just received--> guest tap, a bridge port
    guest tap --gate, while open--> as if there were no redirect

Order is what keeps this shut (P4). Set-up: the guest tap comes up last, when its frames have nowhere to go
but the plug, and it joins the bridge only when asked; a frame that the plug lets out before would find no
bridge. Tear-down: the guest tap leaves the bridge first; then the IFB goes, with all that it holds, and the
redirect to it drops from then on. A process that is killed at any point leaves a tap that is down, not in
the bridge, or redirected to where nothing comes out; unless the hold was open, and then nothing was held.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Protocol

import structlog

from netbuf.errors import HoldBrokenError, KernelRefusedError, NameClashError, NetbufError
from netbuf.framecopies import Copies
from netbuf.gate import Gate, make_gate
from netbuf.leftovers import HOLD_SUFFIX, HoldLock, clear
from netbuf.packets import PacketCopies
from netbuf.plugqueue import PlugQueue, Queue
from netbuf.redirect import Hook, Network, Undelivered
from netbuf.tap import OUTLET_SUFFIX, Guest, Tap

_log = structlog.get_logger(__name__)

_REDIRECT_EVERY_S = 1.0

_SOURCE = slice(6, 12)  # of an Ethernet header


class Plumbing(Protocol):
    """What a `PlugHold` needs of its interfaces."""

    @property
    def queue(self) -> Queue:
        """Where the guest's frames wait; at first it holds them."""
        ...

    @property
    def gate(self) -> Gate:
        """Passes frames from the guest to the LAN. What it keeps back goes to the queue or nowhere."""
        ...

    def join(self) -> None:
        """Make the guest tap a port of the bridge. Idempotent."""
        ...

    def check_guest(self) -> None:
        """Raise `InterfaceVanishedError` if the guest tap is gone, `HoldBrokenError` if its frames don't all
        go to the queue any more."""
        ...

    def cut(self) -> None:
        """Delete the queue with all that it holds, and part from the LAN. Idempotent, never raises."""
        ...

    def announce(self, frame: bytes) -> None:
        """Send an Ethernet frame to the LAN; the bridge learns that its source is the guest."""
        ...

    def copies(self, limit_bytes: int) -> Copies:
        """From now on copy what the guest sends; `limit_bytes` may wait. Raises `KernelRefusedError`."""
        ...

    def replay(self, frames: Sequence[bytes]) -> int:
        """Send frames with vnet headers to the LAN as the guest tap would; how many the kernel refused."""
        ...

    def undelivered(self) -> Undelivered:
        """How many of the guest's frames the queue refused, or could not be given any more."""
        ...

    def close(self) -> None:
        """Cut, and give up what is left. Idempotent, never raises."""
        ...


class PlugWiring:
    """The real ones, in the network namespace in which it is made."""

    def __init__(self, guest: Guest, bridge: str, limit_bytes: int, network: Network | None = None) -> None:
        """Set all up around `guest`, after removing what a killed predecessor has left of it.

        `limit_bytes` is the qdisc's: beyond it frames are lost. Raises errors of `netbuf.errors`; then only
        the guest tap is left, down or without a way out.
        """
        self._guest = guest.name
        self._prefix = guest.prefix
        self._hold = guest.prefix + HOLD_SUFFIX
        with ExitStack() as undo:
            self._lock = HoldLock(guest.name)
            undo.callback(self._lock.close)
            self._network = network or Network()
            undo.callback(self._network.close)
            self._lan = self._network.bridge(bridge)
            clear(self._network, guest.name, self._hold)
            self._network.quieten(guest.name, mtu_bytes=self._lan.mtu_bytes)
            undo.callback(self._delete)
            self._network.create_hold(self._hold, limit_bytes=limit_bytes)
            self._network.describe(self._hold, f"netbuf: holds what {guest.name} sends")
            self._network.redirect(guest.name, Hook.INGRESS, self._hold)
            self._gate = make_gate(self._network, guest.name, None, notices=True)
            undo.callback(self._gate.close)
            self._guest_index = self._network.index(guest.name)
            self._hold_index = self._network.index(self._hold)
            self._redirect_due = 0.0
            self._queue = PlugQueue(self._hold, self._hold_index)
            undo.callback(self._queue.close)
            self._lan_socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            undo.callback(self._lan_socket.close)
            self._lan_socket.bind((bridge, 0))
            self._network.up(guest.name)
            undo.pop_all()
        self._joined = False
        self._cut = False
        self._closed = False
        self._undelivered = Undelivered()

    @property
    def queue(self) -> Queue:
        """The plug."""
        return self._queue

    @property
    def gate(self) -> Gate:
        """Past the redirect."""
        return self._gate

    def join(self) -> None:
        """About 1 ms the first time. Raises `InterfaceVanishedError`."""
        if not self._joined:
            self._network.enslave(self._guest, self._lan)
            self._joined = True

    def check_guest(self) -> None:
        """The redirect is looked for once a second, which takes about 0.4 ms."""
        self._queue.check(self._guest, self._guest_index)
        if (now := time.monotonic()) < self._redirect_due:
            return
        self._redirect_due = now + _REDIRECT_EVERY_S
        try:
            whole = self._network.ingress_redirects(self._guest_index) == [self._hold_index]
        except NameClashError:
            whole = False  # there are others beside it
        if not whole:
            raise HoldBrokenError(
                f"{self._guest} isn't redirected to {self._hold} alone any more, so that frames may have left"
                " unheld: somebody has changed its filters (clsact); leave them to the hold, and start again"
            )

    def cut(self) -> None:
        """Some 20 ms: the kernel waits for its readers before it forgets an interface."""
        if self._cut:
            return
        self._cut = True
        self._gate.shut()
        with suppress(NetbufError):
            self._queue.buffer()  # an open plug is shut, even if the kernel refuses to delete it
        with suppress(NetbufError):
            self._network.part(self._guest)  # at once, for its redirect may be gone
        self._delete()

    def announce(self, frame: bytes) -> None:
        """Through the bridge itself, for what comes from the guest tap waits in the plug."""
        self._network.learn(self._guest, frame[_SOURCE].hex(":"))
        self._lan_socket.send(frame)

    def copies(self, limit_bytes: int) -> Copies:
        """By a packet socket."""
        try:
            return PacketCopies(self._guest, limit_bytes)
        except OSError as error:
            raise KernelRefusedError(
                f"a packet socket on {self._guest!r} failed: {error.strerror}; see the kernel log"
            ) from error

    def replay(self, frames: Sequence[bytes]) -> int:
        """By a port that lives for this call. It teaches the bridge nothing: the guest is behind its tap, and
        must not hear its own broadcasts from there, as it wouldn't if they had come in by it."""
        refused_items = 0
        with ExitStack() as undo:
            port = undo.enter_context(closing(Tap(self._prefix + OUTLET_SUFFIX, vnet_header=True)))
            self._network.quieten(port.name, mtu_bytes=self._lan.mtu_bytes)
            self._network.enslave(port.name, self._lan)
            self._network.learn_nothing(port.name)
            undo.callback(self._network.isolate, self._guest, False)
            for name in (self._guest, port.name):
                self._network.isolate(name, True)
            self._network.up(port.name)
            for frame in frames:
                try:
                    os.write(port.fileno(), frame)
                except OSError as error:
                    refused_items += 1
                    _log.warning("a replayed frame was refused", guest=self._guest, error=error.strerror)
        return refused_items

    def undelivered(self) -> Undelivered:
        """The redirect's own count, about 0.4 ms; the last one known if the guest tap is gone."""
        if not self._closed:
            with suppress(NetbufError):
                self._undelivered = self._network.undelivered(self._guest_index, Hook.INGRESS)
        return self._undelivered

    def close(self) -> None:
        """Cut. The guest tap keeps its redirect, which now drops every frame."""
        if not self._closed:
            self.cut()
            self.undelivered()
            self._closed = True
            self._gate.close()
            self._lan_socket.close()
            self._queue.close()
            self._network.close()
            self._lock.close()

    def _delete(self) -> None:
        with suppress(NetbufError):
            self._network.delete(self._hold)
