"""How long a disk buffer's seal takes, in this process: that much the guest is paused for."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from contextlib import closing

from diskbuf.buffer import DiskBuffer
from diskbuf.extents import Extent
from diskbuf.memorystore import MemoryStore

SEALS = 5
"""In one sample, whose value is the longest of them."""

_DISK_BYTES = 1 << 30
_SEED = 1


def scattered(count: int, block_bytes: int) -> list[Extent]:
    """`count` writes of blocks that don't touch, in an order of chance that is the same each time."""
    blocks = random.Random(_SEED).sample(range(_DISK_BYTES // block_bytes // 2), count)
    payload = memoryview(bytes(block_bytes))
    return [Extent.of_data(block * 2 * block_bytes, payload) for block in blocks]


async def longest_seal_us(writes: Iterable[Extent]) -> float:
    """Of SEALS epochs, each with all of `writes`."""
    longest_ns = 0
    with closing(MemoryStore(_DISK_BYTES)) as store:
        buffer = DiskBuffer(store, limit_bytes=_DISK_BYTES)
        buffer.hold(1)
        for epoch in range(1, 1 + SEALS):
            for extent in writes:
                buffer.change(extent)
            buffer.prepare()
            began_ns = time.perf_counter_ns()
            buffer.seal(epoch)
            longest_ns = max(longest_ns, time.perf_counter_ns() - began_ns)
            await buffer.release(epoch)
    return longest_ns / 1e3
