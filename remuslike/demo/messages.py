"""What the daemons' control sockets answer, checked at one gate. Pure.

One JSON object a line in each direction; `{"error": REASON}` answers a request that can't be met.
Keys that the demo doesn't use are left to whoever wrote them. Times are CLOCK_MONOTONIC seconds of
this machine, so that those of different processes compare.
"""

from __future__ import annotations

import json
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from remuslike.demo.errors import DaemonError

REPLY_LIMIT_BYTES = 1 << 22  # ten minutes of samples at 25 ms have half of that


class Message(BaseModel):
    """An answer, or a part of one."""

    model_config = ConfigDict(frozen=True)


class Held(Message):
    """Output that waits in one of the primary's buffers."""

    held_items: int
    held_bytes: int


class Synchronisation(Message):
    """How far the copy of RAM and disks is before the first checkpoint."""

    passes: int
    pages_sent: int
    chunks_sent: int


class PrimaryStatistics(Message):
    """`statistics` of a primary. `held` has an entry for each buffer: network0, disk0, ..."""

    role: Literal["primary"]
    phase: str
    protected: bool
    generation: int
    checkpoints: int
    sync: Synchronisation | None = None
    held: dict[str, Held] = {}


class Takeover(Message):
    """How the secondary became the active side."""

    cause: str
    epoch: int | None = None
    silence_ms: float | None = None
    decided_at: float
    granted_at: float | None = None
    running_at: float | None = None
    opened_at: float | None = None
    activation_ms: float | None = None


class SecondaryStatistics(Message):
    """`statistics` of a secondary."""

    role: Literal["secondary"]
    phase: str
    acknowledged: int | None = None
    applied: int | None = None
    takeover: Takeover | None = None


class Sample(Message):
    """One finished epoch. `raw_bytes` is its dirty RAM, `wire_bytes` what of it travelled. What else a daemon
    says of it is kept for whoever records all of it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    epoch: int
    at: float
    dirty_pages: int
    pause_ms: float
    stop_ms: float
    seal_ms: float
    scan_ms: float
    copy_ms: float
    devices_ms: float
    resume_ms: float
    gap_ms: float
    raw_bytes: int
    wire_bytes: int
    commit_ms: float | None = None


class Samples(Message):
    """Finished epochs from an index on; `next` is the index to ask for later."""

    next: int
    samples: list[Sample]


class Pauses(Message):
    """`measure-pause`: QEMU's own stop, save and continue, with nothing captured."""

    pause_ms: list[float]


Answer = TypeVar("Answer", bound=Message)


def parse_reply(line: bytes, kind: type[Answer], request: str) -> Answer:
    """The answer to `request`; raises DaemonError for a refusal and for anything else than `kind`."""
    try:
        document = json.loads(line)
        if isinstance(document, dict) and "error" in document:
            raise DaemonError(f"the daemon refuses {request!r}: {document['error']}")
        return kind.model_validate(document)
    except (ValueError, ValidationError) as error:
        problem = str(error).replace("\n", " ")
        raise DaemonError(f"the daemon answered {request!r} with {line[:200]!r}: {problem}") from error
