"""What a run is made of: drawn once from its seed, printed by a trace."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random

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
    Kind.CRASH_PRIMARY: 4,
    Kind.CRASH_SECONDARY: 3,
    Kind.KILL_AT_STEP: 8,
    Kind.KILL_AT_EFFECT: 5,
    Kind.CUT: 5,
    Kind.CUT_ONE_WAY: 5,
    Kind.PARTITION: 3,
    Kind.RESET: 5,
    Kind.WITNESS_AWAY: 4,
    Kind.ANSWER_LOST: 3,
    Kind.STORE_FAILS: 2,
    Kind.APPLY_FAILS: 2,
    Kind.ACTIVATION_FAILS: 1,
    Kind.STOP_PRIMARY: 4,
    Kind.STOP_SECONDARY: 2,
    Kind.POWER_OFF: 3,
    Kind.QEMU_DIES: 2,
    Kind.STANDBY_DIES: 1,
    Kind.FREEZE: 4,
    Kind.JOIN: 4,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`at_s` into the run; `duration_s` for what passes; `host`, `step`, `count` where the kind has them."""

    at_s: float
    kind: Kind
    duration_s: float = 0.0
    host: str = ""
    step: str = ""
    count: int = 0


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
    guest_step_s: float
    redial_s: float
    stutter: float
    limit_items: int
    faults: tuple[Fault, ...]


def draw(random: Random) -> Options:
    """Options of one run. Most runs have one to three faults, some none, and in many they come close
    together, since a protocol is weakest while it answers the fault before."""
    duration_s = random.uniform(0.15, 0.5)
    count = random.choice((0, 1, 1, 2, 2, 3, 4))
    kinds = random.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    slow = random.random() < 0.2
    burst_s = random.choice((0.0, 0.0, 0.005, 0.05))
    burst_at_s = random.uniform(0.02, duration_s)

    def when() -> float:
        if burst_s:
            return burst_at_s + random.uniform(0, burst_s)
        return random.uniform(0.0, duration_s)

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
        faults=tuple(sorted((_fault(random, kind, when()) for kind in kinds), key=lambda f: f.at_s)),
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
