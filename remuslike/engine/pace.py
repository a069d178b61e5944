"""What a trigger policy is fed with: the primary's memory of its outputs, pauses and commits."""

from __future__ import annotations

from math import log2

from remuslike.engine.events import OutputHeld, OutputKind
from remuslike.engine.policy import Situation, TriggerPolicy

# What the latest checkpoint counts in an average: a load that changes is followed within some four epochs.
_WEIGHT = 0.25

# An epoch's load counts for that of 256 packets at the most: a burst must not outweigh the quiet after it.
_LOAD_MAX = 8.0

# So late a timer may be that is exact to the millisecond, on a processor that is busy. An epoch counts from
# when it was due, or every one of them would be longer by that much than it was asked to be.
_TIMER_LATE_S = 0.002


class Pace:
    """Asks the policy. Its part of the core's state, kept apart so that the rest stays readable."""

    def __init__(self, policy: TriggerPolicy) -> None:
        self._policy = policy
        self._began = 0.0
        self._first: dict[OutputKind, tuple[int, float]] = {}  # the newest epoch that has one, and when
        self._committed_at = 0.0
        self._pause_s = 0.0
        self._load = 0.0

    @property
    def synchronous(self) -> bool:
        """Whether the guest waits for the acknowledgement of each epoch."""
        return self._policy.synchronous

    def begin(self, now: float, due_at: float | None = None) -> None:
        """A checkpoint starts that was due at `due_at`: what it doesn't cover is the next epoch's."""
        in_time = due_at is not None and 0 <= now - due_at <= _TIMER_LATE_S
        self._began = due_at if due_at is not None and in_time else now

    def output_held(self, event: OutputHeld) -> None:
        """Of an epoch's outputs of a kind the first counts. It may belong to the epoch behind the one that is
        being closed, and be told before that is captured."""
        epoch, _ = self._first.get(event.kind, (0, 0.0))
        if event.epoch > epoch:
            self._first[event.kind] = event.epoch, event.now

    def captured(self, pause_s: float, packets: int) -> None:
        self._pause_s = _average(self._pause_s, pause_s)
        self._load = _average(self._load, min(log2(max(packets, 1)), _LOAD_MAX))

    def committed(self, now: float) -> None:
        self._committed_at = now

    def due_at(self, open_epoch: int, *, committing: bool) -> float | None:
        """When `open_epoch` should end; `committing`: an acknowledgement is due."""
        return self._policy.due_at(
            Situation(
                began=self._began,
                first_frame=self._first_of(OutputKind.NETWORK, open_epoch),
                first_write=self._first_of(OutputKind.DISK, open_epoch),
                committed_at=None if committing else self._committed_at,
                pause_s=self._pause_s,
                load=self._load,
            )
        )

    def _first_of(self, kind: OutputKind, open_epoch: int) -> float | None:
        epoch, at = self._first.get(kind, (0, 0.0))
        return at if epoch == open_epoch else None


def _average(before: float, latest: float) -> float:
    return before + _WEIGHT * (latest - before)
