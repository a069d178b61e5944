"""Disks whose writes are released on a timer: what `python -m diskbuf serve` runs.

Every `every_s`, all disks are sealed at one instant, so that what they hold together fits together; then each
is released. A store that fails is tried again for ever: what it can't take is kept, and its clients are
slowed at the limit; the other disks go on without it. At an orderly end everything that a client was told is
written is in its store.
"""

from __future__ import annotations

import itertools
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.errors import DiskbufError, JournalError, StoreError, UnreleasedError
from diskbuf.store import Store

_FAILURES = (StoreError, JournalError)
"""What one disk may have, and the others go on."""

RETRY_S = 1.0
"""How long a failing store is left alone: soon enough for who makes room, and no flood of errors."""

_log = logging.getLogger("diskbuf")


@dataclass(frozen=True, slots=True)
class Disk:
    """One export: a buffer, and what is behind it."""

    export: str
    store: Store
    buffer: DiskBuffer


@dataclass(slots=True)
class Service:
    """Serves `disks`: first `run`, then `finish`.

    `listen` is a task for a nursery's `start`: it serves NBD until it is cancelled. With `every_s` 0, writes
    go to the stores at once. `report` gets a line of JSON at each SIGUSR1 and at the end.
    """

    disks: Sequence[Disk]
    listen: Callable[..., Awaitable[object]]
    every_s: float
    report: Callable[[str], None]
    epochs: int = 0
    _filling: trio.Event = field(default_factory=trio.Event)
    _failing: set[str] = field(default_factory=set)

    async def run(self, signals: AsyncIterator[int], ending: Callable[[], None] = lambda: None) -> None:
        """Serve until another signal than SIGUSR1 comes; then `ending()`, before anything is waited for: a
        store may make that long. Raises what `listen` does."""
        async with trio.open_nursery() as nursery:
            await self._begin()
            await nursery.start(self.listen)
            if self._writable() and self.every_s > 0:
                nursery.start_soon(self._release_on_a_timer)
            async for number in signals:
                if number != signal.SIGUSR1:
                    break
                self.report(self.statistics())
            ending()
            nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """Have all that is held in the stores, and on stable storage. Nobody is served any more.

        Goes as far with each disk as its store does, whatever the others do. Raises `UnreleasedError` if
        something held didn't get into its store, `StoreError` if what did may not be on stable storage.
        """
        failures: list[DiskbufError] = []
        try:
            async with trio.open_nursery() as nursery:
                for disk in self._writable():
                    nursery.start_soon(self._finish_disk, disk, failures)
        finally:
            self.report(self.statistics())
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("several stores failed", failures)

    def statistics(self) -> str:
        """A line of JSON: the epochs released, and of each export its store and `BufferStatistics`."""
        exports = {
            disk.export: {"store": disk.store.uri, **asdict(disk.buffer.statistics())} for disk in self.disks
        }
        return json.dumps({"epochs": self.epochs, "exports": exports})

    def _writable(self) -> list[Disk]:
        return [disk for disk in self.disks if not disk.buffer.read_only]

    async def _begin(self) -> None:
        for disk in self._writable():
            if self.every_s > 0:
                disk.buffer.on_pressure(lambda _level: self._filling.set())
                disk.buffer.hold(1)
            else:
                await disk.buffer.open()

    async def _release_on_a_timer(self) -> None:
        """Earlier than the timer if a disk gets half full."""
        sealed_s = trio.current_time()
        async with trio.open_nursery() as retries:
            for number in itertools.count(1):
                # From seal to seal: a release that takes longer is followed by the next one at once.
                with trio.move_on_at(sealed_s + self.every_s):
                    await self._filling.wait()
                self._filling = trio.Event()
                sealed_s = trio.current_time()
                async with trio.open_nursery() as nursery:
                    for disk, epoch in self._seal():
                        nursery.start_soon(self._release, disk, epoch, retries)
                self.epochs = number

    def _seal(self) -> list[tuple[Disk, int]]:
        """Seal what doesn't fail; the disks and the epochs that are to be released."""
        disks = [disk for disk in self._writable() if disk.export not in self._failing]
        for disk in disks:
            disk.buffer.prepare()
        sealed = []
        for disk in disks:
            epoch = disk.buffer.statistics().open_epoch
            assert epoch is not None, "a disk that is served holds"
            disk.buffer.seal(epoch)
            sealed.append((disk, epoch))
        return sealed

    async def _release(self, disk: Disk, epoch: int, retries: trio.Nursery) -> None:
        try:
            await disk.buffer.release(epoch)
        except _FAILURES as error:
            _log.warning(
                "export %r: epoch %d is held and tried again every %g s: %s",
                disk.export, epoch, RETRY_S, error,
            )  # fmt: skip
            self._failing.add(disk.export)
            retries.start_soon(self._release_again, disk, epoch)

    async def _release_again(self, disk: Disk, epoch: int) -> None:
        while True:
            await trio.sleep(RETRY_S)
            with suppress(*_FAILURES):
                await disk.buffer.release(epoch)
                break
        _log.warning("export %r: epoch %d is released after all", disk.export, epoch)
        self._failing.remove(disk.export)
        self._filling.set()  # it has had no release for long

    async def _finish_disk(self, disk: Disk, failures: list[DiskbufError]) -> None:
        """Release what is sealed, then seal and release what is open; have it on stable storage."""
        buffer = disk.buffer
        try:
            for epoch in buffer.statistics().sealed_epochs:
                await buffer.release(epoch)
            if (open_epoch := buffer.statistics().open_epoch) is not None:
                buffer.prepare()
                buffer.seal(open_epoch)
                await buffer.release(open_epoch)
                self.epochs = max(self.epochs, open_epoch)
            await buffer.sync_store()
        except _FAILURES as error:
            held_bytes = buffer.statistics().held_bytes
            failures.append(_unreleased(disk, held_bytes, error) if held_bytes else error)


def _unreleased(disk: Disk, held_bytes: int, cause: DiskbufError) -> UnreleasedError:
    return UnreleasedError(
        f"export {disk.export!r}: {held_bytes} bytes that clients had written are lost: {cause}"
    )
