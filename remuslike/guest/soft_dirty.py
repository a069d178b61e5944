"""Dirty pages of another process by the soft-dirty bits of its page table, for kernels without PAGEMAP_SCAN
(Documentation/admin-guide/mm/soft-dirty.rst, pagemap.rst).

The kernel sets a page's bit when it is written, and forgets all bits of a process at once. To read and to
forget are two steps, and the bit of a write between them would be lost: so the process stands still from the
one to the other, as CRIU has it. A process that can't be stopped is read all the same, and nothing is
forgotten: what is reported now is then reported again.

The bit is in the page table. Of a shared page (pagemap.rst, "Exceptions for Shared Memory") it is lost with
its entry there when the page is swapped out, which `GuestMemory.lock` forbids, or merged into a huge page,
for which `page_table.probe_soft_dirty` looks. Should an entry go all the same, the page is reported.

A page under migration keeps its bit. What another process writes through a mapping of its own is no write of
this one: on a primary nobody else does. Nor is what a device writes into a page that was pinned before a scan
(O_DIRECT): `remuslike.guest.command` opens no file so.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from remuslike.engine.ports import Indices

Entries = NDArray[np.uint64]  # shape (n,): one of /proc/PID/pagemap a page

SOFT_DIRTY = np.uint64(1 << 55)
# Bit 63: in memory, bit 62: in swap or under migration. Neither: the page table has no entry.
_HELD = np.uint64(1 << 62)


class PageTable(Protocol):
    """A region of a process's page table."""

    def read(self) -> Entries:
        """Every entry; the array is reused by the next call."""
        ...

    def clear(self) -> None:
        """Forget the soft-dirty bits of the whole process."""

    def stopped(self) -> AbstractContextManager[bool]:
        """While the body runs, no thread of the process does; unless it is told False."""
        ...

    def close(self) -> None: ...


class SoftDirty:
    """The dirty-page tracker of one region. The first scan reports every page."""

    # An entry is 8 bytes, and the whole process is walked twice: up to 256 MiB are scanned in some ms.
    inline_pages_max = 1 << 16

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._held: NDArray[np.bool_] | None = None

    def scan(self) -> Indices:
        """Ascending page numbers within the region, shape (n,): written since the last call."""
        with self._table.stopped() as stopped:
            entries = self._table.read()
            if stopped:
                self._table.clear()
        held = entries >= _HELD
        before, self._held = self._held, held
        if before is None:
            return np.arange(len(entries))
        dirty = (entries & SOFT_DIRTY) != 0
        dirty |= before > held
        return np.flatnonzero(dirty)

    def close(self) -> None:
        self._table.close()
