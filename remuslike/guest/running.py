"""The guest that is captured: pause, pages, device state, resume."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import numpy as np
import structlog
import trio

from remuslike.engine.ports import PAGE_BYTES, Capture, Indices, Pages
from remuslike.guest.command import DEVICE_STATE_SET
from remuslike.guest.placement import Placement
from remuslike.guest.process import QemuProcess
from remuslike.guest.qmp import Command
from remuslike.guest.tracker import Tracking, open_tracker
from remuslike.guest.urgency import Urgency

log = structlog.get_logger()

# A capture's pages at the start: above what 25 ms epochs of a busy guest dirty.
_STAGING_PAGES = 4096
# Up to this many pages are copied here, in some 4 ms; more in a thread, or heartbeats would wait.
_INLINE_PAGES_MAX = 4096
# So long the event loop stands still for an answer of QEMU's in a pause, as it does for scan and copy: half
# of what would make a heartbeat late. A QEMU that takes longer is waited for as anything else is.
_AT_ONCE_S = 0.01


class QemuGuest:
    """A running QEMU as `remuslike.engine.ports.RunningGuest`."""

    def __init__(self, process: QemuProcess, captures_in_use: int) -> None:
        """`captures_in_use`: how many captures may be waiting to be sent when the next is taken."""
        self._process = process
        self._memory = process.memory
        self._tracking: Tracking | None = None
        self._running = False
        self._everything_dirty = False
        self._staging = [np.zeros((0, PAGE_BYTES), np.uint8) for _ in range(captures_in_use + 1)]
        self._next_staging = 0
        self._saving: Command | None = None
        self._placement: Placement | None = None
        self._urgency = Urgency(process.pid)
        self.page_count = self._memory.page_count

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has been started, or resumed, and not paused since."""
        return self._running

    async def pause(self, *, capture_follows: bool = False) -> None:
        """As `RunningGuest.pause`; QEMU goes on to save its devices while we hear that it has stopped."""
        if self._running:
            self._urgency.begin()
            try:
                stop = self._process.qmp.send("stop")
                if capture_follows:
                    self._saving = self._begin_save()
                await self._answered(stop)
            finally:
                if not capture_follows:  # then it may stay paused for long
                    self._urgency.end()
            self._running = False

    async def resume(self) -> None:
        if not self._running:
            self._urgency.begin()
            try:
                await self._answered(self._process.qmp.send("cont"))
            finally:
                self._urgency.end()
            self._running = True

    async def _answered(self, command: Command) -> None:
        self._process.qmp.wait_at_once(command, _AT_ONCE_S)
        await self._process.qmp.wait(command)

    def adopt_running(self) -> None:
        """It was started by somebody else (a standby's activation)."""
        self._running = True

    async def attach(self) -> None:
        """Make its writes noticeable, once. MissingToolError if this host can't."""
        definition, memory = self._process.definition, self._memory
        tracking = await trio.to_thread.run_sync(open_tracker, definition, self.pid, memory)
        log.info("tracker.chosen", tracker=tracking.name, reason=tracking.reason)
        self._tracking = tracking
        self._placement = Placement(self.pid)

    @property
    def tracker(self) -> str | None:
        """How its writes are noticed: the tracker's name; None: they aren't."""
        return self._tracking.name if self._tracking else None

    def start_tracking(self) -> None:
        self._everything_dirty = True

    async def dirty_pages(self) -> Indices:
        """As `RunningGuest.dirty_pages`, in a thread: the first of a session finds all of RAM."""
        return await trio.to_thread.run_sync(self._scan)

    def _scan(self) -> Indices:
        dirty = self._attached().tracker.scan()
        if self._everything_dirty:
            self._everything_dirty = False
            return np.arange(self.page_count)
        return dirty

    def _attached(self) -> Tracking:
        assert self._tracking is not None, "attach comes first"
        return self._tracking

    def read_pages(self, indices: Indices) -> Pages:
        return np.take(self._memory.pages, indices, axis=0)

    async def capture(self) -> Capture:
        """QEMU saves its devices while we scan and copy; the guest is paused, so neither sees the
        other's work."""
        assert not self._running, "a capture needs a paused guest"
        began = time.perf_counter()
        save, self._saving = self._saving or self._begin_save(), None
        if self.page_count > self._attached().tracker.inline_pages_max:
            indices = await self.dirty_pages()
        else:
            with self._apart():
                indices = self._scan()
        scanned = time.perf_counter()
        if len(indices) > _INLINE_PAGES_MAX:
            pages = await trio.to_thread.run_sync(self._copy, indices)
        else:
            with self._apart():
                pages = self._copy(indices)
        copied = time.perf_counter()
        try:
            await self._answered(save)
        finally:
            self._urgency.end()  # whoever resumes it makes it urgent again: a stall may come first
        saved = time.perf_counter()
        return Capture(
            indices=indices,
            pages=pages,
            devices=self._process.device_state.read(),
            scan_ms=(scanned - began) * 1e3,
            copy_ms=(copied - scanned) * 1e3,
            devices_ms=(saved - began) * 1e3,
        )

    def _apart(self) -> AbstractContextManager[None]:
        """Nothing within it may await: threads that were started meanwhile would keep to our processor."""
        assert self._placement is not None, "attach comes first"
        return self._placement.apart()

    def _copy(self, indices: Indices) -> Pages:
        number = self._next_staging
        self._next_staging = (number + 1) % len(self._staging)
        if len(indices) > len(self._staging[number]):
            wanted = max(_STAGING_PAGES, len(indices) * 5 // 4)
            self._staging[number] = np.empty((wanted, PAGE_BYTES), np.uint8)
        pages = self._staging[number][: len(indices)]
        # "clip" only to spare numpy a buffered copy; the indices are in range.
        np.take(self._memory.pages, indices, axis=0, out=pages, mode="clip")
        return pages

    def _begin_save(self) -> Command:
        self._process.device_state.clear()
        return self._process.qmp.send(
            "xen-save-devices-state", filename=f"/dev/fdset/{DEVICE_STATE_SET}", live=False
        )

    async def measure_pause(self) -> float:
        """QEMU's own part of a pause, in ms: stop, save devices, continue, and no capture at all."""
        began = time.perf_counter()
        await self.pause(capture_follows=True)
        try:
            save, self._saving = self._saving or self._begin_save(), None
            await self._answered(save)
        finally:
            await self.resume()
        return (time.perf_counter() - began) * 1e3

    async def destroy(self) -> None:
        self._running = False
        await self._process.destroy()

    def close(self) -> None:
        """Let go of the tracker, once nobody captures any more."""
        if self._tracking is not None:
            self._tracking.tracker.close()
            self._tracking = None
        if self._placement is not None:
            self._placement.close()
            self._placement = None
