"""Where each side stands, and what it is told beforehand. DESIGN.md, section 8, draws the phases."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where the primary stands. Output is open in SOLO and in a SYNCING that follows it only."""

    STARTING = "starting"  # asks the witness for leave to run at all
    OPENING = "opening"  # has the grant; the buffers are letting out what they held
    SOLO = "solo"  # runs unprotected
    STALLED = "stalled"  # paused until a secondary joins
    SYNCING = "syncing"  # a session without a base
    PROTECTED = "protected"  # holds its output, epoch by epoch
    CONTENDING = "contending"  # has lost its secondary and asks the witness
    ENDED = "ended"


class Want(Enum):
    """What a primary wants the witness's grant for."""

    START = "start"
    OPEN = "open"
    GREET = "greet"


class Rest(Enum):
    """How long a guest stays paused after a checkpoint."""

    NONE = "none"
    UNTIL_ACKNOWLEDGED = "until-acknowledged"
    UNTIL_RELEASED = "until-released"


class OnLoss(Enum):
    """What a primary does without a secondary."""

    SOLO = "solo"
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class PrimarySettings:
    """`window`: epochs sent and unacknowledged; `depth`: epochs sealed and unreleased (the
    shallowest buffer's); `witness_retry_s`: pause between questions to an unreachable witness;
    `acknowledge_limit_s`: a secondary that lives but owes an acknowledgement for so long is lost. It is far
    above what a large base takes, since nothing but held output is at stake."""

    name: str
    on_loss: OnLoss
    detect_s: float
    window: int
    depth: int
    witness_retry_s: float = 0.2
    acknowledge_limit_s: float = 30.0


class BackupPhase(Enum):
    """Where the secondary stands. Its guest runs and its output is open in ACTIVE only."""

    WAITING = "waiting"  # no primary
    SYNCING = "syncing"  # a session without a base
    STANDBY = "standby"  # could take over
    CONTENDING = "contending"  # has lost its primary and asks the witness
    ACTIVATING = "activating"  # has the grant
    ACTIVE = "active"
    ENDING = "ending"  # finishes applying what it acknowledged
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class BackupSettings:
    """`window`: epochs acknowledged and not yet applied. As many again may wait whole for their
    acknowledgement, which is more than any primary's window: one that sends more is not ours (P6).
    `durable`: the acknowledgement is sent once the epoch's disk writes are in the journals."""

    detect_s: float
    window: int = 8  # evens out a slow disk; a takeover may have to apply so many
    witness_retry_s: float = 0.2
    durable: bool = False
