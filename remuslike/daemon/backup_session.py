"""One session of the secondary: receive, check and stage what a primary sends, and answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from diskbuf import CHUNK_BYTES, Extent, SealedWrites, decode_writes_untrusted
from remuslike.daemon.outputs import Outputs
from remuslike.daemon.payloads import (
    DevicesDecoder,
    decode_chunk_untrusted,
    decode_disk_untrusted,
    decode_frames_untrusted,
    decode_parts_untrusted,
    encode_digests,
)
from remuslike.daemon.retained import RETAINED_EPOCHS_MAX, NicFrames, RetainedOutputs
from remuslike.engine import events as on
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import Goodbye, parse_untrusted
from remuslike.engine.ports import PAGE_BYTES, Pages, StepHook
from remuslike.errors import PayloadError
from transport import (
    BATCH_PAGES,
    Frame,
    FrameType,
    Link,
    PageBatch,
    announced_pages,
    apply_pages,
    decode_pages_untrusted,
)

_log = structlog.get_logger(__name__)

PAGES_AT_ONCE_MAX = 128
"""Up to so many pages of an epoch are decoded and applied in the event loop, in some 0.2 ms: to wake a thread
and be woken by it, at real-time priority where a guest may be running, takes as long."""

# Digests a frame: 4 KiB of them for 64 MiB of disk.
_CHUNKS_PER_FRAME = 256


@dataclass(slots=True)
class StagedEpoch:
    """What has arrived of an epoch, checked and not yet applied. `base`: the session's first. `writes`:
    (disk, its writes); `frames`: (network interface, its frames), in pieces and in order."""

    epoch: int
    base: bool
    batches: list[PageBatch] = field(default_factory=list)
    devices: bytes = b""
    writes: list[tuple[int, SealedWrites]] = field(default_factory=list)
    frames: NicFrames = field(default_factory=list)
    staged_bytes: int = 0

    def writes_by_disk(self) -> dict[int, SealedWrites]:
        """A disk's writes as one, though they may have come in pieces; the pieces are in ascending order."""
        extents: dict[int, tuple[Extent, ...]] = {}
        for number, writes in self.writes:
            extents[number] = extents.get(number, ()) + writes.extents
        return {number: SealedWrites(joined) for number, joined in extents.items()}


class BackupSession:
    """Frames from and to one primary, after the handshake."""

    def __init__(
        self, link: Link, ram: Pages, outputs: Outputs, post: Callable[[Any], None], hook: StepHook
    ) -> None:
        self.link = link
        self.staged: dict[int, StagedEpoch] = {}
        self.retained = RetainedOutputs()
        self._ram = ram
        self._outputs = outputs
        self._post = post
        self._hook = hook
        self._devices = DevicesDecoder()
        self._sync_admitted = False
        self._has_base = False
        # An epoch can't honestly carry more than all of RAM and a full disk buffer on each side of it, and
        # full network holds.
        self._staged_bytes_max = (
            2 * ram.nbytes + sum(disk.size_bytes for disk in outputs.disks) + outputs.network_limit_bytes
        )
        self._staging: StagedEpoch | None = None
        # Bounded by the core's window.
        self._acks_in, self._acks_out = trio.open_memory_channel[int](math.inf)

    # --- what the core asks for -----------------------------------------------------------------

    def acknowledge(self, epoch: int) -> None:
        self._acks_in.send_nowait(epoch)

    def admit_sync(self) -> None:
        """The part that is being reported may be written."""
        self._sync_admitted = True

    async def run(self) -> None:
        """Hear the primary, answer it, and tell it what the disks hold; until the link ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_acknowledgements)
            nursery.start_soon(self._send_digests)
            await self._receive()

    async def _send_acknowledgements(self) -> None:
        async for epoch in self._acks_out:
            await self.link.send(FrameType.ACKNOWLEDGE, epoch)
            self._hook("ack.sent", epoch)

    async def _send_digests(self) -> None:
        """Tell the primary what the disks hold, so that it sends only what differs."""
        for number, disk in self._outputs.own_disks:
            count = -(-disk.size_bytes // CHUNK_BYTES)
            for first in range(0, count, _CHUNKS_PER_FRAME):
                some = min(_CHUNKS_PER_FRAME, count - first)
                digests = await disk.chunk_digests(first, some)
                await self.link.send(FrameType.DISK_DIGESTS, 0, encode_digests(number, first, digests))

    # --- receiving ------------------------------------------------------------------------------

    async def _receive(self) -> None:
        """Hear the primary until the link ends, which raises an error of `transport.errors`."""
        while True:
            frame = await self.link.receive()
            match frame.type:
                case FrameType.SYNC_PAGES | FrameType.SYNC_DISK:
                    await self._take_sync(frame)
                case FrameType.EPOCH_BEGIN:
                    self._hook("receive.begin", frame.epoch)
                    if len(self.retained) > RETAINED_EPOCHS_MAX:
                        raise PayloadError(f"the primary has yet to release {len(self.retained)} epochs")
                    self._staging = StagedEpoch(frame.epoch, base=not self._has_base)
                    self._has_base = True
                    self._post(on.EpochBegan(frame.epoch))
                case FrameType.PAGES | FrameType.DEVICES | FrameType.DISK_WRITES | FrameType.NETWORK_FRAMES:
                    await self._stage(frame)
                case FrameType.EPOCH_END:
                    self._complete(frame)
                case FrameType.RELEASED:
                    self.retained.forget(frame.epoch)
                case FrameType.GOODBYE:
                    goodbye = parse_untrusted(Goodbye, frame.payload)
                    _log.info("session.goodbye", farewell=goodbye.farewell, reason=goodbye.reason)
                    self._post(on.PeerLeft(time.monotonic(), _farewell(goodbye.farewell)))
                case _:
                    raise PayloadError(f"the primary sent {frame.type.name}, which a primary doesn't")

    async def _take_sync(self, frame: Frame) -> None:
        """Check it, ask the core, write it straight into RAM or disk: nothing here counts yet."""
        if frame.type is FrameType.SYNC_PAGES:
            batch = await trio.to_thread.run_sync(self._decode_pages, frame.payload)
            if self._ask_admission():
                await trio.to_thread.run_sync(apply_pages, batch, self._ram)
            return
        chunk = decode_chunk_untrusted(frame.payload, CHUNK_BYTES, len(self._outputs.disks))
        if self._ask_admission():
            disk = self._outputs.disks[chunk.disk]
            if chunk.disk in self._outputs.shared:
                raise PayloadError(f"a chunk of disk {chunk.disk}, which both hosts share")
            if chunk.index * CHUNK_BYTES >= disk.size_bytes:
                raise PayloadError(f"chunk {chunk.index} lies beyond disk {chunk.disk}")
            await disk.write_chunk(chunk.index, chunk.data)

    def _ask_admission(self) -> bool:
        self._sync_admitted = False
        self._post(on.SyncPart())
        return self._sync_admitted

    def _decode_pages(self, payload: memoryview) -> PageBatch:
        return decode_pages_untrusted(payload, len(self._ram))

    async def _stage(self, frame: Frame) -> None:
        staging = self._staging
        if staging is None or staging.epoch != frame.epoch:
            self._post(on.EpochPart(frame.epoch))  # the core says what is wrong with it
            return
        if frame.type is FrameType.PAGES:
            if announced_pages(frame.payload) <= PAGES_AT_ONCE_MAX:
                batch = self._decode_pages(frame.payload)
            else:
                batch = await trio.to_thread.run_sync(self._decode_pages, frame.payload)
            staging.batches.append(batch)
            staging.staged_bytes += BATCH_PAGES * PAGE_BYTES
        elif frame.type is FrameType.DEVICES:
            staging.devices = self._devices.decode_untrusted(frame.payload)
            staging.staged_bytes += len(staging.devices)
        elif frame.type is FrameType.NETWORK_FRAMES:
            staging.frames.append(decode_frames_untrusted(frame.payload, len(self._outputs.networks)))
            staging.staged_bytes += len(frame.payload)
        else:
            number, rest = decode_disk_untrusted(frame.payload, len(self._outputs.disks))
            writes = decode_writes_untrusted(rest, self._outputs.disks[number].size_bytes)
            _check_order(staging.writes, number, writes)
            staging.writes.append((number, writes))
            staging.staged_bytes += len(frame.payload)
        if staging.staged_bytes > self._staged_bytes_max:
            limit = self._staged_bytes_max
            raise PayloadError(f"epoch {frame.epoch} is larger than the guest: over {limit} bytes")
        self._post(on.EpochPart(frame.epoch))

    def _complete(self, frame: Frame) -> None:
        staging, self._staging = self._staging, None
        if staging is not None and staging.epoch == frame.epoch:
            if not staging.devices:
                raise PayloadError(f"epoch {frame.epoch} has no device state")
            self.staged[frame.epoch] = staging
            self._hook("receive.complete", frame.epoch)
        self._post(on.EpochCompleted(frame.epoch, decode_parts_untrusted(frame.payload)))


def _check_order(before: list[tuple[int, SealedWrites]], number: int, writes: SealedWrites) -> None:
    """A disk's pieces must continue each other: together they are one epoch's writes."""
    ends = [earlier.extents[-1].end for disk, earlier in before if disk == number and earlier.extents]
    if ends and writes.extents and writes.extents[0].offset < ends[-1]:
        raise PayloadError(
            f"disk {number}: writes at {writes.extents[0].offset} came after those up to {ends[-1]}"
        )


def _farewell(value: str) -> Farewell:
    try:
        return Farewell(value)
    except ValueError as error:
        raise PayloadError(f"farewell {value!r}: must be one of {[f.value for f in Farewell]}") from error
