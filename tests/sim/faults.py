"""What can stop a run: a violated promise, a broken contract, a host that dies."""

from __future__ import annotations


class ViolationError(AssertionError):
    """The engine's fault: a numbered promise of DESIGN.md, section 1, was seen broken from outside."""

    def __init__(self, promise: str, message: str) -> None:
        super().__init__(f"{promise}: {message}")
        self.promise = promise


class ContractError(AssertionError):
    """The engine's fault: it broke the contract of a model part (DESIGN.md, section 4)."""


class HostDeathError(Exception):
    """The simulation's own doing: the host whose code runs has just died."""


class StoreError(Exception):
    """The simulation's own doing: a store refuses what it is told to write."""
