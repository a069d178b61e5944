"""What happens to a core: the inputs of `primary.PrimaryCore` and `backup.BackupCore`.

Times are seconds on the driver's monotonic clock; a core never reads a clock itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class Pressure(Enum):
    """How near the fullest buffer is to its limit (P6)."""

    NONE = "none"
    SOON = "soon"  # half full: take an early checkpoint
    FULL = "full"  # at the limit: the next checkpoint doesn't resume before its acknowledgement


class GuestEnd(Enum):
    """How a guest ended without anybody asking for it."""

    SHUTDOWN = "shutdown"  # it powered itself off; QEMU still holds its last state
    DIED = "died"  # QEMU is gone or no longer answers


class OutputKind(StrEnum):
    """Where an output goes; the values are those of `epoch.taps` in a configuration."""

    NETWORK = "net"
    DISK = "disk"


class Farewell(Enum):
    """Why a peer closes the session on purpose."""

    ENDED = "ended"  # the guest is over: nobody takes over
    TAKE_OVER = "take-over"  # the primary's guest died: the secondary may take over at once
    LEAVING = "leaving"  # the secondary stops: it will not take over


# --- both sides ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. `last_heard` is when the last byte came from the peer (ignored without one)."""

    now: float
    last_heard: float


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The link closed, broke or carried something that is not our protocol."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """The peer said goodbye."""

    now: float
    farewell: Farewell


@dataclass(frozen=True, slots=True)
class WitnessGranted:
    """The compare-and-swap succeeded: this side alone may open its output under `generation`."""

    now: float
    generation: int


@dataclass(frozen=True, slots=True)
class WitnessRefused:
    """Somebody else won the compare-and-swap."""

    now: float
    holder: str
    generation: int


@dataclass(frozen=True, slots=True)
class WitnessUnreachable:
    """The witness gave no answer; nothing is known."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True)
class GuestEnded:
    """The guest is over (`GuestEnd` says how)."""

    now: float
    end: GuestEnd
    detail: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The operator asked for a clean end."""

    now: float


# --- primary ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The guest is set up and paused. `generation`, `holder`: the witness's record (0, "" if none)."""

    now: float
    generation: int
    holder: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """The guest runs here already, its output open under our own `generation`: we have taken it over."""

    now: float
    generation: int


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """A secondary can be reached; nothing has been said to it yet."""

    now: float


@dataclass(frozen=True, slots=True)
class PeerReady:
    """The handshake succeeded. `generation` is the fencing token of the session."""

    now: float
    generation: int


@dataclass(frozen=True, slots=True)
class SyncConverged:
    """What is left to synchronise is small enough for the base checkpoint."""

    now: float


@dataclass(frozen=True, slots=True)
class Captured:
    """The checkpoint of `epoch` is complete in memory; the guest is still paused, for `pause_s` so far. Held
    with it are so many network `packets`."""

    now: float
    epoch: int
    pause_s: float = 0.0
    packets: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The secondary says that it has `epoch` whole. Comes from the peer: checked, not trusted."""

    now: float
    epoch: int


@dataclass(frozen=True, slots=True)
class Released:
    """Every buffer has let out `epoch`."""

    now: float
    epoch: int


@dataclass(frozen=True, slots=True)
class OutputHeld:
    """A buffer holds the first output of `epoch`; a guest's flush of a disk counts as one."""

    now: float
    epoch: int
    kind: OutputKind


@dataclass(frozen=True, slots=True)
class OutputOpened:
    """Every buffer has let out all it held and passes output at once."""

    now: float


@dataclass(frozen=True, slots=True)
class OutputFailed:
    """A buffer can't let out what it may (its store is full or broken); it still holds it."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True)
class PressureChanged:
    """The level of the fullest buffer changed."""

    now: float
    pressure: Pressure


# --- backup -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SyncPart:
    """Pages or disk chunks of the synchronisation arrived, valid in themselves."""


@dataclass(frozen=True, slots=True)
class EpochBegan:
    """The first frame of `epoch` arrived."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EpochPart:
    """A further frame of `epoch` arrived, valid in itself; the driver has staged it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class EpochCompleted:
    """The last frame of `epoch` arrived and says how many parts there must be."""

    epoch: int
    parts: int


@dataclass(frozen=True, slots=True)
class Logged:
    """The disk writes of `epoch` outlive this host's end."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Applied:
    """RAM and disks of this side now are `epoch`."""

    now: float
    epoch: int


@dataclass(frozen=True, slots=True)
class ApplyFailed:
    """RAM, a disk or a journal of this side could not take a whole epoch: this copy is spoilt."""

    now: float
    reason: str


@dataclass(frozen=True, slots=True)
class Activated:
    """The standby's guest runs."""

    now: float


@dataclass(frozen=True, slots=True)
class ActivationFailed:
    """The standby's QEMU refused the device state or died of it."""

    now: float
    reason: str


PrimaryEvent = (
    Started
    | Adopted
    | PeerConnected
    | PeerReady
    | SyncConverged
    | Captured
    | Acknowledged
    | Released
    | OutputOpened
    | OutputFailed
    | OutputHeld
    | PressureChanged
    | Tick
    | LinkLost
    | PeerLeft
    | WitnessGranted
    | WitnessRefused
    | WitnessUnreachable
    | GuestEnded
    | StopRequested
)

BackupEvent = (
    PeerReady
    | SyncPart
    | EpochBegan
    | EpochPart
    | EpochCompleted
    | Logged
    | Applied
    | ApplyFailed
    | OutputOpened
    | Activated
    | ActivationFailed
    | Tick
    | LinkLost
    | PeerLeft
    | WitnessGranted
    | WitnessRefused
    | WitnessUnreachable
    | GuestEnded
    | StopRequested
)
