"""One session of the primary: synchronise a secondary, then send it epochs, and hear its answers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
import trio

from diskbuf import CHUNK_BYTES, SealedWrites, encode_writes
from remuslike.daemon.outputs import Outputs
from remuslike.daemon.payloads import (
    DevicesEncoder,
    decode_digests_untrusted,
    encode_chunk,
    encode_disk,
    encode_frames,
    encode_parts,
    split_writes,
)
from remuslike.daemon.samples import Sample, Samples
from remuslike.engine import events as on
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import Goodbye, parse_untrusted
from remuslike.engine.ports import PAGE_BYTES, Capture, Indices, StepHook
from remuslike.errors import PayloadError
from remuslike.guest.running import QemuGuest
from transport import BATCH_PAGES, FrameType, Link, PageEncoder, PreparedFrame, prepare_frame

_log = structlog.get_logger(__name__)

# A pass that sent no more than this ends the synchronisation: 16 MiB are captured in some 10 ms.
_PASS_PAGES_SMALL = 4096
# A guest that writes faster than we send never has little left; after this many passes the base takes
# what there is, in one longer pause.
_PASSES_MAX = 8
_DIGEST_BYTES = 16
# Up to this much is encoded here, in some 0.3 ms; waking a thread and being woken takes a third of it.
_INLINE_BYTES_MAX = 128 * PAGE_BYTES
# Each of the guest's frames takes 0.5 us, as this much of a page does, besides what its bytes take.
_FRAME_COST_BYTES = 1024


@dataclass(slots=True)
class PendingEpoch:
    """A captured epoch on its way: `writes` for each buffered disk; of a `base` also the `chunks` to read, as
    (disk, indices). `frames` of each network interface, where they are to outlive this host."""

    epoch: int
    capture: Capture
    writes: list[SealedWrites]
    sample: Sample
    base: bool = False
    chunks: list[tuple[int, Indices]] = field(default_factory=list)
    frames: list[list[bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Released:
    """An epoch that has left, durably where it went to shared disks: the secondary need not keep it."""

    epoch: int


@dataclass(slots=True)
class SyncProgress:
    """How far the synchronisation is, for `statistics`."""

    passes: int = 0
    pages_sent: int = 0
    pages_last_pass: int = 0
    chunks_sent: int = 0


class PrimarySession:
    """Frames to and from one secondary, after the handshake. `run` runs for the session's life."""

    def __init__(
        self,
        link: Link,
        guest: QemuGuest,
        outputs: Outputs,
        samples: Samples,
        post: Callable[[Any], None],
        hook: StepHook,
    ) -> None:
        self.link = link
        self.sync = SyncProgress()
        self.wire_bytes = 0
        self.raw_bytes = 0
        self._guest = guest
        self._outputs = outputs
        self._samples = samples
        self._post = post
        self._hook = hook
        self._encoder = PageEncoder(guest.page_count)
        self._devices = DevicesEncoder()
        # Bounded by the core's window of unacknowledged epochs.
        self._pending_in, self._pending_out = trio.open_memory_channel[PendingEpoch | Released](math.inf)
        # Bounded by the count of chunks: 16 bytes of digest for each 256 KiB of disk.
        self._digests_in, self._digests_out = trio.open_memory_channel[tuple[int, int, bytes]](math.inf)
        self._digests_due = outputs.own_chunks

    # --- receiving ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hear the secondary until the link ends, which raises an error of `transport.errors`."""
        disk_count = len(self._outputs.disks)
        while True:
            frame = await self.link.receive()
            match frame.type:
                case FrameType.ACKNOWLEDGE:
                    self._hook("ack.received", frame.epoch)
                    now = time.monotonic()
                    self._samples.finish(frame.epoch, now)
                    self._post(on.Acknowledged(now, frame.epoch))
                case FrameType.DISK_DIGESTS:
                    chunk = decode_digests_untrusted(frame.payload, disk_count)
                    count, odd = divmod(len(chunk.data), _DIGEST_BYTES)
                    self._digests_due -= count
                    if odd or not count or self._digests_due < 0:
                        raise PayloadError("the secondary's digests are none, in part, or more than chunks")
                    self._digests_in.send_nowait((chunk.disk, chunk.index, bytes(chunk.data)))
                case FrameType.GOODBYE:
                    goodbye = parse_untrusted(Goodbye, frame.payload)
                    _log.info("session.goodbye", farewell=goodbye.farewell, reason=goodbye.reason)
                    self._post(on.PeerLeft(time.monotonic(), Farewell.LEAVING))
                case _:
                    raise PayloadError(f"the secondary sent {frame.type.name}, which a secondary doesn't")

    # --- synchronising --------------------------------------------------------------------------

    async def synchronise(self) -> None:
        """RAM and disks in passes, until a pass was small; then report `SyncConverged`."""
        for disk in self._outputs.disks:
            disk.take_dirty_chunks()
        self._guest.start_tracking()
        await self._send_differing_chunks()
        while True:
            self.sync.passes += 1
            for number, disk in self._outputs.own_disks:
                await self._send_chunks(number, disk.take_dirty_chunks())
            dirty = await self._guest.dirty_pages()
            await self._send_pages(dirty)
            self.sync.pages_last_pass = len(dirty)
            _log.info("sync.pass", number=self.sync.passes, pages=len(dirty), chunks=self.sync.chunks_sent)
            if len(dirty) <= _PASS_PAGES_SMALL or self.sync.passes >= _PASSES_MAX:
                break
        self._post(on.SyncConverged(time.monotonic()))

    async def _send_pages(self, indices: Indices) -> None:
        for start in range(0, len(indices), BATCH_PAGES):
            batch = indices[start : start + BATCH_PAGES]
            await self.link.send_prepared(await trio.to_thread.run_sync(self._prepare_pages, batch))
            self.sync.pages_sent += len(batch)

    def _prepare_pages(self, indices: Indices) -> list[PreparedFrame]:
        payloads = self._encoder.encode_full(indices, self._guest.read_pages(indices))
        return [prepare_frame(FrameType.SYNC_PAGES, 0, [payload]) for payload in payloads]

    async def _send_differing_chunks(self) -> None:
        """Compare the secondary's digests with ours, and send the chunks that differ."""
        expected = self._outputs.own_chunks
        while expected > 0:
            number, first, theirs = await self._digests_out.receive()
            count, odd = divmod(len(theirs), _DIGEST_BYTES)
            disk = self._outputs.disks[number]
            if odd or not 0 < count <= expected or (first + count - 1) * CHUNK_BYTES >= disk.size_bytes:
                raise PayloadError(f"digests of {count} chunks from {first} on don't fit disk {number}")
            expected -= count
            ours = await disk.chunk_digests(first, count)
            different = np.frombuffer(ours, "V16") != np.frombuffer(theirs, "V16")
            await self._send_chunks(number, first + np.flatnonzero(different))

    async def _send_chunks(self, number: int, indices: Indices) -> None:
        disk = self._outputs.disks[number]
        for index in indices.tolist():
            data = await disk.read_chunk(index)
            await self.link.send_prepared(
                [await trio.to_thread.run_sync(_prepare_chunk, number, index, data)]
            )
            self.sync.chunks_sent += 1

    # --- epochs ---------------------------------------------------------------------------------

    def enqueue(self, pending: PendingEpoch | Released) -> None:
        self._pending_in.send_nowait(pending)

    async def send_epochs(self) -> None:
        """Send what `enqueue` was given, in order, until cancelled."""
        async for pending in self._pending_out:
            if isinstance(pending, Released):
                await self.link.send(FrameType.RELEASED, pending.epoch)
                self._hook("released.sent", pending.epoch)
            else:
                await self._send_epoch(pending)

    async def _send_epoch(self, pending: PendingEpoch) -> None:
        """Encode, off the pause and, unless it is little, off this thread; then send."""
        epoch, sample = pending.epoch, pending.sample
        self._hook("send.begin", epoch)
        began = time.perf_counter()
        if _is_little(pending):
            memory, outputs = self._prepare(pending)
        else:
            memory, outputs = await trio.to_thread.run_sync(self._prepare, pending)
        sample.encode_ms = (time.perf_counter() - began) * 1e3
        sample.wire_bytes = sum(frame.size_bytes for frame in memory if frame.type is FrameType.PAGES)
        for number, chunks in pending.chunks:
            await self._send_chunks(number, chunks)
        if pending.base:
            await self._outputs.sync_shared()
        await self.link.send_prepared(memory, more_follows=True)
        self._hook("send.half", epoch)
        await self.link.send_prepared(outputs)
        self.raw_bytes += sample.raw_bytes
        self.wire_bytes += sample.wire_bytes
        self._hook("send.end", epoch)

    def _prepare(self, pending: PendingEpoch) -> tuple[list[PreparedFrame], list[PreparedFrame]]:
        """The epoch's frames: what the guest is, and what it has sent, with the end."""
        epoch, capture = pending.epoch, pending.capture
        memory = [prepare_frame(FrameType.EPOCH_BEGIN, epoch, ())]
        memory.append(prepare_frame(FrameType.DEVICES, epoch, self._devices.encode(capture.devices)))
        pages = self._encoder.encode_delta(capture.indices, capture.pages)
        memory += [prepare_frame(FrameType.PAGES, epoch, [payload]) for payload in pages]
        outputs: list[PreparedFrame] = []
        for number, writes in enumerate(pending.writes):
            outputs += [
                prepare_frame(FrameType.DISK_WRITES, epoch, [encode_disk(number), *encode_writes(piece)])
                for piece in split_writes(writes)
            ]
        for nic, frames in enumerate(pending.frames):
            outputs += [
                prepare_frame(FrameType.NETWORK_FRAMES, epoch, parts) for parts in encode_frames(nic, frames)
            ]
        between = len(memory) + len(outputs) - 1
        outputs.append(prepare_frame(FrameType.EPOCH_END, epoch, [encode_parts(between)]))
        return memory, outputs


def _is_little(pending: PendingEpoch) -> bool:
    """Whether it takes no longer to encode than a thread is worth."""
    if any(writes.extents for writes in pending.writes):
        return False
    cost_bytes = pending.capture.pages.nbytes
    for frames in pending.frames:
        cost_bytes += sum(map(len, frames)) + len(frames) * _FRAME_COST_BYTES
    return cost_bytes <= _INLINE_BYTES_MAX


def _prepare_chunk(number: int, index: int, data: bytes | bytearray | memoryview) -> PreparedFrame:
    return prepare_frame(FrameType.SYNC_DISK, 0, encode_chunk(number, index, data))
