"""What a core wants done: the outputs of `primary.PrimaryCore` and `backup.BackupCore`.

A driver performs effects in the order given. Three of them let output leave a host or make a
second copy count; these are of a class of their own (`Gated`), and each carries what entitles it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from remuslike.engine.events import Farewell


class ExitStatus(IntEnum):
    """What a daemon's process ends with; README lists them."""

    CLEAN = 0
    FAILED = 1
    USAGE = 2
    FENCED = 3
    GUEST_DIED = 4


@dataclass(frozen=True, slots=True)
class Gated:
    """An effect that must be entitled by an acknowledgement or a grant."""


@dataclass(frozen=True, slots=True)
class Release(Gated):
    """Let the outputs of `epoch` leave. Entitled by the secondary's acknowledgement (P1)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class OpenOutput(Gated):
    """Let all held output leave and hold no more. Entitled by the witness's grant (P3, P4)."""

    generation: int


@dataclass(frozen=True, slots=True)
class Acknowledge(Gated):
    """Tell the primary that `epoch` is here whole. Entitled by every part having arrived (P2)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class AcquireWitness:
    """Compare-and-swap the fencing token from `expected_generation` to this side."""

    expected_generation: int


@dataclass(frozen=True, slots=True)
class DiscardOutput:
    """Drop all held output for ever."""


@dataclass(frozen=True, slots=True)
class DestroyGuest:
    """End the guest without letting it finish anything."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndSession:
    """Close the link, with a farewell where the peer should act on it."""

    reason: str
    farewell: Farewell | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """End the daemon."""

    status: ExitStatus
    message: str


# --- primary ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PauseGuest:
    """Stop the guest's processors outside a checkpoint."""


@dataclass(frozen=True, slots=True)
class ResumeGuest:
    """Let the guest run."""


@dataclass(frozen=True, slots=True)
class Greet:
    """Perform the handshake with the connected secondary under `generation`."""

    generation: int


@dataclass(frozen=True, slots=True)
class StartSync:
    """Send RAM and disk differences in passes until little is left; then report `SyncConverged`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Pause the guest, close `epoch` in every buffer, capture; leave the guest paused.

    `base`: the first of a session; what the synchronisation has left over travels with it. A base
    never seals: buffers that are not holding begin to, with `epoch + 1`; buffers that are (a
    stalled guest's) stay as they are.
    """

    epoch: int
    base: bool


@dataclass(frozen=True, slots=True)
class SendEpoch:
    """Encode and send the captured `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class SealStalled:
    """Seal `epoch` in every buffer although no checkpoint runs: the guest has been paused since
    before the acknowledged base was captured."""

    epoch: int


# --- backup -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApplySync:
    """Write the synchronisation part that just arrived straight into RAM or disk."""


@dataclass(frozen=True, slots=True)
class Log:
    """Make the staged `epoch`'s disk writes durable in the journals; report `Logged`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Write the staged `epoch` into RAM and disks; report `Applied`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class DropPartial:
    """Forget what has been staged of `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Activate:
    """Load the device state of `epoch`, which is applied, and run; report `Activated`."""

    epoch: int


PrimaryEffect = (
    Release
    | OpenOutput
    | AcquireWitness
    | DiscardOutput
    | DestroyGuest
    | EndSession
    | Finish
    | PauseGuest
    | ResumeGuest
    | Greet
    | StartSync
    | Checkpoint
    | SendEpoch
    | SealStalled
)

BackupEffect = (
    Acknowledge
    | OpenOutput
    | AcquireWitness
    | DiscardOutput
    | DestroyGuest
    | EndSession
    | Finish
    | ApplySync
    | Log
    | Apply
    | DropPartial
    | Activate
)
