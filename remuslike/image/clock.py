"""The rate of this host's time-stamp counter, for guests that can't find it out by themselves.

Under TCG the guest's counter is the host's. A kernel on microvm has only the PIT to measure it against,
and a virtual CPU that loses its processor meanwhile spoils the measurement: the kernel then has no clock and
doesn't boot. On a busy host that is most boots. With `tsc_early_khz` on its command line the kernel doesn't
measure (kernel Documentation/admin-guide/kernel-parameters.txt).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

WINDOW_SECONDS = 0.05
"""Between the two readings. Each is exact to about 100 ns, so that the rate is exact to a few millionths."""

READINGS = 50
"""Of so many readings the quickest counts: nothing interrupted that one."""

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_COUNTER = bytes.fromhex("0f31 48c1e220 4809d0 c3")


@dataclass(frozen=True, slots=True)
class Reading:
    """The counter and the time at one instant, known to `uncertainty_ns`."""

    uncertainty_ns: int
    time_ns: int
    ticks: int


@cache
def host_tsc_khz() -> int | None:
    """Rate of the host's time-stamp counter in kHz; takes WINDOW_SECONDS, once: no two measurements are quite
    the same, and guests that must agree are told it.

    None where the host has no such counter or lets nobody run the instruction that reads it.
    """
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_READ_COUNTER)
    code = ctypes.c_char.from_buffer(page)
    read_counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(code))
    try:
        first = _read(read_counter)
        time.sleep(WINDOW_SECONDS)
        return rate_khz(first, _read(read_counter))
    finally:
        # The page can't be closed while something points into it.
        del code
        page.close()


def rate_khz(first: Reading, second: Reading) -> int:
    """Ticks per millisecond between two readings."""
    elapsed_ns = second.time_ns - first.time_ns
    return (2 * (second.ticks - first.ticks) * 1_000_000 + elapsed_ns) // (2 * elapsed_ns)


def _read(read_counter: Callable[[], int]) -> Reading:
    readings = []
    for _ in range(READINGS):
        before_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = read_counter()
        after_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        readings.append(Reading(after_ns - before_ns, (before_ns + after_ns) // 2, ticks))
    return min(readings, key=lambda reading: reading.uncertainty_ns)
