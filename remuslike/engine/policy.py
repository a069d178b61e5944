"""When a checkpoint starts: pure trigger policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class TriggerPolicy(Protocol):
    """Decides when the epoch that began at `began` should end."""

    def due_at(self, began: float) -> float:
        """The time of the next checkpoint; the engine may be later (its window is full) but not
        earlier, except under pressure."""


@dataclass(frozen=True, slots=True)
class EpochPolicy:
    """Remus's: a checkpoint every `epoch_s`, counted from the start of the previous one."""

    epoch_s: float

    def due_at(self, began: float) -> float:
        return began + self.epoch_s
