"""The network hold in user space: a guest's frames wait here until their epoch is safe.

`TapHold` satisfies the OutputBuffer contract (DESIGN.md, section 4). `wiring` brings the guest's frames to
one descriptor and takes those that may leave from another; `ledger` says what may leave. This module moves
the frames, whole, in order, and with one system call each. While it is open the kernel does, by a gate.

Invariants:

- `_held` is what the ledger counts as held, oldest first (P5).
- A frame is written to the outlet in two places only: `_take` while the ledger is open, `_send_oldest`
  between the ledger's begin and end of a release or an opening (P1). `announce` writes frames that are not
  the guest's, `replay` those of an epoch that another host held.
- The gate opens in `_open_gate` only: while the ledger is open, `run` is running, and every frame that the
  gate has kept back so far is accounted for. Those have been written by then, so none is overtaken (P5).
- While holding at the limit nothing is read but by `seal` and `prepare`: frames wait in the kernel's ring,
  which drops what exceeds RING_FRAMES; the drops are counted and reported (P6).
- Dying or being cancelled stops the movement and nothing else (P4).
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import structlog
import trio

from netbuf.announce import check_frames
from netbuf.errors import InterfaceVanishedError
from netbuf.firstoutput import FirstOutput
from netbuf.framecopies import not_kept
from netbuf.gatemeter import GateMeter
from netbuf.ledger import BufferStatistics, HoldState, Ledger, Pressure
from netbuf.redirect import RING_FRAMES
from netbuf.tap import FRAME_BYTES_MAX, VNET_HEADER_BYTES, Guest
from netbuf.turn import Turn
from netbuf.wiring import TapWiring, Wiring

# Frames moved before other tasks get their turn: at some 10 µs each, well under 1 ms.
TURN_FRAMES = 64

# While an epoch is held nobody waits for its frames but the seal, which reads what there is. So they are read
# by and by, not one by one: a wake-up costs more than to read the frame it is for, and takes the processor
# from the guest that sends them. Reading takes 2 µs a frame at the least: who sends more than 1000 in this
# time, a tenth of RING_FRAMES, is too fast for the reader anyway. The ring takes full-size frames at
# 10 Gbit/s for 12 ms, the smallest for 0.7 ms, which no reader is quick enough for; losses are counted (P6).
GATHER_S = 0.002

# What writing to a TAP raises when its interface was deleted (tun_get in drivers/net/tun.c).
_INTERFACE_DELETED = errno.EBADFD

# Nothing tells a reader that the guest tap is gone: no more frames come, as if the guest were silent.
_GUEST_CHECK_S = 1.0

_NO_OFFLOAD = bytes(VNET_HEADER_BYTES)

_log = structlog.get_logger(__name__)


class TapHold:
    """Holds what one guest NIC sends; what is sent to the guest passes unheld.

    All methods are called from the trio thread. A guest with several NICs has one hold for each.
    """

    def __init__(
        self,
        guest: Guest,
        bridge: str,
        limit_bytes: int,
        depth: int = 2,
        *,
        keep_frames: bool = False,
        wire: Callable[[Guest, str], Wiring] = TapWiring,
    ) -> None:
        """Start `closed`: the guest's frames wait in the hold's ring, and none reaches the guest.

        `bridge` is the LAN, in the current network namespace. `limit_bytes` bounds the held frames, vnet
        headers included; a seal may exceed it by what the ring holds. `depth` is how many sealed epochs may
        wait. `keep_frames` is for `sealed_frames`. `wire` makes the interfaces. Raises `SettingError` or
        `HostError` of `netbuf.errors`.
        """
        self._ledger = Ledger(depth=depth, limit_bytes=limit_bytes)
        self._wiring = wire(guest, bridge)
        self._gate = self._wiring.gate
        self._gate_meter = GateMeter(self._ledger, self._gate, header_bytes=VNET_HEADER_BYTES)
        self._read_items = 0  # with those that were lost on their way here: what the gate has kept
        self._lost_items = 0  # as far as we have asked
        self._name = guest.name
        self._held: deque[bytes] = deque()
        self._buffer = memoryview(bytearray(FRAME_BYTES_MAX))
        self._buffers = (self._buffer,)
        self._first = FirstOutput(self._ledger, self._gate)
        self._keep_frames = keep_frames
        self._callbacks: list[Callable[[Pressure], None]] = []
        self._leaving = Turn()  # releases and openings take turns
        self._changed = trio.Event()  # replaced whenever it is set
        self._running = False
        self._closed = False
        self._write_failed = False

    # --- the OutputBuffer contract --------------------------------------------------------------

    @property
    def depth(self) -> int:
        """How many sealed, unreleased epochs it can hold."""
        return self._ledger.depth

    @property
    def pressure(self) -> Pressure:
        """How near the held bytes are to `limit_bytes`."""
        return self._ledger.pressure

    def on_pressure(self, callback: Callable[[Pressure], None]) -> None:
        """Have `callback(level)` called in the trio thread whenever the level rises."""
        self._callbacks.append(callback)

    def on_output(self, callback: Callable[[int], None]) -> None:
        """From the next epoch on, have `callback(epoch)` called in the trio thread at its first output."""
        self._first.on_output(callback)

    def open_items(self) -> int:
        """Outputs of the open epoch so far, without a system call; what waits in the ring is among them."""
        return self._first.open_items()

    def open_bytes(self) -> int:
        """How much they are, of those that have been read."""
        return self._ledger.open_bytes

    def statistics(self) -> BufferStatistics:
        """A snapshot, about 0.4 ms: the kernel is asked for the frames that it had to drop."""
        return self._ledger.statistics(dropped_elsewhere_items=self._book_passed())

    def hold(self, epoch: int) -> None:
        """From now on frames belong to `epoch`. Prerequisite: closed or open, guest paused.

        Frames sent before, while open, still pass. From closed, it also opens the way to the guest.
        Raises `HoldError`, and then nothing has changed, or `InterfaceVanishedError`.
        """
        self._ledger.check_hold(epoch)
        if self._ledger.state is HoldState.OPEN:
            self._gate.shut()
            self._book_passed()
            self._drain(RING_FRAMES)
            self._first.begin(self._gate.reading().kept_items)
        self._ledger.hold(epoch)
        self._wiring.raise_outlet()
        self._wake()

    def prepare(self) -> None:
        """Read what waits at the limit, so that the seal finds little left to do inside the pause."""
        if self._ledger.state is HoldState.HOLDING and not self._ledger.opening:
            self._drain(RING_FRAMES)
            self._tell()

    def seal(self, epoch: int) -> None:
        """Close `epoch` with every frame that the guest has sent. Prerequisite: holding, guest paused.

        A write to the guest tap ends only when the redirect has put the frame into the hold's ring, so one
        ring's worth of reads finds all that was sent before. Raises `SealError`: nothing has changed;
        `InterfaceVanishedError`: nothing was sealed.
        """
        self._ledger.check_seal(epoch)
        self._drain(RING_FRAMES)
        self._ledger.seal(epoch)
        self._first.begin(self._gate.reading().kept_items)
        self._tell()
        self._wake()

    async def release(self, epoch: int) -> None:
        """Let the frames of `epoch` out, in order. Prerequisite: it is the oldest sealed epoch.

        Returns when all have left. Raises `ReleaseError`, and then nothing gets out. On cancellation or
        `InterfaceVanishedError` what has not left is held as before, and the call may be repeated.
        """
        async with self._leaving:
            self._ledger.begin_release(epoch)
            released = False
            try:
                await self._let_out(lambda: self._ledger.oldest_items)
                released = True
            finally:
                self._ledger.end_release(released=released)
                self._wake()

    async def open(self) -> None:
        """Let all out that is held, in order; from then on frames pass at once, in both directions.

        The guest may be running: what comes meanwhile stays behind what is held. As soon as nothing is left
        to overtake, the kernel passes frames by itself; `run` sees to that, should it not be so at once.

        Only under a witness's grant. Raises `OpenError` when discarded, and else fails as `release` does:
        then the buffer is in the state in which it was.
        """
        async with self._leaving:
            self.prepare()
            self._ledger.begin_open()
            opened = False
            try:
                await self._let_out(lambda: self._ledger.held_items)
                self._wiring.raise_outlet()
                opened = True
            finally:
                self._ledger.end_open(opened=opened)
                self._wake()
            self._open_gate()

    def discard(self) -> None:
        """Drop all that is held; nothing leaves ever after. Idempotent, never raises."""
        self._gate.shut()
        if self._ledger.state is HoldState.OPEN:
            self._book_passed()
        self._wiring.cut_outlet()
        self._ledger.discard()
        self._held.clear()
        self._wake()

    # --- beside the contract --------------------------------------------------------------------

    def announce(self, frames: Sequence[bytes]) -> None:
        """Send `frames` (Ethernet, no vnet header) to the LAN at once, as if the guest's port had.

        For frames that only say where the guest now is: see `rarp_frame`. Prerequisite: open, or holding
        after having been open. Raises `AnnounceError`, and then nothing was sent.
        """
        self._ledger.check_announce()
        check_frames(frames)
        for frame in frames:
            if not self._write(_NO_OFFLOAD + frame):
                self._ledger.dropped()

    def sealed_frames(self, epoch: int) -> list[bytes]:
        """The frames of a sealed, unreleased epoch, vnet headers included.

        Prerequisite: made with `keep_frames`. Raises `SealedFramesError`.
        """
        if not self._keep_frames:
            raise not_kept(f"sealed_frames({epoch})")
        first, count = self._ledger.place_of(epoch)
        return list(islice(self._held, first, first + count))

    def held_frames(self) -> list[bytes]:
        """All that wait, of sealed epochs and of the open one, oldest first.

        Prerequisite: guest paused, and `prepare` since. Otherwise as `sealed_frames`.
        """
        if not self._keep_frames:
            raise not_kept("held_frames()")
        return list(self._held)

    def replay(self, frames: Sequence[bytes]) -> None:
        """Send `frames`, another hold's `sealed_frames`, to the LAN at once, as the guest's port would.

        They may have been sent before. Prerequisite and errors: those of `announce`.
        """
        self._ledger.check_announce("replay()")
        check_frames([frame[VNET_HEADER_BYTES:] for frame in frames])
        for frame in frames:
            if not self._write(frame):
                self._ledger.dropped()

    def close(self) -> None:
        """Discard, then remove the interfaces; a `run` under way returns. Idempotent, never raises.

        The guest tap stays: whatever the guest sends from now on is dropped in the kernel.
        """
        if self._closed:
            return
        self.discard()
        self._closed = True
        if self._running:
            trio.lowlevel.notify_closing(self._wiring.hold_fileno())
        self._wiring.close()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the guest's frames: pass them on while open, keep them while holding, until `close`.

        One task of a nursery. When it is cancelled nothing passes any more, and when the process is killed
        nothing does either, whatever the state (P4).
        Raises `InterfaceVanishedError` if somebody deletes one of the interfaces, noticed within a second.
        """
        assert not self._running, f"run() twice for the hold of {self._name}"
        self._running = True
        task_status.started()
        try:
            while not self._closed:
                # One deadline for all that is read until it passes: a deadline a frame costs as much as one.
                with trio.move_on_after(_GUEST_CHECK_S):
                    await self._read_until_closed()
                if self._ledger.state is not HoldState.DISCARDED:
                    self._wiring.check_guest()
                if self._ledger.state is HoldState.OPEN:
                    self._wiring.check_outlet()  # to which the kernel may be writing, not we
        except trio.ClosedResourceError:
            assert self._closed, "the hold's descriptor was closed by somebody else"
        finally:
            self._running = False
            self._gate.shut()

    # --- frames come ----------------------------------------------------------------------------

    async def _read_until_closed(self) -> None:
        self._open_gate()
        while not self._closed:
            if self._may_read():
                await trio.lowlevel.wait_readable(self._wiring.hold_fileno())
                if self._may_read():
                    emptied = self._drain(TURN_FRAMES, within_limit=True)
                    if emptied:
                        self._open_gate()
                    self._tell()
                    # An epoch without frames waits for its first, which is to be told of at once.
                    if emptied and self._ledger.open_items:
                        await self._gather()
            else:
                await self._changed.wait()

    async def _gather(self) -> None:
        """Let frames of the epoch whose first has been told come together; no longer than it is open."""
        changed = self._changed
        with trio.move_on_after(GATHER_S):
            await changed.wait()

    def _may_read(self) -> bool:
        match self._ledger.state:
            case HoldState.CLOSED:
                return False
            case HoldState.HOLDING:
                # A growing open epoch could keep an opening from ever coming to its end.
                return not self._ledger.opening and self._ledger.pressure is not Pressure.FULL
            case _:
                return True

    def _drain(self, frames_max: int, *, within_limit: bool = False) -> bool:
        """Take what waits in the ring, at most `frames_max`; `within_limit`: none beyond the limit.

        Whether there was no more.
        """
        descriptor = self._wiring.hold_fileno()
        for _ in range(frames_max):
            try:
                length = os.readv(descriptor, self._buffers)
            except BlockingIOError:
                return True
            except OSError as error:
                raise InterfaceVanishedError(
                    f"reading from the hold of {self._name} failed: {error.strerror}; find out who deletes it"
                ) from error
            self._read_items += 1
            self._take(length)
            if within_limit and self._ledger.pressure is Pressure.FULL:
                break
        return False

    def _tell(self) -> None:
        self._first.tell()
        level = self._ledger.take_rise()
        if level is not None:
            for callback in self._callbacks:
                callback(level)

    def _take(self, length: int) -> None:
        """Deal with the frame that stands in the buffer."""
        frame = self._buffer[:length]
        match self._ledger.state:
            case HoldState.HOLDING:
                self._held.append(bytes(frame))
                self._ledger.admit(length)
            case HoldState.OPEN:
                if self._write(frame):
                    self._ledger.passed(length)
                else:
                    self._ledger.dropped()
            case _:
                self._ledger.dropped()

    # --- frames pass ----------------------------------------------------------------------------

    def _open_gate(self) -> None:
        """If we may, have the kernel pass what comes, unless it has kept a frame that we haven't written."""
        if self._ledger.state is not HoldState.OPEN or not self._running:
            return
        kept_items = self._gate.reading().kept_items
        if kept_items > self._read_items + self._lost_items:
            self._lost_items = self._wiring.undelivered().redirected_items
        if kept_items == self._read_items + self._lost_items:
            self._gate.pass_after(kept_items)

    def _book_passed(self) -> int:
        """Book what the gate has passed; how many frames the kernel could not deliver, some of those too."""
        undelivered = self._wiring.undelivered()
        self._gate_meter.book(undelivered.passed_items)
        return undelivered.items

    # --- frames leave ---------------------------------------------------------------------------

    async def _let_out(self, remaining: Callable[[], int]) -> None:
        """Send the oldest `remaining()` frames, by turns. Ends without a checkpoint after the last one."""
        while True:
            await trio.lowlevel.checkpoint()
            self._ledger.check_leaving()
            for _ in range(min(remaining(), TURN_FRAMES)):
                self._send_oldest()
            if not remaining():
                return

    def _send_oldest(self) -> None:
        delivered = self._write(self._held[0])
        self._ledger.left(len(self._held.popleft()), delivered=delivered)

    def _write(self, frame: bytes | memoryview) -> bool:
        """Write one frame to the outlet; False if the kernel would not take it."""
        try:
            os.write(self._wiring.outlet_fileno(), frame)
        except OSError as error:
            if error.errno == _INTERFACE_DELETED:
                raise InterfaceVanishedError(
                    f"the outlet of {self._name} is gone; find out who deletes it"
                ) from error
            if not self._write_failed:
                self._write_failed = True
                _log.warning(
                    "the outlet refused a frame; from now on such frames are only counted",
                    guest=self._name,
                    error=error.strerror,
                )
            return False
        return True

    def _wake(self) -> None:
        """Have `run` look again whether it may read."""
        self._changed.set()
        self._changed = trio.Event()
