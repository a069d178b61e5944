"""Time, chance and the order of things: one clock, one random source, one heap of actions."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Generator
from random import Random
from typing import Protocol

from .faults import HostDeathError

Action = Callable[[], None]
Steps = Generator[float, None, None]  # a task: yields how long it sleeps, in seconds


class Owner(Protocol):
    """What a task belongs to: it ends with it, and stands still while its process does."""

    alive: bool
    frozen_until: float


class World:
    """A discrete event loop. Ties are broken by the order of scheduling, so a seed is a history."""

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.tracing = tracing
        self.trace: list[str] = []
        self.performed: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Action]] = []
        self._ties = itertools.count()

    def at(self, time: float, action: Action) -> None:
        heapq.heappush(self._heap, (time, next(self._ties), action))

    def after(self, delay: float, action: Action) -> None:
        self.at(self.now + delay, action)

    def spawn(self, owner: Owner, steps: Steps) -> Task:
        """Run `steps` up to its first sleep now, and the rest as time passes."""
        task = Task(self, owner, steps)
        task.advance()
        return task

    def run_until(self, end: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, action = heapq.heappop(heap)
            try:
                action()
            except HostDeathError:
                continue
        self.now = end

    def log(self, who: str, what: object) -> None:
        """Keep one line of a traced run; callers guard it by `tracing` where the text costs."""
        if self.tracing:
            self.trace.append(f"{self.now * 1e3:9.3f} ms  {who:8} {what}")


class Task:
    """A generator that sleeps in simulated time."""

    def __init__(self, world: World, owner: Owner, steps: Steps) -> None:
        self._world = world
        self._owner = owner
        self._steps = steps
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def advance(self) -> None:
        if self.cancelled or not self._owner.alive:
            return
        if self._owner.frozen_until > self._world.now:
            self._world.at(self._owner.frozen_until, self.advance)
            return
        try:
            delay = next(self._steps)
        except StopIteration:
            return
        self._world.after(delay, self.advance)
