"""One run: two hosts and more, a network, a witness, a client, faults; then peace, and the reckoning.

Phase 1 lets things go wrong as `options.py` drew them; safety is checked at every fact, whatever has
failed. Phase 2 heals all that can heal and lets one more secondary join: then somebody must serve the
client, and be protected, within a bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from remuslike.engine import events as on
from remuslike.engine.backup import BackupCore
from remuslike.engine.phases import BackupPhase, BackupSettings, OnLoss, PrimarySettings
from remuslike.engine.policy import AdaptivePolicy, EpochPolicy, EventTapPolicy, TriggerPolicy
from remuslike.engine.primary import PrimaryCore

from .backup import BackupDriver
from .buffers import Platter, State
from .faults import ContractError, ViolationError
from .guest import BLOCK_COUNT
from .network import Network, Witness
from .options import Fault, Kind, Options, draw
from .oracle import Oracle
from .primary import PrimaryDriver
from .process import Process
from .world import World

PEACE_S = 2.5  # how long phase 2 may take: several detections, witness retries and synchronisations
WITNESS_RETRY_S = 0.05
SECONDARIES_MAX = 4


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is built of; a mutation replaces one of them by a broken one."""

    primary_core: Callable[[PrimarySettings, TriggerPolicy], PrimaryCore] = PrimaryCore
    backup_core: Callable[[BackupSettings], BackupCore] = BackupCore
    primary_driver: type[PrimaryDriver] = PrimaryDriver
    backup_driver: type[BackupDriver] = BackupDriver


@dataclass
class Record:
    """What befell the hosts, for judging liveness."""

    broken: set[str] = field(default_factory=set)  # died, or lost their QEMU or store
    stops: Counter[str] = field(default_factory=Counter)  # how often each was asked to stop
    excused: set[str] = field(default_factory=set)  # asked to stop, and may have to go on
    powered_off: bool = False


class Simulation:
    """Everything of one seed."""

    def __init__(self, seed: int, parts: Parts, *, tracing: bool = False) -> None:
        self.world = World(seed, tracing=tracing)
        self.options: Options = draw(self.world.random)
        self.oracle = Oracle(synchronous=self.options.mode == "event-tap", replays=self.options.replays)
        self.network = Network(self.world, self.oracle, self.options.latency_s)
        self.witness = Witness(self.world, self.oracle)
        self.record = Record()
        self._parts = parts
        self._requests = 0
        self._partitioned = False
        self._at_peace = False
        self._shared = Platter(BLOCK_COUNT)
        self.primary = parts.primary_driver(
            self._process("alpha"), self._primary_core("alpha"), self.options, None, self._platter()
        )
        self.secondaries: list[BackupDriver] = []
        self.world.log("run", self.options)

    def _primary_core(self, name: str) -> PrimaryCore:
        options = self.options
        settings = PrimarySettings(
            name=name,
            on_loss=OnLoss.STALL if options.stalls else OnLoss.SOLO,
            detect_s=options.detect_s,
            window=options.window,
            depth=options.depth,
            witness_retry_s=WITNESS_RETRY_S,
        )
        return self._parts.primary_core(settings, self._policy())

    def _policy(self) -> TriggerPolicy:
        options = self.options
        if options.mode == "event-tap":
            return EventTapPolicy(options.taps, options.epoch_s)
        if options.mode == "adaptive":
            return AdaptivePolicy(options.epoch_s, options.floor_s)
        return EpochPolicy(options.epoch_s)

    def _adopt(self, survivor: BackupDriver) -> PrimaryDriver:
        assert survivor.guest is not None
        process = survivor.process
        parts = (survivor.guest, survivor.buffers, survivor.disk)
        return self._parts.primary_driver(process, self._primary_core(process.name), self.options, parts)

    def _platter(self) -> Platter:
        return self._shared if self.options.shared else Platter(BLOCK_COUNT)

    def _process(self, name: str) -> Process:
        return Process(
            self.world,
            self.oracle,
            self.network,
            self.witness,
            name,
            detect_s=self.options.detect_s,
            stutter=self.options.stutter,
        )

    def run(self) -> None:
        """Raises ViolationError, ContractError or an assertion of the engine's."""
        world, options = self.world, self.options
        self._join()
        anchored = self._driver(options.anchor.host).process
        anchored.watched_effect, anchored.watch_countdown = options.anchor.effect, options.anchor.count
        anchored.on_watched = lambda: self._schedule_faults(anchored=True)
        self._schedule_faults(anchored=False)
        self.primary.process.post(on.Started(world.now, self.witness.generation, self.witness.holder))
        world.after(0.001, self._dial)
        world.after(0.01, self._ask)
        world.run_until(options.duration_s)
        self._make_peace()
        self._judge()

    # --- the world around the hosts ---------------------------------------------------------------

    def _join(self) -> None:
        """A fresh secondary; it has nothing in common with those before it but the witness."""
        if len(self.secondaries) == SECONDARIES_MAX:
            return
        name = ("beta", "gamma", "delta", "epsilon")[len(self.secondaries)]
        settings = BackupSettings(
            detect_s=self.options.detect_s,
            window=self.options.backup_window,
            durable=self.options.durable,
            witness_retry_s=WITNESS_RETRY_S,
        )
        core = self._parts.backup_core(settings)
        incarnation = len(self.secondaries) + 1
        driver = self._parts.backup_driver(
            self._process(name), core, self.options, incarnation, self._platter()
        )
        driver.adopt = self._adopt
        self.secondaries.append(driver)
        self.world.log("run", f"{name} joins")

    def _primaries(self) -> list[PrimaryDriver]:
        """The first, and whoever has taken over since."""
        return [self.primary, *(s.adopted for s in self.secondaries if s.adopted is not None)]

    def _dial(self) -> None:
        """Every primary looks for a secondary while it has none."""
        self.world.after(self.options.redial_s, self._dial)
        for primary in self._primaries():
            near = primary.process
            if not near.alive or near.link is not None or near.frozen_until > self.world.now:
                continue
            able = [s.process for s in self.secondaries if self._can_meet(near, s)]
            if able:
                far = self.world.random.choice(able)
                near_end, far_end = self.network.connect(near, far)
                far.attach(far_end)
                primary.connected(near_end)

    def _can_meet(self, near: Process, secondary: BackupDriver) -> bool:
        far = secondary.process
        return (
            far.alive
            and far.link is None
            and far.frozen_until <= self.world.now
            and secondary.core.phase not in (BackupPhase.ACTIVATING, BackupPhase.ACTIVE)
            and not self.network.is_cut(near.name, far.name)
            and not self.network.is_cut(far.name, near.name)
        )

    def _ask(self) -> None:
        """The client asks everybody who might answer; what was not answered it asks again."""
        self.world.after(0.008, self._ask)
        self._requests += 1
        unanswered = set(range(max(1, self._requests - 40), self._requests + 1)) - self.oracle.client_got
        wanted = {self._requests, min(unanswered, default=self._requests)}
        for host in self._hosts():
            if host.process.alive and host.guest is not None:
                for number in sorted(wanted):
                    host.guest.request(number)

    # --- faults -----------------------------------------------------------------------------------

    def _schedule_faults(self, *, anchored: bool) -> None:
        for fault in self.options.faults:
            if fault.anchored == anchored:
                self.world.after(fault.at_s, partial(self._strike, fault))

    def _hosts(self) -> list[PrimaryDriver | BackupDriver]:
        return [self.primary, *self.secondaries]

    def _driver(self, name: str) -> PrimaryDriver | BackupDriver:
        return self.primary if name == "alpha" else self.secondaries[0]

    def _strike(self, fault: Fault) -> None:
        world, random = self.world, self.world.random
        if self._at_peace:
            return
        world.log("fault", fault)
        primary, secondary = self._acting_primary(), self._acting_secondary()
        match fault.kind:
            case Kind.CRASH_PRIMARY:
                primary.process.die(random.random() < 0.7)
            case Kind.CRASH_SECONDARY:
                secondary.process.die(random.random() < 0.7)
            case Kind.KILL_AT_STEP:
                process = self._driver(fault.host).process
                process.kill_step, process.kill_countdown = fault.step, fault.count
            case Kind.KILL_AT_EFFECT:
                self._driver(fault.host).process.kill_after_effects = fault.count
            case Kind.CUT | Kind.CUT_ONE_WAY | Kind.PARTITION:
                self._cut(fault, secondary.process.name)
            case Kind.RESET:
                self.network.reset()
            case Kind.WITNESS_AWAY:
                self.witness.reachable = False
                world.after(fault.duration_s, self._witness_back)
            case Kind.ANSWER_LOST:
                self.witness.answers_lost = fault.count
            case Kind.JOIN:
                self._join()
            case _:
                self._strike_within(fault, primary, secondary)

    def _strike_within(self, fault: Fault, primary: PrimaryDriver, secondary: BackupDriver) -> None:
        """Faults and requests that a daemon is told of."""
        world = self.world
        match fault.kind:
            case Kind.STORE_FAILS:
                self.record.broken.add(primary.process.name)
                world.random.choice(primary.buffers).fails_next = True
            case Kind.APPLY_FAILS:
                self.record.broken.add(secondary.process.name)
                secondary.fails_apply = True
            case Kind.ACTIVATION_FAILS:
                self.record.broken.add(secondary.process.name)
                secondary.fails_activation = True
            case Kind.STOP_PRIMARY:
                self.record.stops[primary.process.name] += fault.count
                for n in range(fault.count):
                    world.after(n * 0.02, lambda: primary.process.post(on.StopRequested(world.now)))
            case Kind.STOP_SECONDARY:
                self.record.stops[secondary.process.name] += 1
                # Asked while it contends, it goes on if the witness names it: nobody else would run it.
                if secondary.core.phase is BackupPhase.CONTENDING:
                    self.record.excused.add(secondary.process.name)
                secondary.process.post(on.StopRequested(world.now))
            case Kind.POWER_OFF:
                for guest in (primary.guest, secondary.guest):
                    if guest is not None and not guest.paused:
                        self.record.powered_off = True
                        guest.power_off()
            case Kind.QEMU_DIES:
                self.record.broken.add(primary.process.name)
                primary.qemu_dies()
            case Kind.STANDBY_DIES:
                self.record.broken.add(secondary.process.name)
                secondary.stop_qemu()
            case Kind.FREEZE:
                process = self._driver(fault.host).process
                process.frozen_until = world.now + fault.duration_s

    def _acting_primary(self) -> PrimaryDriver:
        """The last that has taken over and lives."""
        return next((p for p in reversed(self._primaries()) if p.process.alive), self.primary)

    def _acting_secondary(self) -> BackupDriver:
        """The one that matters most: in a session, or alive, or the newest."""
        alive = [s for s in self.secondaries if s.process.alive and s.adopted is None]
        linked = [s for s in alive if s.process.link is not None]
        return (linked or alive or self.secondaries)[-1]

    def _cut(self, fault: Fault, secondary: str) -> None:
        primary = self._acting_primary().process.name
        ends = [(primary, secondary), (secondary, primary)]
        if fault.kind is Kind.CUT_ONE_WAY:
            ends = ends[:1] if fault.host == "alpha" else ends[1:]
        for source, target in ends:
            self.network.cut(source, target)
        if fault.kind is Kind.PARTITION:
            self._partitioned = True
        else:
            self.world.after(fault.duration_s, self._heal)

    def _heal(self) -> None:
        if not self._partitioned:
            self.network.heal()

    def _witness_back(self) -> None:
        self.witness.reachable = True

    # --- peace and the reckoning ------------------------------------------------------------------

    def _make_peace(self) -> None:
        self.world.log("run", "peace: no more faults, a new secondary joins")
        self._at_peace = True
        self._heal()
        self.witness.reachable = True
        self.witness.answers_lost = 0
        for host in self._hosts():
            host.process.kill_step = None
            host.process.kill_after_effects = 0
        self._join()

    def _judge(self) -> None:
        """Liveness: somebody who could go on does, and is protected if anybody can protect it."""
        end = self.world.now + PEACE_S
        before = dict(self.oracle.progress)
        acknowledged_before = self.oracle.acknowledgements
        complaint: str | None = "nothing was judged"
        while complaint is not None and self.world.now < end:
            self.world.run_until(self.world.now + 0.05)
            complaint = self._complaint(before, acknowledged_before)
        if complaint is not None:
            raise ViolationError("liveness", complaint)
        for host in self._hosts():
            serving = host.process.alive and host.guest is not None and host.guest.alive
            serving = serving and host.buffers[1].state is not State.DISCARDED  # else it is on its way out
            if serving and self.oracle.holder == host.process.name:
                seen = host.disk.seen_through(host.buffers[1])
                assert host.guest is not None
                self.oracle.survivor(host.process.name, host.guest.snapshot(), seen)

    def _complaint(self, before: dict[str, int], acknowledged_before: int) -> str | None:
        """What is still missing; None: all is well, or there is a reason why not."""
        everybody = self._hosts()
        for host in everybody:
            name, finished = host.process.name, host.process.finished
            if self.record.stops[name] and host.process.alive and name not in self.record.excused:
                return f"{name} was asked to stop and has not"
            if finished is not None and (reason := self._unreasonable(name, finished.status.name)):
                raise ViolationError("liveness", reason)
        serving = [
            name for name in self.oracle.progress if self.oracle.progress[name] > before.get(name, 0) + 3
        ]
        if not serving:
            able = [host.process.name for host in everybody if self._could_serve(host)]
            return f"{' and '.join(able)} could serve, nobody does" if able else None
        if any(primary.process.alive and primary.process.name in serving for primary in self._primaries()):
            others = [
                s
                for s in self.secondaries
                if s.process.alive
                and s.process.name not in self.record.broken
                and s.core.phase is not BackupPhase.ACTIVE
            ]
            protected = any(
                copy.number > acknowledged_before and self.oracle.counts(copy)
                for copy in self.oracle.copies.values()
                if copy.host not in serving
            )
            if others and not protected:
                return "a primary and a secondary live, and nothing is protected"
        return None

    def _could_serve(self, host: PrimaryDriver | BackupDriver) -> bool:
        name = host.process.name
        if not host.process.alive or name in self.record.broken or self.record.stops[name]:
            return False
        if self.record.powered_off:
            return False
        if isinstance(host, PrimaryDriver):
            return self.oracle.holder in ("", name)
        copy = self.oracle.copies.get(name)
        ended = any(primary.process.finished is not None for primary in self._primaries())
        return copy is not None and self.oracle.counts(copy) and not (ended and self.record.stops)

    def _unreasonable(self, name: str, status: str) -> str | None:
        """Why a daemon should not have ended as it did; None: it had reason to."""
        record = self.record
        match status:
            case "CLEAN":
                reason = bool(record.stops) or record.powered_off
            case "FENCED":
                reason = self.oracle.holder != name
            case "GUEST_DIED":
                reason = name in record.broken
            case _:
                reason = name in record.broken or record.stops[name] > 1
        return None if reason else f"{name} ended with {status} for no reason"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a seed ended with: `problem` is None if every promise was kept. `performed`: how often each
    effect was carried out, for judging what a range of seeds has tried at all."""

    seed: int
    problem: AssertionError | None
    performed: Counter[str]
    trace: list[str]

    @property
    def promise(self) -> str:
        """Which promise was broken: P1 to P7, tap (event-tap's), liveness, contract, engine (assertion)."""
        if isinstance(self.problem, ViolationError):
            return self.problem.promise
        return "contract" if isinstance(self.problem, ContractError) else "engine"

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.problem} (replay: python -m tests.sim --seed {self.seed} --trace)"


def simulate(seed: int, parts: Parts | None = None, *, tracing: bool = False) -> Outcome:
    """Run one seed to its end."""
    simulation = Simulation(seed, parts or Parts(), tracing=tracing)
    problem: AssertionError | None = None
    try:
        simulation.run()
    except AssertionError as broken:
        problem = broken
    return Outcome(seed, problem, simulation.world.performed, simulation.world.trace)
