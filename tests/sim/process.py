"""What both model daemons are made of: a mailbox, a core, a link, a clock, and ways to die."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from remuslike.engine import effects as do
from remuslike.engine import events as on

from .faults import HostDeathError
from .network import End, Frame, Network, Witness
from .oracle import Oracle
from .world import Steps, World

Event = Any  # a PrimaryEvent or a BackupEvent; each core knows its own
Effect = Any


class Core(Protocol):
    def step(self, event: Event) -> list[Effect]: ...
    def next_tick(self, now: float) -> float | None: ...


class Process:
    """One daemon on one host.

    Events are taken one at a time, their effects performed in order; with probability `stutter` time
    passes before an effect, so that anything can happen between two of them.
    """

    def __init__(
        self,
        world: World,
        oracle: Oracle,
        network: Network,
        witness: Witness,
        name: str,
        *,
        detect_s: float,
        stutter: float,
    ) -> None:
        self.world = world
        self.oracle = oracle
        self.network = network
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        self.finished: do.Finish | None = None
        self.link: End | None = None
        self.shaken_hands = False
        self.core: Core
        self.perform: Callable[[Effect], None]
        self.on_frame: Callable[[End, Frame], None]
        self.before_step: Callable[[Event, object], None] = lambda event, body: None
        self.on_end: Callable[[], None]
        self.kill_step: str | None = None
        self.kill_countdown = 0
        self.kill_after_effects = 0
        self.watched_effect: str | None = None
        self.watch_countdown = 0
        self.on_watched: Callable[[], None] = lambda: None
        self._witness = witness
        self._detect_s = detect_s
        self._stutter = stutter
        self._last_heard = 0.0
        self._mailbox: deque[tuple[Event, object]] = deque()
        self._effects: deque[Effect] = deque()
        self._busy = False
        self._alarm = math.inf

    # --- events in, effects out -------------------------------------------------------------------

    def post(self, event: Event, body: object = None) -> None:
        if self.alive:
            self._mailbox.append((event, body))
            if not self._busy:
                self._pump()

    def _pump(self) -> None:
        self._busy = True
        random = self.world.random
        while self.alive and (self._effects or self._mailbox):
            if self.frozen_until > self.world.now:
                self.world.at(self.frozen_until, self._pump)
                return
            if not self._effects:
                event, body = self._mailbox.popleft()
                if self.world.tracing and not isinstance(event, on.Tick):
                    self.world.log(self.name, event)
                self.before_step(event, body)
                self._effects.extend(self.core.step(event))
                self._set_alarm()
                continue
            effect = self._effects.popleft()
            self.world.log(self.name, f"    {effect}" if self.world.tracing else effect)
            self.world.performed[type(effect).__name__] += 1
            self.perform(effect)
            if self.watched_effect == type(effect).__name__:
                self.watch_countdown -= 1
                if self.watch_countdown == 0:
                    self.on_watched()
            if self.kill_after_effects:
                self.kill_after_effects -= 1
                if not self.kill_after_effects:
                    self.die(random.random() < 0.5)
            if self._effects and self._stutter and random.random() < self._stutter:
                self.world.after(random.uniform(0, 0.004), self._pump)
                return
        self._busy = False

    def _set_alarm(self) -> None:
        due = self.core.next_tick(self.world.now)
        if due is None or due >= self._alarm:
            return
        late = self.world.random.random() * 0.001
        self._alarm = max(due, self.world.now) + late
        alarm = self._alarm
        self.world.at(alarm, lambda: self._ring(alarm))

    def _ring(self, alarm: float) -> None:
        if alarm != self._alarm or not self.alive:
            return
        if self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, lambda: self._ring(alarm))
            return
        self._alarm = math.inf
        heard = self.link.last_heard if self.link is not None else self._last_heard
        self.post(on.Tick(self.world.now, heard))

    # --- the link ---------------------------------------------------------------------------------

    def attach(self, end: End) -> None:
        self.link = end
        self.shaken_hands = False
        self.world.spawn(self, self._keep_alive(end))
        self.world.after(3 * self._detect_s, lambda: self._expect_hands(end))

    def _keep_alive(self, end: End) -> Steps:
        interval = self._detect_s / 4
        while end.open:
            if self.world.now - end.last_sent >= interval * 0.9:
                end.send(Frame("heartbeat"))
            yield interval

    def _expect_hands(self, end: End) -> None:
        if self.frozen_until > self.world.now:
            self.world.at(self.frozen_until, lambda: self._expect_hands(end))
        elif self.link is end and not self.shaken_hands:
            self.end_session(do.EndSession("the handshake took too long"))
            self.post(on.LinkLost(self.world.now, "the handshake took too long"))

    def link_frame(self, end: End, frame: Frame) -> None:
        if end is not self.link or frame.kind == "heartbeat":
            return
        if frame.kind == "farewell":
            self.post(on.PeerLeft(self.world.now, on.Farewell(frame.body)))
        else:
            self.on_frame(end, frame)

    def link_ended(self, end: End, reason: str) -> None:
        if end is self.link:
            self._last_heard = end.last_heard
            self.link = None
            self.post(on.LinkLost(self.world.now, reason))

    def end_session(self, effect: do.EndSession) -> None:
        if self.link is not None:
            farewell = None
            if effect.farewell is not None:
                farewell = Frame("farewell", body=effect.farewell.value)
            self._last_heard = self.link.last_heard
            self.link.close(farewell)
            self.link = None

    # --- the witness ------------------------------------------------------------------------------

    def ask_witness(self, expected_generation: int) -> None:
        self._witness.acquire(expected_generation, self.name, self._answered)

    def _answered(self, granted: bool | None, generation: int, holder: str) -> None:
        now = self.world.now
        if granted is None:
            self.post(on.WitnessUnreachable(now, "no answer"))
        elif granted:
            self.post(on.WitnessGranted(now, generation))
        else:
            self.post(on.WitnessRefused(now, holder, generation))

    # --- ends -------------------------------------------------------------------------------------

    def hook(self, step: str) -> None:
        """A driver passes a named step (ports.PRIMARY_STEPS, BACKUP_STEPS): the place to die at."""
        if self.kill_step == step:
            self.kill_countdown -= 1
            if self.kill_countdown <= 0:
                self.die(self.world.random.random() < 0.5)
                raise HostDeathError

    def die(self, with_host: bool) -> None:
        """SIGKILL, of the process alone (its kernel closes the link) or with its whole host."""
        if not self.alive:
            return
        self.world.log(self.name, "dies with its host" if with_host else "is killed")
        self.alive = False
        if self.link is not None:
            if with_host:
                self.link.vanish()
            else:
                self.link.break_off()
        self.on_end()
        self.oracle.ended(self.name)

    def finish(self, effect: do.Finish) -> None:
        self.finished = effect
        self.alive = False
        self.end_session(do.EndSession("the process ends"))
        self.on_end()
        self.oracle.ended(self.name)
