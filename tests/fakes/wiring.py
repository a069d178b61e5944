"""A tap hold's wiring over socket pairs, which keep frames apart as TAPs do."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import cast

from netbuf import GuestTap, InterfaceVanishedError

# From Linux asm-generic/socket.h; Python's socket module doesn't have it.
_SO_SNDBUFFORCE = 32


class _GuestTapName:
    """As much of a GuestTap as a hold looks at when its wiring is faked."""

    name = "rl0g"


def fake_guest_tap() -> GuestTap:
    return cast(GuestTap, _GuestTapName())


class FakeWiring:
    """`netbuf.wiring.Wiring` between a guest that sends and a LAN that receives.

    `room`: how many more frames the outlet takes before it is as if deleted; None: any number.
    """

    def __init__(self) -> None:
        self.guest, self.hold = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.outlet, self.lan = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.guest, self.hold, self.outlet, self.lan):
            end.setblocking(False)
            with suppress(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 20)
        self.room: int | None = None
        self.guest_is_gone = False

    def hold_fileno(self) -> int:
        return self.hold.fileno()

    def outlet_fileno(self) -> int:
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.EBADFD, "File descriptor in bad state")
            self.room -= 1
        return self.outlet.fileno()

    def raise_outlet(self) -> None:
        """The outlet is always up."""

    def cut_outlet(self) -> None:
        self.outlet.close()

    def check_guest(self) -> None:
        if self.guest_is_gone:
            raise InterfaceVanishedError("the guest tap 'rl0g' is gone; end its hold")

    def undelivered(self) -> int:
        return 0

    def close(self) -> None:
        for end in (self.outlet, self.hold):
            end.close()

    # --- the ends that the test has -------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        """The guest sends a frame, vnet header included."""
        self.guest.send(frame)

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
