"""How a takeover went, for `remuslike status`."""

from __future__ import annotations

from dataclasses import dataclass

from remuslike.engine import events as on
from remuslike.engine.events import BackupEvent


@dataclass(slots=True)
class Takeover:
    """How a takeover went. The `_at` are time.monotonic() seconds; None: not reached."""

    cause: str
    epoch: int | None
    silence_ms: float
    decided_at: float
    granted_at: float | None = None
    opened_at: float | None = None
    replayed_frames: int = 0
    running_at: float | None = None

    @property
    def activation_ms(self) -> float | None:
        """From the decision to take over until the guest runs."""
        return None if self.running_at is None else (self.running_at - self.decided_at) * 1e3


def cause_of(event: BackupEvent) -> str:
    """Why a takeover began, in an operator's words."""
    match event:
        case on.LinkLost():
            return event.reason
        case on.PeerLeft():
            return f"the primary said {event.farewell.value}"
        case on.Tick():
            return "the primary was silent"
        case _:
            return "the primary broke the protocol"
