"""The model network between hosts, the links over it, and the witness beside it.

Bytes on a link arrive in order and unharmed, late, or not at all. A cut direction keeps what is sent
into it, as TCP does, and hands it over in order when it heals; it may never heal.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .oracle import Oracle
from .world import World


@dataclass(frozen=True, slots=True)
class Frame:
    """`kind` is one of greet, ready, heartbeat, sync, begin, part, complete, acknowledge, farewell, end."""

    kind: str
    epoch: int = 0
    body: object = None


class Host(Protocol):
    name: str
    alive: bool
    frozen_until: float

    def link_frame(self, end: End, frame: Frame) -> None: ...
    def link_ended(self, end: End, reason: str) -> None: ...


class Network:
    """Which directions between which hosts carry bytes, and how slowly."""

    def __init__(self, world: World, oracle: Oracle, latency_s: float) -> None:
        self.world = world
        self.oracle = oracle
        self.latency_s = latency_s
        self._cut: set[tuple[str, str]] = set()
        self._links: list[tuple[End, End]] = []
        self._sessions = itertools.count(1)

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cut

    def cut(self, source: str, target: str) -> None:
        """Silence in one direction. Part of a frame may just have come through: it counts as life."""
        self._cut.add((source, target))
        for ends in self._links:
            for end in ends:
                if end.host.name == target and end.peer.host.name == source and end.open:
                    end.last_heard = self.world.now

    def heal(self) -> None:
        self._cut.clear()
        for ends in self._links:
            for end in ends:
                self.world.after(0, end.flush)

    def reset(self) -> None:
        """Every link breaks, noticed by both sides at once."""
        for ends in self._links:
            for end in ends:
                self.world.after(0, end.reset)

    def connect(self, primary: Host, secondary: Host) -> tuple[End, End]:
        session = next(self._sessions)
        near, far = End(self, session, primary), End(self, session, secondary)
        near.peer, far.peer = far, near
        self._links = [ends for ends in self._links if ends[0].open or ends[1].open]
        self._links.append((near, far))
        return near, far


class End:
    """One host's end of a link."""

    def __init__(self, network: Network, session: int, host: Host) -> None:
        self._network = network
        self.session = session
        self.host = host
        self.peer: End
        self.open = True
        self.last_heard = network.world.now
        self.last_sent = network.world.now
        self._arrives = 0.0
        self._inbox: deque[Frame] = deque()  # sent to this end, not yet handed over

    def send(self, frame: Frame) -> None:
        if self.open:
            self._pass_on(frame)

    def close(self, farewell: Frame | None = None) -> None:
        if not self.open:
            return
        if farewell is not None:
            self._pass_on(farewell)
        self._pass_on(Frame("end"))
        self.open = False

    def break_off(self) -> None:
        """The process behind this end has died; its kernel tells the peer."""
        self.close()

    def vanish(self) -> None:
        """The whole host has died: nobody tells the peer."""
        self.open = False

    def reset(self) -> None:
        if self.open and self.host.alive:
            self.open = False
            self.host.link_ended(self, "connection reset")

    def flush(self) -> None:
        """Hand over what has come, in order, as far as the network and the receiver let it through."""
        world = self._network.world
        while self._inbox and self.open and self.host.alive:
            if self._network.is_cut(self.peer.host.name, self.host.name):
                return
            if self.host.frozen_until > world.now:
                world.at(self.host.frozen_until, self.flush)
                return
            frame = self._inbox.popleft()
            self.last_heard = world.now
            if frame.kind == "end":
                self.open = False
                self.host.link_ended(self, "connection closed by peer")
            else:
                self.host.link_frame(self, frame)

    def _pass_on(self, frame: Frame) -> None:
        world = self._network.world
        latency = self._network.latency_s
        self.last_sent = world.now
        peer = self.peer
        peer._arrives = max(peer._arrives, world.now + latency * (0.5 + world.random.random()))
        world.at(peer._arrives, lambda: peer._arrive(frame))

    def _arrive(self, frame: Frame) -> None:
        self._inbox.append(frame)
        self.flush()


class Witness:
    """The third party: one record, one compare-and-swap, sometimes out of reach."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self._world = world
        self._oracle = oracle
        self.generation = 0
        self.holder = ""
        self.reachable = True
        self.answers_lost = 0  # how many of the next answers get lost after the swap was done

    def acquire(
        self,
        expected_generation: int,
        holder: str,
        answer: Callable[[bool | None, int, str], None],
    ) -> None:
        """`answer` gets (granted, generation, holder); granted is None when there was no answer."""
        self._world.after(self._delay(), lambda: self._swap(expected_generation, holder, answer))

    def _swap(
        self, expected_generation: int, holder: str, answer: Callable[[bool | None, int, str], None]
    ) -> None:
        if not self.reachable:
            self._world.after(self._delay(), lambda: answer(None, 0, ""))
            return
        granted = (self.generation, self.holder) == (expected_generation + 1, holder)
        if self.generation == expected_generation:
            granted = True
            self.generation, self.holder = expected_generation + 1, holder
            self._oracle.token_moved(self.generation, self.holder)
            self._world.log("witness", f"generation {self.generation} to {self.holder}")
        generation, winner = self.generation, self.holder
        if self.answers_lost:
            self.answers_lost -= 1
            self._world.after(0.05, lambda: answer(None, 0, ""))
        else:
            self._world.after(self._delay(), lambda: answer(granted, generation, winner))

    def _delay(self) -> float:
        return self._world.random.uniform(0.0005, 0.01)
