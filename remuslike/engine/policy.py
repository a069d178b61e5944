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
    `committed_at`: when the last acknowledgement came; None while one is due. `pause_s`, `load`: averages
    over recent checkpoints, the latest counting most, of the pause and of log2 of the packets that were held.
    """

    began: float
    first_frame: float | None = None
    first_write: float | None = None
    committed_at: float | None = None
    pause_s: float = 0.0
    load: float = 0.0


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


# Measured: sixteen clients of a database that syncs each transaction get 0.8 of what timed epochs give with 1
# of them, and 1.05 with 2.
_PAUSES_IF_IT_WRITES = 2

# Nobody waits for an epoch that holds nothing. But the first output after it waits for all its dirty pages.
_CEILINGS_IF_SILENT = 4


@dataclass(frozen=True, slots=True)
class AdaptivePolicy:
    """Ours: the first frame starts a checkpoint once the last one has committed and the epoch has lasted as
    long as the guest's load deserves: one pause for each doubling of the packets that recent epochs held.

    That is nothing for a guest that sends one packet an epoch: its client waits for that very one. Who sends
    many serves many clients, or a fat stream, and has work while they wait: it gains nothing from pausing
    often. Longer epochs collect more packets, so a busy guest settles at the long end, and an epoch that
    collected few brings it back.

    Disk writes have been answered, so nobody waits for them, and they start nothing. But a guest that writes
    before it replies takes longer to come to its replies: its epochs last two pauses for each doubling.

    `ceiling_s` bounds how long anything is held. An epoch that holds nothing lasts up to four of them, for
    nobody would gain from its checkpoint: only what no other host has heard of is lost with it."""

    ceiling_s: float
    floor_s: float = 0.0
    synchronous: bool = False

    def due_at(self, situation: Situation) -> float | None:
        if situation.first_frame is None and situation.first_write is None:
            return situation.began + _CEILINGS_IF_SILENT * self.ceiling_s
        latest = situation.began + self.ceiling_s
        if situation.first_frame is None or situation.committed_at is None:
            return latest
        pauses = situation.load * (1 if situation.first_write is None else _PAUSES_IF_IT_WRITES)
        least_s = max(self.floor_s, pauses * situation.pause_s)
        return min(latest, max(situation.first_frame, situation.committed_at, situation.began + least_s))
