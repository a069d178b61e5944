"""No witness: an explicit choice. Every question is granted, so a partition makes two active sides."""

from __future__ import annotations

import structlog

from remuslike.engine.ports import Token

_log = structlog.get_logger(__name__)


class NoWitness:
    """`remuslike.engine.ports.Witness` that always grants, and says what that means each time."""

    async def read(self) -> Token:
        return Token(0, "")

    async def acquire(self, expected_generation: int, holder: str) -> tuple[bool, Token]:
        _log.warning(
            "witness.none",
            advice="witness.kind is none: if the other side lives, two guests are active now",
        )
        return True, Token(expected_generation + 1, holder)
