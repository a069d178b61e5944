"""The OutputBuffer contract (DESIGN.md, section 4) in as few words as it can be kept in, and three ways to
break it.

What the guest emits are numbers of one size. Nothing here ever waits, so no call can be cancelled half-way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class FakeState(StrEnum):
    """What becomes of a number that is emitted now."""

    CLOSED = "closed"
    OPEN = "open"
    HOLDING = "holding"
    DISCARDED = "discarded"


class FakePressure(StrEnum):
    """How near the held bytes are to the limit; in ascending order."""

    NONE = "none"
    SOON = "soon"
    FULL = "full"


_LEVELS = list(FakePressure)


class HoldError(Exception):
    """The test's fault: `hold` in a state that doesn't allow it."""


class SealError(Exception):
    """The test's fault: `seal` of another epoch than the open one, or beyond the depth."""


class ReleaseError(Exception):
    """The test's fault: `release` of another epoch than the oldest sealed one."""


class OpenError(Exception):
    """The test's fault: `open` of a discarded buffer."""


class OutsideError(Exception):
    """The environment's fault: the outside takes no more for now."""


@dataclass(frozen=True, slots=True)
class FakeStatistics:
    """A moment of a FakeBuffer."""

    state: FakeState
    open_epoch: int | None
    sealed_epochs: tuple[int, ...]
    held_items: int
    held_bytes: int
    limit_bytes: int
    released_items: int
    released_bytes: int
    dropped_items: int
    peak_bytes: int


class FakeBuffer:
    """A correct OutputBuffer. `outside` is what has left, `room` how many more it takes (None: any)."""

    def __init__(self, *, item_bytes: int, limit_bytes: int, depth: int) -> None:
        self.outside: list[int] = []
        self.room: int | None = None
        self.depth = depth
        self.state = FakeState.CLOSED
        self.sealed: deque[tuple[int, deque[int]]] = deque()
        self.open_epoch = 0
        self.held: deque[int] = deque()
        self._waiting: deque[int] = deque()  # emitted at the limit, not yet admitted
        self._callbacks: list[Callable[[FakePressure], None]] = []
        self._told = FakePressure.NONE
        self._output_callbacks: list[Callable[[int], None]] = []
        self._told_epoch = 0
        self._item_bytes = item_bytes
        self._limit_bytes = limit_bytes
        self._released = self._dropped = self._peak_bytes = 0

    # --- the guest's side -----------------------------------------------------------------------

    def emit(self, number: int) -> None:
        match self.state:
            case FakeState.OPEN:
                self._let_out(number)
            case FakeState.HOLDING if self.pressure is FakePressure.FULL:
                self._waiting.append(number)
            case FakeState.HOLDING:
                self._keep(number)
            case _:
                self._dropped += 1

    def _keep(self, number: int) -> None:
        self.held.append(number)
        self._peak_bytes = max(self._peak_bytes, self._held_bytes)
        if _LEVELS.index(self.pressure) > _LEVELS.index(self._told):
            for callback in self._callbacks:
                callback(self.pressure)
        self._told = self.pressure
        if self._told_epoch != self.open_epoch:
            self._told_epoch = self.open_epoch
            for tell in self._output_callbacks:
                tell(self.open_epoch)

    def _let_out(self, number: int) -> None:
        if self.room is not None:
            if self.room == 0:
                raise OutsideError(f"item {number}: the outside has no room; make some")
            self.room -= 1
        self.outside.append(number)
        self._released += 1

    # --- the contract ---------------------------------------------------------------------------

    @property
    def _held_items(self) -> int:
        return len(self.held) + sum(len(numbers) for _, numbers in self.sealed)

    @property
    def _held_bytes(self) -> int:
        return self._held_items * self._item_bytes

    @property
    def pressure(self) -> FakePressure:
        if self._held_bytes >= self._limit_bytes:
            return FakePressure.FULL
        return FakePressure.SOON if 2 * self._held_bytes >= self._limit_bytes else FakePressure.NONE

    def on_pressure(self, callback: Callable[[FakePressure], None]) -> None:
        self._callbacks.append(callback)

    def on_output(self, callback: Callable[[int], None]) -> None:
        self._output_callbacks.append(callback)

    def open_items(self) -> int:
        return len(self.held) if self.state is FakeState.HOLDING else 0

    def hold(self, epoch: int) -> None:
        if self.state not in (FakeState.CLOSED, FakeState.OPEN):
            raise HoldError(f"hold({epoch}) while {self.state}: hold a closed or open buffer")
        self.state = FakeState.HOLDING
        self.open_epoch = epoch

    def prepare(self) -> None:
        while self._waiting:
            self._keep(self._waiting.popleft())

    def seal(self, epoch: int) -> None:
        if self.state is not FakeState.HOLDING or epoch != self.open_epoch or len(self.sealed) >= self.depth:
            raise SealError(f"seal({epoch}) while {self.statistics()}: seal the open epoch, within the depth")
        self.sealed.append((epoch, self.held))
        self.held = deque()
        self.open_epoch += 1

    async def release(self, epoch: int) -> None:
        if not self.sealed or epoch != self.sealed[0][0]:
            raise ReleaseError(f"release({epoch}) while {self.statistics()}: release the oldest sealed epoch")
        self._empty(self.sealed[0][1])
        self.sealed.popleft()
        self._admit()

    async def open(self) -> None:
        if self.state is FakeState.DISCARDED:
            raise OpenError("open() of a discarded buffer: make a new one")
        while self.sealed:
            self._empty(self.sealed[0][1])
            self.sealed.popleft()
        self._empty(self.held)
        self._empty(self._waiting)
        self.state = FakeState.OPEN

    def _empty(self, numbers: deque[int]) -> None:
        while numbers:
            self._let_out(numbers[0])
            numbers.popleft()
        self._told = self.pressure

    def _admit(self) -> None:
        while self._waiting and self.pressure is not FakePressure.FULL:
            self._keep(self._waiting.popleft())

    def discard(self) -> None:
        self._dropped += self._held_items + len(self._waiting)
        self.state = FakeState.DISCARDED
        self.sealed.clear()
        self.held.clear()
        self._waiting.clear()
        self._told = FakePressure.NONE

    def statistics(self) -> FakeStatistics:
        return FakeStatistics(
            state=self.state,
            open_epoch=self.open_epoch if self.state is FakeState.HOLDING else None,
            sealed_epochs=tuple(epoch for epoch, _ in self.sealed),
            held_items=self._held_items,
            held_bytes=self._held_bytes,
            limit_bytes=self._limit_bytes,
            released_items=self._released,
            released_bytes=self._released * self._item_bytes,
            dropped_items=self._dropped,
            peak_bytes=self._peak_bytes,
        )


class ReleasesAtSeal(FakeBuffer):
    """Broken: an epoch leaves when it is sealed, not when it is released (against P1)."""

    def seal(self, epoch: int) -> None:
        super().seal(epoch)
        self._empty(self.sealed[-1][1])


class SealsTwice(FakeBuffer):
    """Broken as the kernel's plug qdisc is: a seal beyond the depth joins the epoch before (against P1)."""

    def seal(self, epoch: int) -> None:
        if self.state is FakeState.HOLDING and epoch == self.open_epoch and len(self.sealed) >= self.depth:
            self.sealed[-1][1].extend(self.held)
            self.held.clear()
            self.open_epoch += 1
        else:
            super().seal(epoch)


class ReleasesAnyEpoch(FakeBuffer):
    """Broken: any sealed epoch is released when asked for, not only the oldest (against P5)."""

    async def release(self, epoch: int) -> None:
        for place, (sealed, numbers) in enumerate(self.sealed):
            if sealed == epoch:
                self._empty(numbers)
                del self.sealed[place]
                return
        await super().release(epoch)
