"""The guest that waits: its RAM is written while QEMU stands by, its devices at the takeover.

QEMU is an incoming migration that never began (docs/devel/migration): `-incoming defer`, RAM
shared and so no part of the stream, and for the stream one end of a socket pair. What
`xen-save-devices-state` wrote on the other host is such a stream.
"""

from __future__ import annotations

import socket

import trio

from remuslike.engine.ports import Pages
from remuslike.errors import GuestError
from remuslike.guest.process import QemuProcess

# Activation takes milliseconds; past this the device state was not understood.
_ACTIVATION_LIMIT_S = 10.0


class QemuStandby:
    """A waiting QEMU as `remuslike.engine.ports.StandbyGuest`."""

    def __init__(self, process: QemuProcess, incoming: socket.socket) -> None:
        self._process = process
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(incoming))

    @property
    def process(self) -> QemuProcess:
        return self._process

    @property
    def ram(self) -> Pages:
        return self._process.memory.pages

    async def prepare(self, incoming_descriptor: int) -> None:
        """Enter the wait. From now on QEMU leaves its RAM alone."""
        capability = {"capability": "x-ignore-shared", "state": True}
        await self._process.qmp.execute("migrate-set-capabilities", capabilities=[capability])
        await self._process.qmp.execute("migrate-incoming", uri=f"fd:{incoming_descriptor}")

    async def activate(self, devices: bytes) -> None:
        """Returns when the guest runs; GuestError if QEMU refuses the device state or dies of it."""
        with trio.move_on_after(_ACTIVATION_LIMIT_S):
            try:
                await self._stream.send_all(devices)
                await self._stream.aclose()
            except trio.BrokenResourceError as error:
                raise GuestError(f"QEMU stopped reading the device state: {error}") from error
            if await self._process.wait_resumed():
                return
            raise GuestError(f"QEMU did not take the device state: {self._process.last_words()}")
        raise GuestError(f"QEMU did not run within {_ACTIVATION_LIMIT_S:.0f} s of the device state")

    async def destroy(self) -> None:
        await self._process.destroy()
