"""A primary whose network hold leaks: an epoch's frames leave at its seal, not at its acknowledgement.

    python leaky_daemon.py primary --config FILE

It lets the clients have what it leaked, and dies half-way through sending that very epoch: the secondary
can't have what they saw. For the test that their history gives it away.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

from netbuf import Backend, Guest, TapHold
from remuslike.config import load_settings
from remuslike.daemon import host
from remuslike.daemon.primary import PrimaryDaemon

FATAL_STEP = "send.half"
FIRST_FATAL_EPOCH = 5
"""Behind the base and some ordinary epochs: until then every leak was made good by an acknowledgement."""

FRAMES_MIN = 6
"""In the fatal epoch. Some might be no answers but ARP or IPv6, and some answer what the guest had been asked
before the epoch began: those the survivor gives again, word for word."""

leaked_frames: dict[int, int] = {}


class LeakyHold(TapHold):
    """Its release comes with its seal."""

    def seal(self, epoch: int) -> None:
        super().seal(epoch)
        trio.lowlevel.spawn_system_task(self._leak, epoch)

    async def _leak(self, epoch: int) -> None:
        before = self.statistics().released_items
        await super().release(epoch)
        leaked_frames[epoch] = self.statistics().released_items - before

    async def release(self, epoch: int) -> None:
        """Of what has long left."""
        await trio.lowlevel.checkpoint()
        assert epoch in leaked_frames, f"epoch {epoch} was acknowledged before it had leaked"


def make_leaky_hold(
    _backend: Backend, guest: Guest, bridge: str, limit_bytes: int, depth: int, *, keep_frames: bool
) -> LeakyHold:
    """In the place of `netbuf.make_hold`."""
    return LeakyHold(guest, bridge, limit_bytes, depth, keep_frames=keep_frames)


def die_of_a_leak(step: str, epoch: int) -> None:
    """The daemon's step hook: SIGKILL, as when its host dies."""
    leaked = leaked_frames.get(epoch, 0)
    if step == FATAL_STEP and epoch >= FIRST_FATAL_EPOCH and leaked >= FRAMES_MIN:
        os.kill(os.getpid(), signal.SIGKILL)


def main(role: str, _option: str, path: str) -> None:
    assert role == "primary", f"no {role} leaks"
    host.make_hold = make_leaky_hold  # type: ignore[assignment]
    trio.run(PrimaryDaemon(load_settings(Path(path)), die_of_a_leak).run)


if __name__ == "__main__":
    main(*sys.argv[1:])
