"""All buffers of a guest as one: sealed in one pause, released together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import structlog
import trio

from diskbuf import CHUNK_BYTES, DiskBuffer, SharedStore
from diskbuf.errors import DiskbufError
from netbuf import Hold
from netbuf.errors import NetbufError
from remuslike.engine.events import OutputKind, Pressure

_log = structlog.get_logger(__name__)

# Without any buffer nothing is held; the window alone bounds the epochs on their way.
_DEPTH_OF_NOTHING = 1 << 30

_PACKET_BYTES = 1514  # of full length on an Ethernet

_RANK = {Pressure.NONE: 0, Pressure.SOON: 1, Pressure.FULL: 2}


class Outputs:
    """The guest's network holds and disk buffers; the OutputBuffer contract over all of them.

    The stores of some `disks` may be `shared` by both hosts: such a disk is never synchronised, and a standby
    has nothing to write to it. `shared`: their numbers.
    """

    def __init__(
        self, networks: list[Hold], disks: list[DiskBuffer], shared: dict[int, SharedStore] | None = None
    ) -> None:
        self.networks = networks
        self.disks = disks
        self.shared = shared or {}
        # The shallowest first: all go in step, so if any must refuse a seal it does before one has sealed.
        self._all: list[Hold | DiskBuffer] = sorted([*networks, *disks], key=lambda buffer: buffer.depth)

    @property
    def shares(self) -> bool:
        """Whether any disk is shared."""
        return bool(self.shared)

    @property
    def own_disks(self) -> list[tuple[int, DiskBuffer]]:
        """Those of this host alone, with their numbers."""
        return [(number, disk) for number, disk in enumerate(self.disks) if number not in self.shared]

    @property
    def own_chunks(self) -> int:
        """How many chunks they have together."""
        return sum(-(-disk.size_bytes // CHUNK_BYTES) for _, disk in self.own_disks)

    async def sync_shared(self) -> None:
        """Return when all that was written to the shared disks is there for the other host, too."""
        for number in self.shared:
            await self.disks[number].sync_store()

    @property
    def depth(self) -> int:
        """Sealed epochs that all of them can hold."""
        return self._all[0].depth if self._all else _DEPTH_OF_NOTHING

    @property
    def pressure(self) -> Pressure:
        """That of the fullest."""
        levels = [Pressure(buffer.pressure.value) for buffer in self._all]
        return max(levels, key=_RANK.__getitem__, default=Pressure.NONE)

    def on_pressure(self, callback: Callable[[], None]) -> None:
        """Call whenever any buffer's level rises."""
        for buffer in self._all:
            buffer.on_pressure(lambda _level: callback())

    def on_output(self, callback: Callable[[OutputKind, int], None]) -> None:
        """Call with the epoch, once a buffer, when the first output of its open epoch has been held."""
        for network in self.networks:
            network.on_output(partial(callback, OutputKind.NETWORK))
        for disk in self.disks:
            disk.on_output(partial(callback, OutputKind.DISK))

    @property
    def network_limit_bytes(self) -> int:
        """At most so much of an epoch's frames is held; twice their limit, for what comes until a seal."""
        return 2 * sum(network.statistics().limit_bytes for network in self.networks)

    @property
    def open_packets(self) -> int:
        """What the open epoch's frames are on the wire, about: a guest hands over large ones to be cut."""
        return sum(
            max(network.open_items(), network.open_bytes() // _PACKET_BYTES) for network in self.networks
        )

    def sealed_frames(self, epoch: int) -> list[list[bytes]]:
        """The frames of a sealed, unreleased epoch, for each network interface, which must keep them."""
        return [network.sealed_frames(epoch) for network in self.networks]

    def held_frames(self) -> list[list[bytes]]:
        """All frames that wait, for each network interface. Prerequisite: guest paused, `prepare` since."""
        return [network.held_frames() for network in self.networks]

    def replay(self, nic: int, frames: list[bytes]) -> bool:
        """Send frames that a host which is gone may not have sent. Prerequisite: opened.

        False if this host refuses, which is logged. They are lost then as on any network: that is no reason
        to give up the guest.
        """
        try:
            self.networks[nic].replay(frames)
        except NetbufError as error:
            _log.error("replay.failed", network=nic, frames=len(frames), error=str(error))
            return False
        return True

    def hold(self, epoch: int) -> None:
        for buffer in self._all:
            buffer.hold(epoch)

    def prepare(self) -> None:
        for buffer in self._all:
            buffer.prepare()

    def guest_stands(self, stands: bool) -> None:
        """From a pause's begin to its end, when flushes are QEMU's own: it flushes the disks when it stops
        and when it saves."""
        for disk in self.disks:
            disk.ignore_flushes(stands)

    def seal(self, epoch: int) -> None:
        for buffer in self._all:
            buffer.seal(epoch)

    async def release(self, epoch: int) -> None:
        """Network and disks at once: neither waits for the other, both are entitled."""
        async with trio.open_nursery() as nursery:
            for buffer in self._all:
                nursery.start_soon(buffer.release, epoch)

    async def open(self) -> None:
        """Disks first: a guest whose frames leave must find its disks writable."""
        for disk in self.disks:
            await disk.open()
        for network in self.networks:
            await network.open()

    async def flush(self) -> None:
        """Make durable what `open` let out: the guest's flushes were answered while it was only held.

        A disk that can't is logged; its next flush fails for the guest, too, and tells it.
        """
        for number, disk in enumerate(self.disks):
            try:
                await disk.flush()
            except DiskbufError as error:
                _log.error("disk.flush_failed", disk=number, error=str(error))

    def discard(self) -> None:
        for buffer in self._all:
            buffer.discard()

    def statistics(self) -> dict[str, dict[str, Any]]:
        """The buffers' own, by kind and number: "network0", "disk0", …"""
        named = [(f"network{number}", _plain(hold)) for number, hold in enumerate(self.networks)]
        named += [(f"disk{number}", _plain(disk)) for number, disk in enumerate(self.disks)]
        return dict(named)


def _plain(buffer: Hold | DiskBuffer) -> dict[str, Any]:
    statistics = buffer.statistics()
    return {key: getattr(value, "value", value) for key, value in asdict(statistics).items()}
