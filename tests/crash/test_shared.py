"""A disk that two hosts share has no journal: wherever the host that writes to it is lost, what the other one
kept and writes once more must leave it as of the last acknowledged epoch.

The machine that has the disk is lost with it: what was not synced may be there, torn, or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from random import Random

import pytest

from diskbuf import DiskBuffer, SealedWrites
from diskbuf.store import apply_extents
from remuslike.daemon.retained import RetainedOutputs

from .disk import STORE, Disk, History, RecordedStore, choices

SEEDS = range(20)
EPOCHS = 16
STORE_BYTES = 16 << 10
WRITE_BYTES_MAX = 3000
LIMIT_BYTES = 1 << 20
DEPTH = 3


class SharedStore(RecordedStore):
    """As a file: nothing of it is in memory."""

    def read_view(self, _offset: int, _length: int) -> memoryview | None:
        return None


class Event(Enum):
    ACKNOWLEDGED = "acknowledged"
    TOLD = "told"  # that it is released


@dataclass
class Life:
    """Of a primary: what it did to the disk, and by the length of the disk's log, what became of epochs."""

    disk: Disk
    images: list[bytes]  # by epoch
    writes: dict[int, SealedWrites] = field(default_factory=dict)
    events: dict[int, list[tuple[Event, int]]] = field(default_factory=dict)

    def note(self, event: Event, epoch: int) -> None:
        self.events.setdefault(len(self.disk.log), []).append((event, epoch))


async def live(random: Random, *, sync_releases: bool) -> Life:
    """Epochs are written and acknowledged, up to DEPTH before the oldest of them is released."""
    base = random.randbytes(STORE_BYTES)
    life = Life(Disk(b"", base, random), [base])
    buffer = DiskBuffer(
        SharedStore(life.disk), limit_bytes=LIMIT_BYTES, depth=DEPTH, sync_releases=sync_releases
    )
    buffer.hold(1)
    image, oldest = bytearray(base), 1
    for epoch in range(1, EPOCHS + 1):
        for _ in range(random.randrange(4)):
            length = random.randrange(1, WRITE_BYTES_MAX)
            offset = random.randrange(STORE_BYTES - length)
            if random.random() < 0.3:
                image[offset : offset + length] = bytes(length)
                buffer.zero(offset, length, punch_hole=True)
            else:
                image[offset : offset + length] = data = random.randbytes(length)
                buffer.write(offset, data)
        buffer.seal(epoch)
        life.images.append(bytes(image))
        life.writes[epoch] = buffer.sealed(epoch)
        life.note(Event.ACKNOWLEDGED, epoch)
        while oldest <= epoch and (epoch - oldest + 1 == DEPTH or random.random() < 0.4):
            await buffer.release(oldest)
            life.note(Event.TOLD, oldest)
            oldest += 1
    return life


def moments(life: Life) -> Iterator[tuple[History, RetainedOutputs, bytes]]:
    """Each moment at which the host may be lost: the disk's history, what the other host has kept, and the
    disk that must come of them."""
    history, retained, expected = History(life.disk.base), RetainedOutputs(), life.images[0]
    for length in range(len(life.disk.log) + 1):
        if length:
            history.add(life.disk.log[length - 1])
        yield history, retained, expected
        for event, epoch in life.events.get(length, []):
            if event is Event.TOLD:
                retained.forget(epoch)
            else:
                retained.keep(epoch, [(0, life.writes[epoch])], [])
                expected = life.images[epoch]
            yield history, retained, expected


def replayed(image: bytes, retained: RetainedOutputs) -> bytes:
    """What the survivor makes of the disk that it finds."""
    disk = Disk(b"", image, Random(0))
    for _, _, writes in retained.writes():
        apply_extents(RecordedStore(disk), writes.extents, lambda: False)
    return bytes(disk.images[STORE])


async def crashes(seed: int, *, sync_releases: bool = True) -> tuple[int, int]:
    """How many crashes a seed's life was given, and how many of them left another disk than they must."""
    random = Random(seed)
    life = await live(random, sync_releases=sync_releases)
    count = wrong = 0
    for history, retained, expected in moments(life):
        for left in choices(history.uncertain(STORE), random):
            image = history.image(STORE, lambda index, _, left=left: left[index])
            count += 1
            wrong += replayed(image, retained) != expected
    return count, wrong


async def test_a_replay_ends_at_the_last_acknowledged_epoch(
    record_property: Callable[[str, object], None],
) -> None:
    points = 0
    for seed in SEEDS:
        count, wrong = await crashes(seed)
        assert not wrong, f"seed {seed}: {wrong} of {count} crashes"
        points += count
    record_property("crashes", points)
    assert points > 5_000


async def caught(*, sync_releases: bool = True) -> bool:
    """Whether any seed shows it."""
    for seed in SEEDS:
        _, wrong = await crashes(seed, sync_releases=sync_releases)
        if wrong:
            return True
    return False


async def test_a_release_that_is_told_before_it_is_durable_is_caught() -> None:
    assert await caught(sync_releases=False)


@pytest.mark.parametrize("forgotten", ["newest", "oldest"])
async def test_a_survivor_that_forgets_is_caught(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = RetainedOutputs.writes
    left_out = slice(None, -1) if forgotten == "newest" else slice(1, None)
    monkeypatch.setattr(RetainedOutputs, "writes", lambda retained: replay(retained)[left_out])
    assert await caught()
