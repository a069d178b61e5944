"""A process that commits epochs to real files is killed again and again, and goes on where it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

from diskbuf import FileStore
from diskbuf.extents import Extent, ExtentMap, Kind
from diskbuf.journal import Journal, recover_journal

KILLS = 50
STORE_BYTES = 256 << 10
CAPACITY_BYTES = 128 << 10  # a few epochs: laps and retirements are among what is killed
NUMBER_BYTES = 8  # where an epoch writes its own number


def epoch_extents(epoch: int) -> tuple[Extent, ...]:
    """What an epoch writes, drawn from its number."""
    random = Random(epoch)
    changes = ExtentMap()
    for _ in range(random.randrange(1, 6)):
        length = random.randrange(1, 16 << 10)
        offset = random.randrange(NUMBER_BYTES, STORE_BYTES - length)
        if random.random() < 0.25:
            changes.put(Extent(offset, length, random.choice([Kind.ZERO, Kind.HOLE])))
        else:
            changes.put(Extent.of_data(offset, random.randbytes(length)))
    changes.put(Extent.of_data(0, epoch.to_bytes(NUMBER_BYTES, "little")))
    return changes.extents


def commit_for_ever(journal_path: Path, store_path: Path, first: int, report: Callable[[], object]) -> None:
    store = FileStore.open(store_path)
    journal = Journal.open(journal_path, store, capacity_bytes=CAPACITY_BYTES)
    epoch = first
    while True:
        journal.commit(epoch, epoch_extents(epoch), lambda: False)
        report()
        epoch += 1


def run_and_kill(journal_path: Path, store_path: Path, first: int, commits: int) -> int:
    """Kill a process as soon as it has reported so many commits; how many it has reported by then."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            commit_for_ever(journal_path, store_path, first, lambda: os.write(writing, b"."))
        finally:
            os._exit(1)
    os.close(writing)
    try:
        reported = 0
        while reported < commits and (dots := os.read(reading, 1)):
            reported += len(dots)
    finally:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, "the process ended by itself"
    while dots := os.read(reading, 4096):
        reported += len(dots)
    os.close(reading)
    return reported


def test_a_killed_process_leaves_an_epoch_boundary(tmp_path: Path) -> None:
    journal_path, store_path = tmp_path / "journal", tmp_path / "store"
    expected = bytearray(STORE_BYTES)
    store_path.write_bytes(expected)
    epoch = 0
    random = Random(1)
    for _ in range(KILLS):
        reported = run_and_kill(journal_path, store_path, epoch + 1, random.randrange(1, 9))
        store = FileStore.open(store_path)
        recover_journal(journal_path, store)
        store.close()
        found = store_path.read_bytes()
        newest = int.from_bytes(found[:NUMBER_BYTES], "little")
        assert epoch + reported <= newest <= epoch + reported + 1
        while epoch < newest:
            epoch += 1
            for extent in epoch_extents(epoch):
                expected[extent.offset : extent.end] = extent.data or bytes(extent.length)
        assert found == expected
