"""The disks of a guest on this host: stores, their journals, and the buffers in front of them."""

from __future__ import annotations

import math
from contextlib import ExitStack

import structlog
import trio

from diskbuf import DiskBuffer, Journal, SharedStore, Store, open_store
from diskbuf.errors import DiskbufError, StoreInUseError
from remuslike.config import DiskSettings, Settings
from remuslike.engine.ports import StepHook

# Many usual epochs, and made in 0.2 s; it grows under an epoch that is larger.
_JOURNAL_BYTES = 64 << 20

_log = structlog.get_logger(__name__)


async def open_disks(
    stack: ExitStack, settings: Settings, depth: int, hook: StepHook, *, owns_shared: bool
) -> tuple[list[DiskBuffer], dict[int, SharedStore]]:
    """A buffer for each writable disk, in their order, and the shared stores by their disk's number.

    Opening a store recovers its journal. A shared store is opened only if it `owns_shared`; the `hook` hears
    of the steps of its releases. Raises `DiskbufError`. `stack` closes all of it.
    """

    def on_step(step: str, epoch: int) -> None:
        hook(f"release.{step}", epoch)

    limit_bytes = settings.buffers.disk_limit_mib << 20
    buffers: list[DiskBuffer] = []
    shared: dict[int, SharedStore] = {}
    for disk in settings.guest.disks:
        if disk.read_only:
            continue
        if disk.shared:
            store = SharedStore(disk.image)
            stack.callback(store.close)
            if owns_shared and not store.try_acquire():
                raise StoreInUseError(
                    f"shared store {disk.image} is in use on another host: stop the guest there, or"
                    " start this side as its secondary"
                )
            shared[len(buffers)] = store
            buffers.append(
                DiskBuffer(store, limit_bytes=limit_bytes, depth=depth, sync_releases=True, on_step=on_step)
            )
            continue
        own = await trio.to_thread.run_sync(open_store, disk.store)
        stack.callback(own.close)
        journal = await _open_journal(stack, disk, own)
        # What has left the host is on stable storage: by the journal's sync, or one of the store.
        synced = journal is None
        buffers.append(
            DiskBuffer(own, limit_bytes=limit_bytes, depth=depth, journal=journal, sync_releases=synced)
        )
    return buffers, shared


async def _open_journal(stack: ExitStack, disk: DiskSettings, store: Store) -> Journal | None:
    path = disk.journal_path
    if path is None:
        return None
    journal = await trio.to_thread.run_sync(
        lambda: Journal.open(path, store, capacity_bytes=_JOURNAL_BYTES, on_progress=_Progress(disk.name))
    )
    stack.callback(_close_journal, journal, disk.name)
    if journal.recovered.records:
        _log.info("journal.recovered", disk=disk.name, epochs=journal.recovered.records, path=str(path))
    return journal


def _close_journal(journal: Journal, disk: str) -> None:
    """With nothing to recover left in it: whoever changes the image next need not know of it."""
    try:
        journal.quiesce()
    except DiskbufError as error:
        _log.error("journal.not_retired", disk=disk, error=str(error))
    journal.close()


class _Progress:
    """A line for each tenth of a long recovery."""

    def __init__(self, disk: str) -> None:
        self._disk = disk
        self._told = -math.inf

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        tenths = 10 * done_bytes // max(1, total_bytes)
        if tenths > self._told:
            self._told = tenths
            _log.info("journal.recovering", disk=self._disk, done_bytes=done_bytes, total_bytes=total_bytes)
