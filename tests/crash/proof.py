"""Takes every crash point of a seed's history, recovers what is left, and compares it with what must be.

A history is a few lives, one after another: each begins with what some crash left of the one before. A life
begins with a recovery, so that crashes in the middle of one, and of the next one, are among the points.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from diskbuf.journal import Journal, format_head, new_superblock
from diskbuf.journalformat import BLOCK_BYTES

from .disk import JOURNAL, STORE, Disk, History, RecordedJournal, RecordedStore, choices
from .oracle import Knowledge
from .workload import STORE_BYTES, Life

LIVES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """`points`: crashes that were recovered and compared, no two of one length of the log alike."""

    seed: int
    points: int
    performed: Counter[str]
    problem: str | None

    def __str__(self) -> str:
        return f"{self.problem}; again with: python -m tests.crash --seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Crash:
    """What one left, and the store that must be recovered from it."""

    journal: bytes
    store: bytes
    expected: bytes


def prove(seed: int, journal_class: type[Journal] = Journal) -> Outcome:
    """Go through a seed's history; stops at the first problem."""
    random = Random(seed)
    crash = _new_disk(random)
    points = 0
    performed: Counter[str] = Counter()
    for number in range(LIVES):
        try:
            life = Life(journal_class, crash.journal, crash.store, Knowledge(crash.expected), random)
        except Exception as error:
            return Outcome(seed, points, performed, f"life {number}: {type(error).__name__}: {error}")
        performed += life.performed
        chosen, seen = crash, 0
        history = History(life.disk.base)
        for length in range(len(life.disk.log) + 1):
            if length:
                history.add(life.disk.log[length - 1])
            for one in _crashes(life, history, length, random):
                points += 1
                problem = _recover(one, journal_class, random)
                if problem is not None:
                    where = f"life {number}, after {length} of {len(life.disk.log)} operations"
                    return Outcome(seed, points, performed, f"{where}: {problem}")
                weight = 1 + len(history.uncertain(JOURNAL)) ** 2  # the more is under way, the more is left
                seen += weight
                if random.randrange(seen) < weight:
                    chosen = one
        crash = chosen
    return Outcome(seed, points, performed, None)


def _new_disk(random: Random) -> Crash:
    store = random.randbytes(STORE_BYTES)
    capacity_bytes = random.choice([4, 5, 6, 8]) * BLOCK_BYTES
    recorded = RecordedStore(Disk(b"", store, random))
    superblock = new_superblock(recorded, capacity_bytes, journal_id=random.randbytes(16))
    head = format_head(superblock)
    return Crash(head + bytes(capacity_bytes), store, store)


def _crashes(life: Life, history: History, length: int, random: Random) -> list[Crash]:
    knowledge = life.knowledge(length)
    crashes: dict[tuple[bytes, bytes], Crash] = {}
    for left in choices([*history.uncertain(JOURNAL), *history.uncertain(STORE)], random):
        journal = history.image(JOURNAL, lambda index, _, left=left: left[index])
        store = history.image(STORE, lambda index, _, left=left: left[index])
        crashes[journal, store] = Crash(journal, store, knowledge.expected(journal, left))
    return list(crashes.values())


def _recover(crash: Crash, journal_class: type[Journal], random: Random) -> str | None:
    disk = Disk(crash.journal, crash.store, random)
    try:
        journal_class(RecordedJournal(disk), RecordedStore(disk))
    except Exception as error:
        return f"recovery failed: {type(error).__name__}: {error}"
    found = bytes(disk.images[STORE])
    if found == crash.expected:
        return None
    wrong = [index for index in range(STORE_BYTES) if found[index] != crash.expected[index]]
    return f"{len(wrong)} bytes of the store are wrong from {wrong[0]} to {wrong[-1]}"
