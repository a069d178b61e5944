"""The network hold in the kernel: a guest's frames wait in a plug qdisc until their epoch is safe.

`PlugHold` satisfies the OutputBuffer contract (DESIGN.md, section 4). The kernel keeps the frames and their
epochs (net/sched/sch_plug.c); this module tells it when, and `plugmeter` tells the ledger what came of it.
While it is open the kernel passes frames around the plug, by a gate.

Invariants:

- sch_plug counts two epochs, the open one and the one before. So at most one is sealed (`depth` is 1): a
  second TCQ_PLUG_BUFFER would lose the first count, and a release then let out what nobody acknowledged (P1).
- The gate opens in `run` only, and by the rule of `passing`: no frame is overtaken (P5).
- TCQ_PLUG_RELEASE_ONE is sent in `release` only, TCQ_PLUG_RELEASE_INDEFINITE in `open`, and in `hold` and
  `run` as long as the buffer still is open.
- What has been released can't be called back: once the kernel was told, `release` and `open` end with its
  frames gone, whether cancelled or not.
- Whenever the kernel's counters can't be what our own messages made of them, the hold is cut (P4).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog
import trio

from netbuf.announce import check_frames
from netbuf.errors import BrokenError, HoldBrokenError, HoldError, NetbufError
from netbuf.firstoutput import FirstOutput
from netbuf.framecopies import FrameCopies, NoCopies, make_copies
from netbuf.ledger import Backend, BufferStatistics, HoldState, Ledger, Pressure
from netbuf.passing import Passing
from netbuf.plugmeter import PlugMeter
from netbuf.plugwiring import PlugWiring, Plumbing
from netbuf.sizing import POLL_S_MAX, kernel_limit_bytes, poll_s
from netbuf.tap import VNET_HEADER_BYTES, Guest
from netbuf.turn import Turn

# Released frames leave in a softirq, mostly before anybody can ask. The first questions follow each other at
# once, then one a millisecond, which is the finest that the event loop's timer does.
_QUICK_LOOKS = 3
_LOOK_S = 0.001

# So long nothing moves, although nothing is left on its way: the rest of the epoch came after its seal, which
# is rare, for the guest is paused then. Softirqs that are late by a few milliseconds are not.
_STILL_LOOKS = 20

_LOOKS_MAX = 10_000  # a softirq that is starved for so long means that the machine is lost anyway

# Opening to holding, with the guest paused: what it sent before is on its way through two softirqs. Half a
# second of them costs a session at most; to give up sooner would cost the guest.
_PLUG_ROUNDS_MAX = 1_000
_PLUG_ROUND_S = 0.000_5

_log = structlog.get_logger(__name__)


class PlugHold:
    """Holds what one guest NIC sends; what is sent to it passes unheld. Call all from the trio thread."""

    def __init__(
        self,
        guest: Guest,
        bridge: str,
        limit_bytes: int,
        *,
        keep_frames: bool = False,
        wire: Callable[[Guest, str, int], Plumbing] = PlugWiring,
    ) -> None:
        """Start `closed`: the guest's frames wait in the plug, and none reaches the guest.

        `bridge` is the LAN, in the current network namespace. `limit_bytes` bounds the held frames as they
        would be on the wire; the kernel drops what exceeds that by more than a reserve (`netbuf.sizing`).
        `keep_frames`, for `sealed_frames`, has a packet socket copy them: a second time the memory, and at
        each seal the time to read them. `wire` makes the interfaces. Raises `SettingError` or `HostError` of
        `netbuf.errors`.
        """
        self._ledger = Ledger(depth=1, limit_bytes=limit_bytes, backend=Backend.PLUG)
        self._plumbing = wire(guest, bridge, kernel_limit_bytes(limit_bytes))
        self._queue = self._plumbing.queue
        self._gate = self._plumbing.gate
        self._name = guest.name
        self._meter = PlugMeter(self._ledger, guest.name)
        self._passing = Passing(self._gate, self._ledger, self._meter, self._plumbing.undelivered)
        self._first = FirstOutput(self._ledger, self._gate)
        self._copies: FrameCopies | NoCopies = NoCopies()
        if keep_frames:
            self._copies = make_copies(self._plumbing, guest.name, limit_bytes)
        self._callbacks: list[Callable[[Pressure], None]] = []
        self._leaving = Turn()  # releases and openings take turns
        self._nap = trio.CancelScope()  # in which `run` waits; a new one each time
        self._refused_items = 0
        self._broken: BrokenError | None = None  # met where it can't be raised: `run` does
        self._running: bool | None = None  # None: not yet
        self._closed = False

    # --- the OutputBuffer contract --------------------------------------------------------------

    @property
    def depth(self) -> int:
        """How many sealed, unreleased epochs it can hold: 1."""
        return self._ledger.depth

    @property
    def pressure(self) -> Pressure:
        """How near the held bytes were to `limit_bytes` when the kernel was last asked."""
        return self._ledger.pressure

    def on_pressure(self, callback: Callable[[Pressure], None]) -> None:
        """Have `callback(level)` called in the trio thread whenever the level rises."""
        self._callbacks.append(callback)

    def on_output(self, callback: Callable[[int], None]) -> None:
        """From the next epoch on, have `callback(epoch)` called at its first output, if `run` runs."""
        self._first.on_output(callback)

    def open_items(self) -> int:
        """Outputs of the open epoch so far, refused ones too; of the last look if there is no gate."""
        return self._first.open_items()

    def open_bytes(self) -> int:
        """How much they were when the kernel was last asked."""
        return self._ledger.open_bytes

    def statistics(self) -> BufferStatistics:
        """A snapshot, about 0.5 ms: the kernel is asked."""
        if not self._closed and self._ledger.state is not HoldState.DISCARDED:
            try:
                self._observe()
            except BrokenError as error:
                self._broken = error
                self._wake()
            except NetbufError:
                pass  # what was known before
        self._passing.book()
        return self._ledger.statistics(dropped_elsewhere_items=self._plumbing.undelivered().items)

    def hold(self, epoch: int) -> None:
        """From now on frames belong to `epoch`. Prerequisite: closed or open, guest paused.

        Frames sent before, while open, still pass. From closed, it also opens the way to the guest.
        Raises `HoldError`, and then nothing has changed, or `BrokenError`.
        """
        self._ledger.check_hold(epoch)
        kept_items = 0
        with self._cut_if_broken():
            if self._ledger.state is HoldState.OPEN:
                self._passing.shut_gate()
                kept_items = self._gate.reading().kept_items
                self._plug()
                self._copies.heed()
            self._plumbing.join()
            self._ledger.hold(epoch)
        self._begin(kept_items)
        self._observe()
        self._wake()

    def prepare(self) -> None:
        """Ask the kernel how much waits; nothing has to be admitted, for the kernel has admitted it."""
        if self._ledger.state is HoldState.HOLDING and not self._ledger.leaving:
            self._observe()

    def seal(self, epoch: int) -> None:
        """Close `epoch` with every frame that the guest has sent. Prerequisite: holding, guest paused.

        One netlink message. A write to the guest tap ends only when the redirect has put the frame into the
        plug. Raises `SealError`: nothing has changed; `BrokenError`: nothing was sealed, nothing will leave.
        """
        self._ledger.check_seal(epoch)
        kept_items = self._gate.reading().kept_items
        with self._cut_if_broken():
            queue = self._queue.buffer()
            self._meter.waiting(queue)
        self._copies.seal(epoch, self._ledger.open_items)
        self._ledger.seal(epoch)
        self._begin(kept_items)
        self._tell_refusals(queue.dropped_items)
        self._tell()

    async def release(self, epoch: int) -> None:
        """Let the frames of `epoch` out, in order. Prerequisite: it is the oldest sealed epoch.

        One netlink message, and then questions until all have left. Raises `ReleaseError`, and then nothing
        gets out, or `BrokenError`. When it is cancelled, either nothing has left or all has.
        """
        async with self._leaving:  # here, and only here, it can be cancelled
            self._ledger.begin_release(epoch)
            released = False
            try:
                with self._cut_if_broken():
                    self._queue.release_one()
                await self._until_left(lambda: self._ledger.oldest_items)
                released = True
            finally:
                self._ledger.end_release(released=released)
            self._copies.forget(epoch)

    async def open(self) -> None:
        """Let all out that is held, in order; from then on frames pass at once, in both directions.

        The guest may be running: what comes meanwhile stays behind what is held. When nothing is left to
        overtake, `run` has the kernel pass frames around the plug.

        Only under a witness's grant. Raises `OpenError` when discarded, or `BrokenError`; what the kernel
        refuses half-way discards, too. Cancelled, it has let nothing out, or the buffer is open.
        """
        async with self._leaving:  # here, and only here, it can be cancelled
            if self._ledger.state is HoldState.HOLDING:
                self._observe()
            self._ledger.begin_open()
            opened = False
            try:
                with self._cut_if_broken():
                    self._plumbing.join()
                    self._queue.release_all()
                await self._until_left(lambda: self._ledger.held_items)
                opened = True
            finally:
                if not opened:
                    self._cut()  # the plug may let pass what comes
                self._ledger.end_open(opened=opened)
                self._wake()
            self._copies.ignore()
            if self._running is False:  # since: both were cancelled, and this could not be
                self._stop_passing()

    def discard(self) -> None:
        """Drop all that is held; nothing leaves ever after. Idempotent, never raises."""
        if self._ledger.state is not HoldState.DISCARDED:
            with suppress(NetbufError):
                self._count()  # what is dropped now
            self._cut()

    # --- beside the contract --------------------------------------------------------------------

    def announce(self, frames: Sequence[bytes]) -> None:
        """Send `frames` (Ethernet, no vnet header) to the LAN at once, as if the guest's port had.

        For frames that only say where the guest now is: see `rarp_frame`. Prerequisite: open, or holding
        after having been open. Raises `AnnounceError`, and then nothing was sent.
        """
        self._ledger.check_announce()
        check_frames(frames)
        for frame in frames:
            try:
                self._plumbing.announce(frame)
            except OSError as error:
                self._ledger.dropped()
                _log.warning("an announcement was refused", guest=self._name, error=error.strerror)

    @property
    def missing_items(self) -> int:
        """How many frames `sealed_frames` has not had of all that were sealed."""
        return self._copies.missing_items

    def sealed_frames(self, epoch: int) -> list[bytes]:
        """The frames of a sealed, unreleased epoch, with a vnet header as a tap hold has them.

        Prerequisite: made with `keep_frames`. Raises `SealedFramesError`. Some may be missing: then the log
        and `missing_items` say so.
        """
        frames = self._copies.frames(epoch)
        self._ledger.place_of(epoch)
        return frames

    def held_frames(self) -> list[bytes]:
        """All that wait, of sealed epochs and of the open one. Prerequisite: guest paused; else the same."""
        return self._copies.held()

    def replay(self, frames: Sequence[bytes]) -> None:
        """Send `frames`, another hold's `sealed_frames`, to the LAN at once, as the guest's port would.

        They may have been sent before. Takes some 30 ms, for a port is made for it and deleted. Prerequisite
        and errors: those of `announce`, and what making an interface raises.
        """
        self._ledger.check_announce("replay()")
        check_frames([frame[VNET_HEADER_BYTES:] for frame in frames])
        self._ledger.dropped(self._plumbing.replay(frames) if frames else 0)

    def close(self) -> None:
        """Discard, then remove the interfaces; a `run` under way returns. Idempotent, never raises.

        The guest tap stays: whatever the guest sends from now on is dropped in the kernel.
        """
        self.discard()
        self._closed = True
        if self._running and self._gate.notice_fileno() >= 0:
            trio.lowlevel.notify_closing(self._gate.notice_fileno())
        self._copies.close()
        self._plumbing.close()
        self._wake()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the kernel's queue until `close`: how full it is, and that it still is what we made.

        One task of a nursery. When it is cancelled nothing passes any more (P4): an open plug is closed, and
        what the guest sends waits until `run` is called again. A kill can't do that: then an open plug stays
        open, with nothing held, until the guest tap goes with its QEMU.
        Raises `BrokenError` if somebody deletes or changes one of the interfaces.
        """
        assert not self._running, f"run() twice for the hold of {self._name}"
        self._running = True
        try:
            if self._ledger.state is HoldState.OPEN:
                with self._cut_if_broken():
                    self._queue.release_all()
            task_status.started()
            while not self._closed:
                if self._broken is not None:
                    raise self._broken
                if self._ledger.state is not HoldState.DISCARDED:
                    self._observe()
                    self._passing.open_gate()
                    with self._cut_if_broken():
                        self._plumbing.check_guest()
                await self._until_worth_a_look()
        finally:
            self._running = False
            self._stop_passing()

    def _stop_passing(self) -> None:
        """It may be open, but nobody watches it any more."""
        if self._ledger.state is HoldState.OPEN:
            self._passing.shut_gate()
            try:
                self._queue.buffer()
            except NetbufError:
                self._cut()  # a plug that can't be closed is not left open

    async def _until_worth_a_look(self) -> None:
        """Return after a while, when woken, or when the gate has something to say, which is told at once."""
        with trio.move_on_after(self._pause_s()) as self._nap, suppress(trio.ClosedResourceError):
            if self._gate.notice_fileno() >= 0:
                await trio.lowlevel.wait_readable(self._gate.notice_fileno())
                self._first.tell(noticed=self._gate.take_notice())
            else:
                await trio.sleep_forever()

    def _pause_s(self) -> float:
        match self._ledger.state:
            case HoldState.HOLDING:
                return poll_s(self._ledger.held_bytes, self._ledger.limit_bytes)
            case HoldState.DISCARDED:
                return float("inf")
            case HoldState.OPEN:
                return self._passing.pause_s()
            case _:
                return POLL_S_MAX

    # --- what the kernel says -------------------------------------------------------------------

    def _count(self) -> None:
        passage = self._queue.passage()
        queue = self._queue.waiting()
        self._meter.observe(passage, queue)
        self._tell_refusals(queue.dropped_items)

    def _observe(self) -> None:
        with self._cut_if_broken():
            self._count()
        if self._ledger.state is HoldState.HOLDING:
            self._copies.read()
        self._tell()

    def _begin(self, kept_items: int) -> None:
        """The open epoch has begun when the gate had kept so many. What came since, `_tell` finds."""
        self._first.begin(kept_items)
        if self._first.wanted:
            self._gate.tell_after(kept_items)

    def _tell(self) -> None:
        self._first.tell()
        level = self._ledger.take_rise()
        if level is not None:
            for callback in self._callbacks:
                callback(level)

    def _tell_refusals(self, items: int) -> None:
        if items > self._refused_items:
            _log.warning(
                "the plug was full and frames were lost; raise the limit of the network buffers",
                guest=self._name,
                items=items - self._refused_items,
                limit_bytes=self._ledger.limit_bytes,
            )
            self._refused_items = items

    # --- what the kernel is told ----------------------------------------------------------------

    def _plug(self) -> None:
        """From open to holding, behind the last frame that was sent before. Raises `HoldError`: still open.

        Frames that a plug has passed uncounted and that have not left when it closes would stay behind it
        uncounted, so it is opened again until none does.
        """
        for _ in range(_PLUG_ROUNDS_MAX):
            queue = self._queue.buffer()
            passage = self._queue.passage()
            if not queue.items and passage.given_items == passage.left_items:
                self._meter.observe(passage, queue)
                return
            self._queue.release_all()
            time.sleep(_PLUG_ROUND_S)  # blocks: the guest is paused, nothing may come first
        raise HoldError(
            f"hold() of {self._name}: {queue.items} frames sent before don't leave; the host is overloaded, "
            f"or the guest is not paused"
        )

    async def _until_left(self, remaining: Callable[[], int]) -> None:
        """Return when `remaining()` is 0. What was released leaves, so nobody can cancel this."""
        if not remaining():
            return
        with trio.CancelScope(shield=True):
            last, still = remaining(), 0
            for look in range(_LOOKS_MAX):
                if not last:
                    return
                await trio.sleep(0 if look < _QUICK_LOOKS else _LOOK_S)
                self._ledger.check_leaving()
                with self._cut_if_broken():
                    passage = self._queue.passage()
                    self._meter.observe(passage, self._queue.waiting())
                moving = remaining() < last or passage.given_items > passage.left_items
                last, still = remaining(), 0 if moving or look < _QUICK_LOOKS else still + 1
                if still >= _STILL_LOOKS and not self._ledger.opening:
                    self._meter.carry_over()
                    self._tell()
                    return
        with self._cut_if_broken():
            raise HoldBrokenError(f"released frames of {self._name} don't leave; is its hold still up?")

    @contextmanager
    def _cut_if_broken(self) -> Iterator[None]:
        try:
            yield
        except BrokenError:
            self._cut()
            raise

    def _cut(self) -> None:
        self._passing.shut_gate()
        self._plumbing.cut()
        self._ledger.discard()
        self._copies.close()
        self._wake()

    def _wake(self) -> None:
        """Have `run` look again."""
        self._nap.cancel()
