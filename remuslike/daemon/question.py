"""The question to the witness, as both daemons ask it."""

from __future__ import annotations

import time

import structlog

from remuslike.engine import events as on
from remuslike.engine.ports import Witness
from remuslike.errors import WitnessError

_log = structlog.get_logger(__name__)


async def ask_witness(
    witness: Witness, expected_generation: int, holder: str
) -> on.WitnessGranted | on.WitnessRefused | on.WitnessUnreachable:
    """Compare-and-swap the fencing token to `holder`; the answer, or its absence, as the core's event."""
    try:
        granted, token = await witness.acquire(expected_generation, holder)
    except WitnessError as error:
        _log.warning("witness.unreachable", error=str(error))
        return on.WitnessUnreachable(time.monotonic(), str(error))
    now = time.monotonic()
    _log.info("witness.answer", granted=granted, generation=token.generation, holder=token.holder)
    if granted:
        return on.WitnessGranted(now, token.generation)
    return on.WitnessRefused(now, token.holder, token.generation)
