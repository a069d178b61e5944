"""remuslike.witness.none: everything is granted, and the log says what that means."""

from __future__ import annotations

from structlog.testing import capture_logs

from remuslike.engine.ports import Token
from remuslike.witness import NoWitness


async def test_there_is_never_a_token() -> None:
    witness = NoWitness()
    await witness.acquire(0, "a")
    assert await witness.read() == Token(0, "")


async def test_every_question_is_granted_with_a_warning() -> None:
    with capture_logs() as logs:
        for holder in ("a", "b"):
            assert await NoWitness().acquire(6, holder) == (True, Token(7, holder))
    assert [log["log_level"] for log in logs] == ["warning", "warning"]
    assert all("two guests are active" in log["advice"] for log in logs)
