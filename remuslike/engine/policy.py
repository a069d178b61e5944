"""When a checkpoint starts: pure trigger policies, one a mode. DESIGN.md, section 9, compares them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from remuslike.engine.events import OutputKind


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy is told about the open epoch, and about those before it.

    `began`: when it did, with the start of the checkpoint before it (or when that was due, if a timer was a
    little late). `first_frame`, `first_write`: when its first output of either kind was held; None: not yet.
    `committed_at`: when the last acknowledgement came; None while one is due. `pause_s`, `frames`: averages
    over recent checkpoints, the latest counting most.
    """

    began: float
    first_frame: float | None = None
    first_write: float | None = None
    committed_at: float | None = None
    pause_s: float = 0.0
    frames: float = 0.0


class TriggerPolicy(Protocol):
    """Decides when the open epoch should end, and how."""

    @property
    def synchronous(self) -> bool:
        """Whether the guest stays paused until the acknowledgement of the epoch."""
        ...

    def due_at(self, situation: Situation) -> float | None:
        """The time of the next checkpoint; None: not before something else happens. The engine may be later
        (its window is full) but not earlier, except under pressure."""
        ...


@dataclass(frozen=True, slots=True)
class EpochPolicy:
    """Remus's: a checkpoint every `epoch_s`, counted from the start of the previous one."""

    epoch_s: float
    synchronous: bool = False

    def due_at(self, situation: Situation) -> float | None:
        return situation.began + self.epoch_s


@dataclass(frozen=True, slots=True)
class EventTapPolicy:
    """Kemari's: the first output of a tapped kind starts a checkpoint at once, and the guest waits for its
    acknowledgement. What is not tapped waits for it too, but no longer than `interval_s`."""

    taps: Set[OutputKind]
    interval_s: float
    synchronous: bool = True

    def due_at(self, situation: Situation) -> float | None:
        firsts = (
            (OutputKind.NETWORK, situation.first_frame),
            (OutputKind.DISK, situation.first_write),
        )
        return min(
            (at if kind in self.taps else at + self.interval_s for kind, at in firsts if at is not None),
            default=None,
        )


# An epoch with so many frames serves so many clients that the guest has work while some of them wait: it
# gains nothing from pausing more often than its share of pauses allows.
BUSY_FRAMES = 16

# ... which is one part of so many.
PAUSES_PER_BUSY_EPOCH = 4


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """Ours: the first frame starts a checkpoint once the last one has committed and the epoch has lasted as
    long as the guest's load deserves.

    That is nothing for a guest that sends a frame now and then: its client waits for that very frame. It is
    `PAUSES_PER_BUSY_EPOCH` times the recent pause for one that sends `BUSY_FRAMES` in an epoch, so that it
    runs most of the time; and in proportion between the two. Longer epochs collect more frames, so a busy
    guest settles at the long end, and an epoch that collected few brings it back. Disk writes have been
    answered, so nobody waits for them. `ceiling_s` bounds what is held, and what a takeover may lose."""

    ceiling_s: float
    floor_s: float = 0.0
    synchronous: bool = False

    def due_at(self, situation: Situation) -> float | None:
        latest = situation.began + self.ceiling_s
        if situation.first_frame is None or situation.committed_at is None:
            return latest
        load = min(1.0, situation.frames / BUSY_FRAMES)
        least_s = max(self.floor_s, load * PAUSES_PER_BUSY_EPOCH * situation.pause_s)
        return min(latest, max(situation.first_frame, situation.committed_at, situation.began + least_s))
