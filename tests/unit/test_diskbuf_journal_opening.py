"""Opening, recovering and describing a journal, and every reason to refuse it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from diskbuf_fakes import FakeStore

from diskbuf.errors import (
    JournalFormatError,
    JournalInUseError,
    JournalMismatchError,
    JournalOpenError,
    StoreIOError,
)
from diskbuf.extents import Extent
from diskbuf.journal import Journal, recover_journal
from diskbuf.journalfile import PreallocatedFile
from diskbuf.journalformat import BLOCK_BYTES, HEADER_BYTES, RING_OFFSET, encode_superblock
from diskbuf.recovery import Recovered, describe_journal, read_superblock

STORE_BYTES = 1 << 20
CAPACITY_BYTES = 64 * BLOCK_BYTES


def data(offset: int, value: int, length: int = 1000) -> tuple[Extent, ...]:
    return (Extent.of_data(offset, bytes([value]) * length),)


def open_journal(path: Path, store: FakeStore, capacity_bytes: int = CAPACITY_BYTES) -> Journal:
    return Journal.open(path, store, capacity_bytes=capacity_bytes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(STORE_BYTES)


@pytest.fixture
def left(path: Path, store: FakeStore) -> Path:
    """The journal of a process that died with epochs 1 to 3 durable and only the first applied."""
    journal = open_journal(path, store)
    journal.log_all([(epoch, data(epoch * 4096, epoch)) for epoch in (1, 2, 3)])
    journal.apply(1)
    journal.close()
    return path


def test_a_new_journal_is_allocated_at_once(path: Path, store: FakeStore) -> None:
    open_journal(path, store).close()
    assert path.stat().st_size == RING_OFFSET + CAPACITY_BYTES
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert [entry.name for entry in path.parent.iterdir()] == ["journal"]


def test_what_a_dead_process_left_is_applied(left: Path, store: FakeStore) -> None:
    progress: list[tuple[int, int]] = []
    journal = Journal.open(
        left,
        store,
        capacity_bytes=CAPACITY_BYTES,
        on_progress=lambda done_bytes, total_bytes: progress.append((done_bytes, total_bytes)),
    )
    journal.close()
    assert [store.image[epoch * 4096] for epoch in (1, 2, 3)] == [1, 2, 3]
    assert journal.recovered == Recovered(records=3, bytes=3 * BLOCK_BYTES, epoch=3)
    assert progress == [(count * BLOCK_BYTES, 3 * BLOCK_BYTES) for count in (1, 2, 3)]
    assert store.operations[-1] == ("sync",)
    assert recover_journal(left, store) == Recovered(0, 0, None)


def test_a_recovery_that_fails_is_repeated(left: Path, store: FakeStore) -> None:
    store.failure = StoreIOError("failed by design")
    with pytest.raises(StoreIOError):
        recover_journal(left, store)
    store.failure = None
    assert recover_journal(left, store).records == 3
    assert store.image[3 * 4096] == 3


def test_a_torn_record_ends_the_recovery(left: Path, store: FakeStore) -> None:
    damage(left, RING_OFFSET + BLOCK_BYTES + HEADER_BYTES + 500)
    described = describe_journal(left)
    assert ([record.epoch for record in described.records], described.torn) == ([1], True)
    assert recover_journal(left, store) == Recovered(1, BLOCK_BYTES, 1)
    assert store.image[2 * 4096] == 0


def test_a_description_changes_nothing(left: Path, store: FakeStore) -> None:
    before = left.read_bytes()
    described = describe_journal(left)
    assert left.read_bytes() == before
    assert (described.store_uri, described.store_bytes) == (store.uri, STORE_BYTES)
    assert (described.capacity_bytes, described.used_bytes) == (CAPACITY_BYTES, 3 * BLOCK_BYTES)
    assert [(record.epoch, record.extents, record.data_bytes) for record in described.records] == [
        (epoch, 1, 1000) for epoch in (1, 2, 3)
    ]
    assert not described.torn
    assert not described.in_use


def test_a_journal_is_grown_as_configured_and_never_shrunk(left: Path, store: FakeStore) -> None:
    open_journal(left, store, 2 * CAPACITY_BYTES).close()
    assert describe_journal(left).capacity_bytes == 2 * CAPACITY_BYTES
    assert store.image[3 * 4096] == 3
    open_journal(left, store, BLOCK_BYTES).close()
    assert describe_journal(left).capacity_bytes == 2 * CAPACITY_BYTES


def test_much_is_retired_beside_the_commits(path: Path, store: FakeStore) -> None:
    journal = open_journal(path, store)
    journal.log(1, data(0, 1, CAPACITY_BYTES // 2))
    while store.entered.acquire(blocking=False):
        pass
    journal.apply(1)
    for _ in ("write", "sync"):
        assert store.entered.acquire(timeout=10)
    journal.close()
    assert store.operations[-1] == ("sync",)
    assert journal.statistics().retirements == 1
    assert describe_journal(path).records == ()


def test_a_journal_in_use_is_refused(path: Path, store: FakeStore) -> None:
    journal = open_journal(path, store)
    with pytest.raises(JournalInUseError, match="in use already, by another process"):
        open_journal(path, store)
    assert describe_journal(path).in_use
    journal.close()
    assert not describe_journal(path).in_use


def test_a_journal_of_another_store_is_refused(left: Path, store: FakeStore) -> None:
    other = FakeStore(STORE_BYTES)
    other.uri = "other:"
    with pytest.raises(JournalMismatchError, match=f"belongs to store {store.uri}, not to other:"):
        open_journal(left, other)
    assert other.operations == []


def test_a_store_of_another_size_is_refused(left: Path) -> None:
    other = FakeStore(STORE_BYTES + 512)
    with pytest.raises(JournalMismatchError, match=f"{STORE_BYTES} bytes .* has {STORE_BYTES + 512}"):
        open_journal(left, other)
    assert other.operations == []


@pytest.mark.parametrize("length", [0, 100, RING_OFFSET - 1])
def test_a_file_too_short_is_no_journal(path: Path, store: FakeStore, length: int) -> None:
    path.write_bytes(bytes(length))
    with pytest.raises(JournalFormatError, match=f"not a journal: it has {length} bytes"):
        open_journal(path, store)
    assert path.stat().st_size == length


def test_garbage_is_no_journal(path: Path, store: FakeStore) -> None:
    path.write_bytes(b"garbage" * 10_000)
    with pytest.raises(JournalFormatError, match="neither of its first two blocks"):
        open_journal(path, store)
    assert path.read_bytes() == b"garbage" * 10_000


def test_a_truncated_journal_is_refused_with_both_lengths(left: Path, store: FakeStore) -> None:
    length = RING_OFFSET + BLOCK_BYTES
    os.truncate(left, length)
    with pytest.raises(JournalFormatError, match=f"has {length} bytes, but {RING_OFFSET + CAPACITY_BYTES}"):
        open_journal(left, store)


def test_a_whole_record_that_makes_no_sense_is_no_torn_one(left: Path, store: FakeStore) -> None:
    """Somebody's defect, not a crash: nothing of it is applied."""
    shrunk = FakeStore(STORE_BYTES)
    shrunk.uri = store.uri
    patch_store_size(left, 2 * 4096)
    shrunk.image = bytearray(2 * 4096)
    with pytest.raises(JournalFormatError, match="record of epoch 2 is whole, but"):
        recover_journal(left, shrunk)


@pytest.mark.parametrize("kind", ["directory", "missing directory", "device"])
def test_what_can_not_be_a_journal_is_named(tmp_path: Path, store: FakeStore, kind: str) -> None:
    path = {
        "directory": tmp_path,
        "missing directory": tmp_path / "missing" / "journal",
        "device": Path("/dev/null"),
    }[kind]
    with pytest.raises(JournalOpenError, match=str(path)):
        open_journal(path, store)


def test_recovery_makes_no_journal(path: Path, store: FakeStore) -> None:
    with pytest.raises(JournalOpenError, match="No such file"):
        recover_journal(path, store)
    with pytest.raises(JournalOpenError, match="No such file"):
        describe_journal(path)
    assert not path.exists()


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def patch_store_size(path: Path, size_bytes: int) -> None:
    """Rewrite the superblock that counts, as if the journal had been made for a store of this size."""
    file = PreallocatedFile.open(path)
    superblock = replace(read_superblock(file), store_bytes=size_bytes)
    file.write(superblock.slot_offset, [encode_superblock(superblock)])
    file.close()
