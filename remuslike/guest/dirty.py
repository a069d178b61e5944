"""Dirty pages of another process by `ioctl(PAGEMAP_SCAN)` (Linux 6.7; include/uapi/linux/fs.h,
Documentation/admin-guide/mm/pagemap.rst)."""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path

import numpy as np

from remuslike.engine.ports import PAGE_BYTES, Indices
from remuslike.errors import GuestError, MissingToolError
from remuslike.guest.injection import probe_write_protection

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_PAGE_IS_WRITTEN = 1 << 1
_PM_SCAN_WP_MATCHING = 1 << 0
_PM_SCAN_CHECK_WPASYNC = 1 << 1

# Ranges a call: 1.5 MiB of them, above what an epoch ever had; more are fetched by further calls.
_RANGES_PER_CALL = 65536


class _ScanArgument(ctypes.Structure):
    """struct pm_scan_arg"""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size flags start end walk_end vec vec_len max_pages category_inverted category_mask "
            "category_anyof_mask return_mask"
        ).split()
    ]


class PagemapScan:
    """The dirty-page tracker of one region of a process whose writes a userfaultfd watches.

    `scan()` reports what was written since the last call and protects it again in the same step,
    so no write falls between the two. The first call after registering reports every page.
    """

    # Scanning takes 0.2 ms a GiB at best and 2 ms when much is dirty.
    inline_pages_max = 1 << 20

    def __init__(self, pid: int, start: int, length: int) -> None:
        self._pid = pid
        self._start = start
        self._end = start + length
        try:
            self._descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise MissingToolError(f"the dirty pages of process {pid} can't be read: {error}") from error
        self._ranges = np.zeros((_RANGES_PER_CALL, 3), np.uint64)  # struct page_region[]
        self._argument = _ScanArgument(
            size=ctypes.sizeof(_ScanArgument),
            flags=_PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC,
            end=self._end,
            vec=self._ranges.ctypes.data,
            vec_len=len(self._ranges),
            category_mask=_PAGE_IS_WRITTEN,
            return_mask=_PAGE_IS_WRITTEN,
        )

    def scan(self) -> Indices:
        """Ascending page numbers within the region, shape (n,). GuestError if the process is gone."""
        found = []
        position = self._start
        while position < self._end:
            self._argument.start = position
            try:
                count = fcntl.ioctl(self._descriptor, _PAGEMAP_SCAN, self._argument, True)
            except ProcessLookupError as error:
                raise GuestError(f"QEMU (process {self._pid}) is gone") from error
            except OSError as error:
                raise MissingToolError(
                    f"PAGEMAP_SCAN: {error}; dirty pages need Linux 6.7 or later"
                ) from error
            found.append(self._ranges[:count, :2].astype(np.int64))
            position = self._argument.walk_end
        return _pages_of(np.concatenate(found), self._start)

    def close(self) -> None:
        os.close(self._descriptor)


def probe_pagemap_scan() -> None:
    """MissingToolError unless this kernel has the call, and the userfaultfd that it works with."""
    # Of no pages: it does nothing, if it is there.
    nothing = _ScanArgument(size=ctypes.sizeof(_ScanArgument))
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            fcntl.ioctl(pagemap, _PAGEMAP_SCAN, nothing, True)
    except OSError as error:
        raise MissingToolError(f"PAGEMAP_SCAN: {error}; it takes Linux 6.7 or later") from error
    probe_write_protection()


def _pages_of(ranges: Indices, start: int) -> Indices:
    """The page numbers in `ranges`, shape (m, 2): addresses from, to."""
    first = (ranges[:, 0] - start) // PAGE_BYTES
    lengths = (ranges[:, 1] - ranges[:, 0]) // PAGE_BYTES
    skipped = np.cumsum(lengths) - lengths
    pages: Indices = np.repeat(first - skipped, lengths) + np.arange(lengths.sum())
    if (np.diff(pages) <= 0).any():
        # Within a call the kernel pauses its walk at every 512 ranges, and walk_end is left where it last did
        # (do_pagemap_scan in fs/proc/task_mmu.c). So what comes after is scanned again, where a guest that
        # runs has written some pages anew. Twice written is written.
        pages = np.unique(pages)
    return pages
