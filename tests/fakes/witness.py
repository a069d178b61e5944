"""A witness in memory."""

from __future__ import annotations

from remuslike.engine.ports import Token
from remuslike.errors import WitnessError


class FakeWitness:
    """`remuslike.engine.ports.Witness`; it gives no answer while `reachable` is False."""

    def __init__(self) -> None:
        self.token = Token(0, "")
        self.reachable = True

    async def read(self) -> Token:
        self._answer()
        return self.token

    async def acquire(self, expected_generation: int, holder: str) -> tuple[bool, Token]:
        self._answer()
        wanted = Token(expected_generation + 1, holder)
        if self.token.generation == expected_generation:
            self.token = wanted
        return self.token == wanted, self.token

    def _answer(self) -> None:
        if not self.reachable:
            raise WitnessError("the witness can't be reached; ask again")
