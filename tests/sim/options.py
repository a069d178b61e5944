"""What a run is made of: drawn once from its seed, printed by a trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from remuslike.engine.events import OutputKind
from remuslike.engine.ports import BACKUP_STEPS, PRIMARY_STEPS


class Kind(Enum):
    """What can go wrong, and what an operator or a guest can do at a bad time."""

    CRASH_PRIMARY = "crash primary"
    CRASH_SECONDARY = "crash secondary"
    KILL_AT_STEP = "kill at step"
    KILL_AT_EFFECT = "kill at effect"
    CUT = "cut"
    CUT_ONE_WAY = "cut one way"
    PARTITION = "partition for ever"
    RESET = "reset"
    WITNESS_AWAY = "witness away"
    ANSWER_LOST = "answer lost"
    STORE_FAILS = "store fails"
    APPLY_FAILS = "apply fails"
    ACTIVATION_FAILS = "activation fails"
    STOP_PRIMARY = "stop primary"
    STOP_SECONDARY = "stop secondary"
    POWER_OFF = "guest powers off"
    QEMU_DIES = "QEMU dies"
    STANDBY_DIES = "standby's QEMU dies"
    FREEZE = "freeze"
    JOIN = "a new secondary joins"


WEIGHTS = {
    Kind.CRASH_PRIMARY: 6,
    Kind.CRASH_SECONDARY: 3,
    Kind.KILL_AT_STEP: 8,
    Kind.KILL_AT_EFFECT: 5,
    Kind.CUT: 5,
    Kind.CUT_ONE_WAY: 5,
    Kind.PARTITION: 3,
    Kind.RESET: 7,
    Kind.WITNESS_AWAY: 4,
    Kind.ANSWER_LOST: 3,
    Kind.STORE_FAILS: 2,
    Kind.APPLY_FAILS: 2,
    Kind.ACTIVATION_FAILS: 1,
    Kind.STOP_PRIMARY: 3,
    Kind.STOP_SECONDARY: 2,
    Kind.POWER_OFF: 3,
    Kind.QEMU_DIES: 2,
    Kind.STANDBY_DIES: 1,
    Kind.FREEZE: 4,
    Kind.JOIN: 6,
}

TAPS = (tuple(OutputKind), tuple(OutputKind), (OutputKind.NETWORK,), (OutputKind.DISK,))

ENDINGS = (Kind.STOP_PRIMARY, Kind.POWER_OFF, Kind.RESET, Kind.CUT)  # ends that overtake each other


@dataclass(frozen=True, slots=True)
class Fault:
    """`at_s` into the run, or after its anchor if `anchored`; `duration_s` for what passes; `host`,
    `step`, `count` where the kind has them."""

    at_s: float
    kind: Kind
    duration_s: float = 0.0
    host: str = ""
    step: str = ""
    count: int = 0
    anchored: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """The `count`-th time that `host` performs an effect of this name: where anchored faults begin."""

    host: str
    effect: str
    count: int


ANCHORS = (
    ("alpha", ("AcquireWitness", "Greet", "StartSync", "Checkpoint", "SendEpoch", "Release", "SealStalled")),
    ("alpha", ("OpenOutput", "PauseGuest", "ResumeGuest", "EndSession", "DestroyGuest")),
    ("beta", ("Acknowledge", "Log", "Apply", "AcquireWitness", "Activate", "EndSession", "ApplySync")),
)
SECOND_SESSION = (
    Anchor("alpha", "Greet", 2),
    Anchor("alpha", "StartSync", 2),
    Anchor("alpha", "StartSync", 2),
    Anchor("alpha", "SealStalled", 1),
)


@dataclass(frozen=True, slots=True)
class Options:
    """One run. Times in seconds."""

    stalls: bool
    window: int
    depth: int
    backup_window: int
    epoch_s: float
    detect_s: float
    duration_s: float
    latency_s: float
    encode_s: float
    capture_s: float
    apply_s: float
    synchronise_s: float
    store_stall_s: float  # what a release to the disk may take now and then
    guest_step_s: float
    redial_s: float
    stutter: float
    limit_items: int
    durable: bool  # acknowledgements wait for the secondary's journal
    log_s: float
    shared: bool  # all hosts reach one disk; only who holds its lock may write to it
    mode: str  # epoch, event-tap or adaptive
    taps: frozenset[OutputKind]
    floor_s: float
    anchor: Anchor
    faults: tuple[Fault, ...]

    @property
    def replays(self) -> bool:
        """Whether frames travel with their epoch, and a survivor sends those that may not have left."""
        return self.mode == "event-tap" and OutputKind.NETWORK in self.taps


def draw(random: Random) -> Options:
    """Options of one run. Most runs have one to three faults, some none. In many they come close
    together or right after a certain effect: a protocol is weakest while it answers something else."""
    duration_s = random.uniform(0.15, 0.5)
    count = random.choice((0, 1, 1, 2, 2, 3, 4))
    if random.random() < 0.25:
        kinds = random.choices(ENDINGS, k=max(2, count))
    else:
        kinds = random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    slow = random.random() < 0.2
    faults: list[Fault] = []
    host, effects = random.choice(ANCHORS)
    anchor = Anchor(host, random.choice(effects), random.choice((1, 1, 2, 3)))
    anchored = random.choice((0.0, 0.4, 0.8))
    scene = random.random()
    hung = False
    if scene < 0.08:
        # A survivor's own survivor.
        faults += [Fault(0.02, Kind.JOIN), Fault(random.uniform(0.06, 0.1), Kind.CRASH_PRIMARY)]
        faults += [Fault(random.uniform(0.3, 0.4), Kind.CRASH_PRIMARY)]
        duration_s = 0.5
    elif scene < 0.33:
        # The second session of a primary is where the most has happened before; chance seldom gets there.
        anchor = random.choice(SECOND_SESSION)
        anchored = 0.9
        at_s = random.uniform(0.05, 0.1)
        faults += [Fault(at_s, Kind.CRASH_SECONDARY), Fault(at_s + 0.01, Kind.JOIN)]
        duration_s = max(duration_s, 0.35)
    elif scene < 0.38:
        # A host hangs while it lets an epoch out, and comes back when another has taken over.
        hung = True
        anchor = Anchor("alpha", "Release", random.randint(1, 4))
        hangs_s = random.uniform(0.12, 0.3)
        faults.append(Fault(random.uniform(0, 0.004), Kind.FREEZE, hangs_s, host="alpha", anchored=True))
    burst_s = random.choice((0.002, 0.02))
    for kind in kinds:
        if random.random() < anchored:
            at_s = random.uniform(0, burst_s)
            faults.append(replace(_fault(random, kind, at_s), anchored=True))
        else:
            faults.append(_fault(random, kind, random.uniform(0, duration_s)))
    return Options(
        stalls=random.random() < 0.45,
        window=random.randint(1, 3),
        depth=random.randint(1, 3),
        backup_window=random.choice((3, 4, 8)),
        epoch_s=random.choice((0.008, 0.015, 0.025)),
        detect_s=random.choice((0.04, 0.06, 0.1)),
        duration_s=duration_s,
        latency_s=random.choice((0.0003, 0.001, 0.004)),
        encode_s=random.choice((0.0005, 0.002, 0.006)),
        capture_s=random.choice((0.001, 0.004)),
        apply_s=0.02 if slow else random.choice((0.0005, 0.003)),
        synchronise_s=random.choice((0.002, 0.01, 0.05)),
        guest_step_s=random.choice((0.001, 0.002, 0.004)),
        redial_s=random.uniform(0.01, 0.04),
        stutter=random.choice((0.0, 0.05, 0.3)),
        limit_items=random.choice((4, 8, 20, 100)),
        anchor=anchor,
        faults=tuple(faults),
        store_stall_s=random.choice((0.0, 0.0, 0.0, 0.3)),
        durable=random.random() < 0.3,
        log_s=random.choice((0.0002, 0.002, 0.01)),
        shared=random.random() < (0.7 if hung else 0.25),
        mode=random.choice(("epoch", "epoch", "event-tap", "adaptive")),
        taps=frozenset(random.choice(TAPS)),
        floor_s=random.choice((0.0, 0.0, 0.005)),
    )


def _fault(random: Random, kind: Kind, at_s: float) -> Fault:
    host = random.choice(("alpha", "beta"))
    match kind:
        case Kind.KILL_AT_STEP:
            step = random.choice(PRIMARY_STEPS if host == "alpha" else BACKUP_STEPS)
            return Fault(at_s, kind, host=host, step=step, count=random.randint(1, 3))
        case Kind.KILL_AT_EFFECT:
            return Fault(at_s, kind, host=host, count=random.randint(1, 30))
        case Kind.ANSWER_LOST:
            return Fault(at_s, kind, count=random.randint(1, 2))
        case Kind.STOP_PRIMARY:
            return Fault(at_s, kind, count=random.choice((1, 1, 1, 2)))
        case Kind.CUT | Kind.CUT_ONE_WAY | Kind.WITNESS_AWAY:
            return Fault(at_s, kind, duration_s=random.uniform(0.02, 0.3), host=host)
        case Kind.FREEZE:
            return Fault(at_s, kind, duration_s=random.uniform(0.01, 0.15), host=host)
    return Fault(at_s, kind, host=host)
