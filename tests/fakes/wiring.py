"""A tap hold's wiring over socket pairs, which keep frames apart as TAPs do."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from typing import cast

from netbuf import GuestTap, InterfaceVanishedError
from netbuf.gatewire import GateReading
from netbuf.redirect import Undelivered
from netbuf.tap import VNET_HEADER_BYTES

# From Linux asm-generic/socket.h; Python's socket module doesn't have it.
_SO_SNDBUFFORCE = 32


class _GuestTapName:
    """As much of a GuestTap as a hold looks at when its wiring is faked."""

    name = "rl0g"


def fake_guest_tap() -> GuestTap:
    return cast(GuestTap, _GuestTapName())


class FakeGate:
    """`netbuf.gate.Gate` by the rule of the kernel's program (`netbuf.gatewire`)."""

    def __init__(self) -> None:
        self.kept_items = self.passed_items = self.passed_bytes = 0
        self._pass_after: int | None = None
        self._tell_after: int | None = None
        self._notice = -1  # made when first asked for

    def reading(self) -> GateReading:
        return GateReading(self.kept_items, self.passed_items, self.passed_bytes)

    def pass_after(self, kept_items: int) -> None:
        self._pass_after = kept_items

    def shut(self) -> None:
        self._pass_after = None

    def tell_after(self, kept_items: int) -> None:
        self.take_notice()
        self._tell_after = kept_items

    def notice_fileno(self) -> int:
        if self._notice < 0:
            self._notice = os.eventfd(0, os.EFD_NONBLOCK)
        return self._notice

    def take_notice(self) -> bool:
        with suppress(BlockingIOError):
            os.eventfd_read(self.notice_fileno())
        return self._tell_after is not None and self.kept_items > self._tell_after

    def close(self) -> None:
        self.shut()
        self._tell_after = None
        notice, self._notice = self._notice, -1
        if notice >= 0:
            os.close(notice)

    @property
    def is_open(self) -> bool:
        return self.kept_items == self._pass_after

    def lets_pass(self, size_bytes: int) -> bool:
        """A frame comes, vnet header not counted."""
        if not self.is_open:
            self.kept_items += 1
            if self._tell_after == self.kept_items - 1:
                os.eventfd_write(self.notice_fileno(), 1)
            return False
        self.passed_items += 1
        self.passed_bytes += size_bytes
        return True


class FakeWiring:
    """`netbuf.wiring.Wiring` between a guest that sends and a LAN that receives.

    `room`: how many more frames the outlet takes before it is as if deleted; None: any number. `lost`: how
    many were lost on their way; those that were to go to the hold were kept back by the gate.
    """

    def __init__(self) -> None:
        self.gate = FakeGate()
        self.outlet_up = False
        self.lost = Undelivered()
        self.guest, self.hold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outlet, self.lan = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.guest, self.hold, self.outlet, self.lan):
            end.setblocking(False)
            with suppress(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20)
        self.room: int | None = None
        self.guest_is_gone = self.outlet_is_gone = False

    def hold_fileno(self) -> int:
        return self.hold.fileno()

    def outlet_fileno(self) -> int:
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.EBADFD, "File descriptor in bad state")
            self.room -= 1
        return self.outlet.fileno()

    def raise_outlet(self) -> None:
        self.outlet_up = True

    def cut_outlet(self) -> None:
        self.outlet_up = False
        self.outlet.close()

    def check_guest(self) -> None:
        if self.guest_is_gone:
            raise InterfaceVanishedError("the guest tap 'rl0g' is gone; end its hold")

    def check_outlet(self) -> None:
        if self.outlet_is_gone:
            raise InterfaceVanishedError("the outlet of rl0g is gone; find out who deletes it")

    def undelivered(self) -> Undelivered:
        return self.lost

    def close(self) -> None:
        self.gate.close()
        for end in (self.outlet, self.hold):
            end.close()

    # --- the ends that the test has -------------------------------------------------------------

    def send(self, *frames: bytes) -> None:
        """The guest sends frames, vnet headers included."""
        for frame in frames:
            passes = self.gate.lets_pass(len(frame) - VNET_HEADER_BYTES)
            (self.outlet if passes else self.guest).send(frame)

    def lose(self, frames: int) -> None:
        """The guest sends frames that the hold's ring has no room for."""
        for _ in range(frames):
            assert not self.gate.lets_pass(0), "an open gate doesn't lead to the hold"
        self.lost = Undelivered(self.lost.redirected_items + frames, self.lost.passed_items)

    def received(self) -> list[bytes]:
        """The frames that have reached the LAN since the last call, vnet headers included."""
        frames: list[bytes] = []
        with suppress(BlockingIOError):
            while frame := self.lan.recv(1 << 17):
                frames.append(frame)
        return frames

    def leave_room(self, count: int | None) -> None:
        self.room = count

    def close_ends(self) -> None:
        self.close()
        self.guest.close()
        self.lan.close()
