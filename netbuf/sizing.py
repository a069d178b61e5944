"""How much a plug must hold, and how often it must be looked at, so that it never drops (P6). Pure.

The kernel's plug can't make the guest wait: what exceeds its limit is lost. So its limit is the one at which
the engine is told `full`, and a reserve on top for what comes until the guest stands still. The reserve is
what the fastest guest could send in that time, whatever the limit; it takes memory only where it is used.

A send buffer on the guest tap (TUNSETSNDBUF) would make the guest wait. But it counts the memory of a frame,
many times the bytes of a small one, and QEMU completes what waits there when it stops the guest (its commit
ca77d85e, "net: complete all queued packets on VM stop") by dropping it: it would lose what the plug holds.
"""

from __future__ import annotations

import math

from netbuf.errors import LimitError

# Nothing that we protect emits faster: 10 Gbit/s is more than a guest gets through one queue of virtio-net.
LINE_BYTES_PER_S = 1_250_000_000

# The backlog is asked for no more and no less often than this. At the shortest, asking takes about 2 % of a
# processor; at the longest 25 MB come unnoticed, less than half of the default limit.
POLL_S_MIN = 0.002
POLL_S_MAX = 0.020

# From full to a guest that stands still: one poll, then what the engine and QEMU's `stop` take.
_REACTION_S = POLL_S_MAX + 0.030

# A timer's hold: below the least a burst fills it at once; above the most it is released before its time,
# which costs nobody anything, while memory does.
_LIMIT_BYTES_LEAST = 1 << 20
_LIMIT_BYTES_MOST = 1 << 30

# The kernel keeps limit and backlog as 32-bit numbers.
_KERNEL_LIMIT_BYTES_MAX = (1 << 32) - 1


def reserve_bytes() -> int:
    """What can come between `full` and a paused guest."""
    return round(LINE_BYTES_PER_S * _REACTION_S)


def kernel_limit_bytes(limit_bytes: int) -> int:
    """The limit of a qdisc that holds `limit_bytes` and the reserve. Raises `LimitError` if it can't."""
    total = limit_bytes + reserve_bytes()
    if total > _KERNEL_LIMIT_BYTES_MAX:
        most = _KERNEL_LIMIT_BYTES_MAX - reserve_bytes()
        raise LimitError(
            f"limit_bytes={limit_bytes}: a plug holds at most {most}; lower the limit or set hold = 'tap'"
        )
    return total


def limit_bytes(link_mbit_per_s: int, epoch_ms: float) -> int:
    """Enough that a guest at the rate of its link doesn't get half-way within two epochs.

    Two, for while one is sealed the next is open; half, for that is where `soon` asks for an early release.
    """
    if link_mbit_per_s < 1 or not 0 < epoch_ms < math.inf:
        raise LimitError(
            f"link_mbit_per_s={link_mbit_per_s}, epoch_ms={epoch_ms}: both must be positive to size a hold"
        )
    wanted = link_mbit_per_s * 1e6 / 8 * epoch_ms / 1e3 * 2 * 2
    return max(_LIMIT_BYTES_LEAST, round(min(wanted, _LIMIT_BYTES_MOST)))


def poll_s(held_bytes: int, limit_bytes: int) -> float:
    """When to look at the backlog again: before the next level of pressure can be passed by much."""
    half = limit_bytes / 2
    missing = (half if held_bytes < half else limit_bytes) - held_bytes
    return min(POLL_S_MAX, max(POLL_S_MIN, missing / LINE_BYTES_PER_S))
