"""remuslike.guest.dirty: what tests/conformance doesn't ask."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from remuslike.engine.ports import PAGE_BYTES
from remuslike.errors import MissingToolError
from remuslike.guest.dirty import PagemapScan, _pages_of, probe_pagemap_scan
from remuslike.guest.page_table import probe_soft_dirty

START = 0x7F00_0000_0000


@pytest.mark.parametrize(
    ("ranges", "pages"),
    [
        ([], []),
        ([(0, 1)], [0]),
        ([(5, 8)], [5, 6, 7]),
        ([(0, 2), (2, 3), (9, 12)], [0, 1, 2, 9, 10, 11]),
        ([(3, 5), (4, 6), (2, 3)], [2, 3, 4, 5]),
    ],
)
def test_ranges_are_pages(ranges: list[tuple[int, int]], pages: list[int]) -> None:
    addresses = np.array(ranges, np.int64).reshape(-1, 2) * PAGE_BYTES + START
    found = _pages_of(addresses, START)
    assert found.tolist() == pages
    assert found.dtype == np.int64


def test_memory_that_nobody_watches_is_refused_by_name() -> None:
    with mmap.mmap(-1, 16 * PAGE_BYTES) as memory:
        memory[0] = 1
        start = np.frombuffer(memory, np.uint8).ctypes.data
        tracker = PagemapScan(os.getpid(), start, 16 * PAGE_BYTES)
        with pytest.raises(MissingToolError, match=r"PAGEMAP_SCAN: .*dirty pages need Linux 6.7 or later"):
            tracker.scan()
        tracker.close()


def test_a_process_that_is_gone_is_named() -> None:
    with pytest.raises(MissingToolError, match="process 4194304"):
        PagemapScan(1 << 22, 0, PAGE_BYTES)


def test_nothing_is_left_open() -> None:
    before = sorted(entry.name for entry in Path("/proc/self/fd").iterdir())
    PagemapScan(os.getpid(), 0, PAGE_BYTES).close()
    for probe in (probe_pagemap_scan, probe_soft_dirty):
        with suppress(MissingToolError):
            probe()
    assert sorted(entry.name for entry in Path("/proc/self/fd").iterdir()) == before
