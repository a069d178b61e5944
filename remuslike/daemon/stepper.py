"""The loop around a core, the same in both daemons: one event at a time, and ticks when they are worth it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

from remuslike.engine import events as on

_Event = TypeVar("_Event")


class Stepper(Generic[_Event]):
    """Hands events to `take`, which steps a core and performs the effects."""

    def __init__(
        self,
        take: Callable[[_Event | on.Tick], None],
        next_tick: Callable[[float], float | None],
        heard: Callable[[], float],
    ) -> None:
        """`next_tick(now)`: when the core wants a tick; `heard()`: when the peer was heard last."""
        self._take = take
        self._next_tick = next_tick
        self._heard = heard
        self._events: deque[_Event | on.Tick] = deque()
        self._stepping = False
        self._poke = trio.Event()

    def post(self, event: _Event | on.Tick) -> None:
        """Take an event; a nested call (a buffer's callback while an effect is performed) waits its turn."""
        self._events.append(event)
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._events:
                self._take(self._events.popleft())
        finally:
            self._stepping = False
        self._poke.set()

    async def keep_time(self) -> None:
        """Post a tick whenever the core has asked for one, until cancelled."""
        while True:
            due = self._next_tick(time.monotonic())
            with trio.move_on_after(math.inf if due is None else max(0.0, due - time.monotonic())):
                await self._poke.wait()
                self._poke = trio.Event()
                continue
            self.post(on.Tick(time.monotonic(), self._heard()))
