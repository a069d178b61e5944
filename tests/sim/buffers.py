"""Model OutputBuffers: the contract of DESIGN.md, section 4, with a fault for whoever breaks it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum

from .faults import ContractError, StoreError
from .oracle import Oracle
from .world import Steps, World


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HOLDING = "holding"
    DISCARDED = "discarded"


class Level(IntEnum):
    """Pressure, ordered."""

    NONE = 0
    SOON = 1
    FULL = 2


@dataclass(frozen=True, slots=True)
class Output:
    """One frame or one disk write. `number`: its place among the guest's outputs of this sort, from 1."""

    number: int
    incarnation: int
    kind: str  # arp, dhcp, icmp, udp, tcp; or write
    block: int = 0
    token: int = 0  # what a write writes
    reply_to: int = 0  # the client's request that a frame answers; 0: none


class Buffer:
    """Holds one sort of output of one host, epoch by epoch.

    `leave` lets one output go; `paused` says whether the guest stands still, as `hold` and `seal`
    demand. Outputs at the limit wait, and with them the guest.
    """

    def __init__(
        self,
        world: World,
        oracle: Oracle,
        host: str,
        sort: str,
        *,
        depth: int,
        limit_items: int,
        leave: Callable[[Output], None],
        paused: Callable[[], bool],
    ) -> None:
        self._world = world
        self._oracle = oracle
        self.sort = sort
        self.name = f"{host}.{sort}"
        self._host = host
        self._depth = depth
        self._limit_items = limit_items
        self._leave = leave
        self._paused = paused
        self.state = State.CLOSED
        self.open_epoch = 0
        self.sealed: deque[tuple[int, deque[Output]]] = deque()
        self.releasing = False
        self.current: deque[Output] = deque()
        self._waiting: deque[tuple[Output, Callable[[], None]]] = deque()
        self._admits_all = False
        self.fails_next = False
        self.stall_s = 0.0  # how long a release may hang in the store
        self.level = Level.NONE
        self.on_level: Callable[[], None] = lambda: None
        self.on_output: Callable[[int], None] = lambda epoch: None
        self._untold = False  # the next output that is held will be the first of its epoch
        self._held_items = 0

    def held(self) -> list[Output]:
        """All that waits here, oldest first."""
        return [output for _, outputs in self.sealed for output in outputs] + list(self.current)

    def offer(self, output: Output, done: Callable[[], None]) -> None:
        """The guest emits `output`; `done` is called once it is taken in."""
        match self.state:
            case State.OPEN:
                self._leave(output)
                done()
            case State.HOLDING if self._held_items < self._limit_items or self._admits_all:
                self._admit(output)
                done()
            case State.HOLDING:
                self._waiting.append((output, done))
            case State.CLOSED:
                raise ContractError(f"{self.name}: the guest runs against a closed buffer")
            case State.DISCARDED:
                pass

    def hold(self, epoch: int) -> None:
        self._demand(self.state in (State.CLOSED, State.OPEN), f"hold({epoch}) while {self.state.value}")
        self._demand(self._paused(), f"hold({epoch}) while the guest runs")
        self.state = State.HOLDING
        self.open_epoch = epoch
        self._admits_all = False
        self._untold = True
        self._oracle.closed(self._host, self.name)

    def prepare(self) -> None:
        self._admits_all = True
        self._admit_waiting()

    def seal(self, epoch: int) -> None:
        self._demand(self.state is State.HOLDING, f"seal({epoch}) while {self.state.value}")
        self._demand(epoch == self.open_epoch, f"seal({epoch}) while {self.open_epoch} is open")
        self._demand(len(self.sealed) < self._depth, f"seal({epoch}) with {len(self.sealed)} sealed already")
        self._demand(self._paused(), f"seal({epoch}) while the guest runs")
        self.sealed.append((epoch, self.current))
        self.current = deque()
        self.open_epoch = epoch + 1
        self._admits_all = False
        self._untold = True

    def sealed_outputs(self, epoch: int) -> tuple[Output, ...]:
        self._demand(any(number == epoch for number, _ in self.sealed), f"sealed({epoch}) that is not")
        return tuple(next(outputs for number, outputs in self.sealed if number == epoch))

    def release(self, epoch: int) -> Steps:
        """Let `epoch` out; StoreError leaves what has not left held."""
        oldest = self.sealed[0][0] if self.sealed else None
        self._demand(epoch == oldest, f"release({epoch}) while {oldest} is the oldest sealed")
        self.releasing = True
        try:
            if self.stall_s and self._world.random.random() < 0.3:
                yield self._world.random.uniform(0, self.stall_s)
            yield from self._let_out(self.sealed[0][1])
        finally:
            self.releasing = False
        if self.state is not State.DISCARDED:
            self.sealed.popleft()
            self._oracle.released(self._host, self.name, epoch)
            self._admit_waiting()

    def open(self) -> Steps:
        self._oracle.opened(self._host, self.name)
        while self.state is not State.DISCARDED and self.sealed:
            yield from self._let_out(self.sealed[0][1])
            if self.sealed:
                self.sealed.popleft()
        while self.state is not State.DISCARDED and (self.current or self._waiting):
            yield from self._let_out(self.current)
            self._admit_waiting()
        if self.state is not State.DISCARDED:
            self.state = State.OPEN
            self._relevel()

    def discard(self) -> None:
        self.state = State.DISCARDED
        self.sealed.clear()
        self.current.clear()
        self._waiting.clear()
        self._held_items = 0
        self._oracle.discarded(self._host, self.name)

    def _let_out(self, outputs: deque[Output]) -> Steps:
        random = self._world.random
        yield random.uniform(0, 0.001)
        while outputs and self.state is not State.DISCARDED:
            if self.fails_next:
                self.fails_next = False
                raise StoreError(f"{self.name} has no room")
            self._leave(outputs.popleft())
            self._held_items -= 1
            if random.random() < 0.1:
                yield random.uniform(0, 0.002)
        self._relevel()

    def _admit(self, output: Output) -> None:
        self.current.append(output)
        self._held_items += 1
        if self._untold:
            self._untold = False
            self.on_output(self.open_epoch)
        self._oracle.held(self.name, self._held_items, self._limit_items)
        self._relevel()

    def _admit_waiting(self) -> None:
        while self._waiting and (self._admits_all or self._held_items < self._limit_items):
            output, done = self._waiting.popleft()
            self._admit(output)
            done()

    def _relevel(self) -> None:
        share = self._held_items / self._limit_items
        level = Level.FULL if share >= 1 else Level.SOON if share >= 0.5 else Level.NONE
        if level is not self.level:
            self.level = level
            self.on_level()

    def _demand(self, condition: bool, what: str) -> None:
        if not condition:
            raise ContractError(f"{self.name}: {what}")


class Platter:
    """What a store is made of, of one host or of all, and who has its lock."""

    def __init__(self, block_count: int) -> None:
        self.blocks = [0] * block_count
        self.locked_by: Callable[[], bool] = lambda: False  # whether its last owner may still write

    def lock(self, owns: Callable[[], bool]) -> None:
        self.locked_by = owns


class Disk:
    """A store, and the disk as a guest sees it through the buffer in front of it."""

    def __init__(self, platter: Platter) -> None:
        self.platter = platter
        self.dirty: set[int] = set()

    @property
    def blocks(self) -> list[int]:
        return self.platter.blocks

    def write(self, block: int, token: int, *, marking: bool = True) -> None:
        """A release doesn't mark what it writes: only what passes an open buffer is a synchronisation's."""
        self.blocks[block] = token
        if marking:
            self.dirty.add(block)

    def take_dirty(self) -> set[int]:
        dirty, self.dirty = self.dirty, set()
        return dirty

    def seen_through(self, buffer: Buffer) -> list[int]:
        view = list(self.blocks)
        for output in buffer.held():
            view[output.block] = output.token
        return view
