"""What a seal and a release of an empty epoch cost: in time, and in netlink messages."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median
from types import FrameType
from typing import Any

from pyroute2 import IPRoute

from netbuf import Hold
from netbuf.plugwire import PLUG_HANDLE
from netbuf.redirect import Network

PAIRS = 300
"""Of a seal and a release, for one sample: their median. Some ten ms, or less than a second if emulated."""

_COUNTED_PAIRS = 21
_SENDS = frozenset({"send", "sendall", "sendto", "sendmsg"})
_SPARE_HOLD = "bench0"
_SPARE_LIMIT_BYTES = 1 << 20
_ROOT = 0xFFFF_FFFF  # TC_H_ROOT of linux/pkt_sched.h
_US_PER_NS = 1e-3


@dataclass(slots=True)
class Messages:
    """How many were sent."""

    sent: int = 0


@contextmanager
def netlink_messages() -> Iterator[Messages]:
    """Count what this thread sends on netlink sockets, whoever opened them. Slow: nothing for timing."""
    counted = Messages()

    def look(_frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and getattr(function, "__name__", "") in _SENDS:
            owner = getattr(function, "__self__", None)
            if isinstance(owner, socket.SocketType) and owner.family == socket.AF_NETLINK:
                counted.sent += 1

    sys.setprofile(look)
    try:
        yield counted
    finally:
        sys.setprofile(None)


async def time_pairs(hold: Hold, first_epoch: int) -> tuple[float, int]:
    """The median of PAIRS seals with their releases, in µs, and the epoch that is open afterwards.

    Prerequisite: `hold` holds `first_epoch`, and its guest is silent.
    """
    durations: list[int] = []
    epoch = first_epoch
    for epoch in range(first_epoch, first_epoch + PAIRS):
        began = time.perf_counter_ns()
        hold.seal(epoch)
        await hold.release(epoch)
        durations.append(time.perf_counter_ns() - began)
    return median(durations) * _US_PER_NS, epoch + 1


async def count_pairs(hold: Hold, first_epoch: int) -> tuple[float, int]:
    """The netlink messages of a seal with its release, and the epoch that is open afterwards.

    The median of some pairs: in the middle of one, a hold's own look at its queue may be counted, too.
    """
    counts: list[int] = []
    epoch = first_epoch
    for epoch in range(first_epoch, first_epoch + _COUNTED_PAIRS):
        with netlink_messages() as counted:
            hold.seal(epoch)
            await hold.release(epoch)
        counts.append(counted.sent)
    return median(counts), epoch + 1


class HighLevelPlug:
    """The same two changes of a plug, of a spare IFB, by pyroute2's `tc` as one would write it at first."""

    def __init__(self) -> None:
        """Raises `netbuf.NetbufError`, for a kernel without plug among others."""
        with closing(Network()) as network:
            network.create_hold(_SPARE_HOLD, limit_bytes=_SPARE_LIMIT_BYTES)
            self._index = network.index(_SPARE_HOLD)
        self._netlink = IPRoute()

    def close(self) -> None:
        """Remove the IFB."""
        self._netlink.link("del", index=self._index)
        self._netlink.close()

    def time_pairs(self) -> float:
        """The median of PAIRS pairs, in µs."""
        durations: list[int] = []
        for _ in range(PAIRS):
            began = time.perf_counter_ns()
            self._pair()
            durations.append(time.perf_counter_ns() - began)
        return median(durations) * _US_PER_NS

    def count_pairs(self) -> float:
        """The netlink messages of one pair."""
        counts: list[int] = []
        for _ in range(_COUNTED_PAIRS):
            with netlink_messages() as counted:
                self._pair()
            counts.append(counted.sent)
        return median(counts)

    def _pair(self) -> None:
        for action in ("TCQ_PLUG_BUFFER", "TCQ_PLUG_RELEASE_ONE"):
            self._netlink.tc(
                "change", "plug", index=self._index, parent=_ROOT, handle=PLUG_HANDLE, action=action
            )
