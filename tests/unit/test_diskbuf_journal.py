"""What a caller sees of a journal, on real files; what a crash leaves is the matter of tests/crash."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from diskbuf_fakes import FakeStore

from diskbuf.errors import JournalFullError, JournalOrderError, StoreFullError, StoreIOError
from diskbuf.extents import Bytes, Extent, Kind
from diskbuf.journal import Journal, format_head, new_superblock
from diskbuf.journalfile import PreallocatedFile
from diskbuf.journalformat import BLOCK_BYTES
from diskbuf.recovery import describe_journal

STORE_BYTES = 1 << 20
CAPACITY_BYTES = 8 * BLOCK_BYTES


def never() -> bool:
    return False


def data(offset: int, value: int, length: int = 1000) -> tuple[Extent, ...]:
    return (Extent.of_data(offset, bytes([value]) * length),)


class FailingFile:
    """A `JournalFile` that passes everything on to a real one, or fails where it is told to."""

    def __init__(self, file: PreallocatedFile) -> None:
        self._file = file
        self.failing: set[str] = set()
        self.syncs = 0

    def _check(self, operation: str) -> None:
        if operation in self.failing:
            raise StoreIOError(f"{operation} failed by design")

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def read(self, offset: int, target: memoryview) -> None:
        self._file.read(offset, target)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self._check("write")
        self._file.write(offset, pieces)

    def sync(self) -> None:
        self._check("sync")
        self.syncs += 1
        self._file.sync()

    def forget_cached(self) -> None:
        self._file.forget_cached()

    def extend(self, start: int, end: int) -> None:
        self._check("extend")
        self._file.extend(start, end)

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(STORE_BYTES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def file(path: Path, store: FakeStore) -> FailingFile:
    superblock = new_superblock(store, CAPACITY_BYTES)
    return FailingFile(PreallocatedFile.create(path, format_head(superblock), superblock.file_bytes))


@pytest.fixture
def journal(file: FailingFile, store: FakeStore) -> Iterator[Journal]:
    journal = Journal(file, store)
    yield journal
    journal.close()


def test_a_committed_epoch_is_in_the_store(journal: Journal, store: FakeStore) -> None:
    extents = (*data(0, 7), Extent(4096, 100, Kind.HOLE), Extent(8192, 100, Kind.ZERO))
    store.image[:] = bytes([255]) * STORE_BYTES
    assert journal.commit(1, extents, never)
    assert store.image[:1001] == bytes([7]) * 1000 + b"\xff"
    assert store.image[4096:4197] == store.image[8192:8293] == bytes(100) + b"\xff"
    assert ("hole", 4096, 100) in store.operations
    assert ("zero", 8192, 100) in store.operations
    assert journal.statistics().committed_epochs == 1


def test_an_epoch_costs_one_sync(journal: Journal, file: FailingFile, store: FakeStore) -> None:
    journal.commit(1, data(0, 1), never)
    before = file.syncs, store.operations.count(("sync",))
    journal.commit(2, data(0, 2), never)
    assert (file.syncs, store.operations.count(("sync",))) == (before[0] + 1, before[1])


def test_epochs_logged_together_cost_one_sync(journal: Journal, file: FailingFile) -> None:
    before = file.syncs
    journal.log_all([(epoch, data(0, epoch)) for epoch in (1, 2, 3)])
    assert file.syncs == before + 1
    assert journal.statistics().waiting_epochs == (1, 2, 3)


def test_an_empty_epoch_takes_no_room(journal: Journal, file: FailingFile) -> None:
    before = file.syncs
    assert journal.commit(1, (), never)
    journal.log(2, ())
    journal.apply(2)
    assert (file.syncs, journal.statistics().used_bytes) == (before, 0)


def test_an_empty_epoch_is_applied_while_a_later_one_waits(journal: Journal, store: FakeStore) -> None:
    journal.log_all([(1, data(0, 1)), (2, ()), (3, data(0, 3))])
    assert journal.commit(2, (), never)
    assert (store.image[0], journal.statistics().waiting_epochs) == (1, (3,))


def test_a_logged_epoch_is_committed_while_a_later_one_waits(journal: Journal, store: FakeStore) -> None:
    journal.log_all([(1, data(0, 1)), (2, data(0, 2))])
    assert journal.commit(1, data(0, 1), never)
    assert (store.image[0], journal.statistics().waiting_epochs) == (1, (2,))


def test_stopped_before_anything_happened(journal: Journal, store: FakeStore) -> None:
    assert not journal.commit(1, data(0, 1), lambda: True)
    assert journal.statistics().records == 0
    assert ("write", 0, bytes([1]) * 1000) not in store.operations


def test_a_durable_epoch_is_finished_whatever_stops_it(journal: Journal, store: FakeStore) -> None:
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(bool(asked))
        return asked[-1]

    assert journal.commit(1, (*data(0, 1), *data(8192, 1)), stopped)
    assert store.image[8192] == 1


def test_logged_epochs_reach_the_store_when_applied_in_order(journal: Journal, store: FakeStore) -> None:
    journal.log_all([(1, data(0, 1)), (2, data(0, 2)), (3, data(0, 3))])
    assert store.image[0] == 0
    journal.apply(2)
    assert (store.image[0], journal.statistics().waiting_epochs) == (2, (3,))
    journal.apply(2)
    journal.commit(4, data(4096, 4), never)
    assert (store.image[0], store.image[4096]) == (3, 4)


def test_space_is_used_again_for_ever(journal: Journal, store: FakeStore) -> None:
    for epoch in range(1, 100):
        journal.commit(epoch, data(epoch * 512, epoch % 256, 5000), never)
    statistics = journal.statistics()
    assert statistics.capacity_bytes == CAPACITY_BYTES
    assert statistics.retirements >= 99 * 2 // 8 - 1
    assert store.image[99 * 512] == 99


def test_an_epoch_larger_than_the_ring_makes_it_grow(journal: Journal, store: FakeStore, path: Path) -> None:
    journal.log(1, data(0, 1))
    journal.commit(2, data(0, 2, 100_000), never)
    journal.commit(3, data(1, 3), never)
    assert journal.statistics().capacity_bytes >= 100_000
    assert store.image[:2] == bytes([2, 3])
    described = describe_journal(path)
    assert (described.capacity_bytes, [record.epoch for record in described.records]) == (
        journal.statistics().capacity_bytes,
        [2, 3],
    )


def test_a_journal_that_can_not_grow_changes_nothing(journal: Journal, file: FailingFile) -> None:
    file.failing = {"extend"}
    with pytest.raises(StoreIOError):
        journal.commit(1, data(0, 1, 100_000), never)
    assert journal.commit(2, data(0, 2), never)
    file.failing = set()
    assert journal.commit(3, data(0, 1, 100_000), never)


def test_waiting_epochs_that_fill_the_ring_are_named(journal: Journal) -> None:
    for epoch in (1, 2, 3, 4):
        journal.log(epoch, data(0, epoch, 5000))
    with pytest.raises(JournalFullError, match=r"8192 bytes don't fit .* epochs \[1, 2, 3, 4\] wait"):
        journal.log(5, data(0, 5, 5000))
    journal.apply(1)
    journal.log(5, data(0, 5, 5000))
    assert journal.statistics().waiting_epochs == (2, 3, 4, 5)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_epoch_out_of_order_is_refused(journal: Journal, epoch: int) -> None:
    journal.log(2, data(0, 2))
    with pytest.raises(JournalOrderError, match=rf"epoch {epoch} after \[2\]"):
        journal.commit(epoch, data(0, 9), never)


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_failing_journal_device_leaves_the_epoch_to_be_repeated(
    journal: Journal, file: FailingFile, store: FakeStore, path: Path, operation: str
) -> None:
    journal.commit(1, data(0, 1), never)
    file.failing = {operation}
    for _ in range(2):
        with pytest.raises(StoreIOError):
            journal.commit(2, data(0, 2), never)
    assert store.image[0] == 1
    file.failing = set()
    assert journal.commit(2, data(0, 2), never)
    assert store.image[0] == 2
    assert [record.epoch for record in describe_journal(path).records] == [1, 2]


def test_a_failed_epoch_is_gone_once_another_step_succeeds(
    journal: Journal, file: FailingFile, path: Path
) -> None:
    file.failing = {"sync"}
    with pytest.raises(StoreIOError):
        journal.log_all([(1, data(0, 1)), (2, data(0, 2))])
    file.failing = set()
    assert [record.epoch for record in describe_journal(path).records] == [1, 2]  # for all it knows
    journal.quiesce()
    assert describe_journal(path).records == ()


def test_a_full_store_leaves_a_durable_epoch_to_be_repeated(
    journal: Journal, store: FakeStore, file: FailingFile
) -> None:
    journal.commit(1, data(0, 1), never)
    store.failure = StoreFullError("full by design")
    with pytest.raises(StoreFullError):
        journal.commit(2, data(0, 2), never)
    assert journal.statistics().waiting_epochs == (2,)
    store.failure = None
    syncs = file.syncs
    assert journal.commit(2, data(0, 2), never)
    assert (store.image[0], file.syncs) == (2, syncs)


def test_what_a_failed_store_sync_may_have_lost_is_written_again(journal: Journal, store: FakeStore) -> None:
    journal.commit(1, data(0, 1), never)
    journal.commit(2, data(500, 2), never)
    store.failure = StoreIOError("sync failed by design")
    with pytest.raises(StoreIOError):
        journal.retire()
    store.failure = None
    store.image[:2000] = bytes(2000)  # what Linux may do to pages that it couldn't write
    store.operations.clear()
    journal.retire()
    assert store.image[:1501] == bytes([1]) * 500 + bytes([2]) * 1000 + b"\0"
    # Each byte once: a reader meanwhile sees no older epoch.
    assert store.operations == [("write", 0, bytes([1]) * 500 + bytes([2]) * 1000), ("sync",)]
    assert journal.statistics().used_bytes == 0


def test_the_next_commit_tells_of_a_retirement_that_failed(journal: Journal, store: FakeStore) -> None:
    journal.commit(1, data(0, 1), never)
    store.failure = StoreIOError("sync failed by design")
    with pytest.raises(StoreIOError):
        journal.retire()
    with pytest.raises(StoreIOError):
        journal.commit(2, data(0, 2), never)
    store.failure = None
    assert journal.commit(2, data(0, 2), never)
    assert journal.statistics().records == 1


def test_writes_past_the_journal_that_were_lost_stay_lost(journal: Journal, store: FakeStore) -> None:
    """Nothing knows them any more, and a second sync would say that all is well."""
    store.failure = StoreIOError("sync failed by design")
    with pytest.raises(StoreIOError, match="before its journal began may be lost"):
        journal.commit(1, data(0, 1), never)
    store.failure = None
    with pytest.raises(StoreIOError, match="before its journal began may be lost"):
        journal.commit(1, data(0, 1), never)
    assert not any(operation[0] == "write" for operation in store.operations)


def test_the_first_epoch_after_others_wrote_waits_for_a_sync(journal: Journal, store: FakeStore) -> None:
    for epoch in (1, 2):
        store.write(0, [b"past the journal"])
        store.operations.clear()
        journal.commit(epoch, data(0, epoch), never)
        assert store.operations[0] == ("sync",)
        journal.quiesce()


def test_an_epoch_without_changes_waits_for_what_others_wrote(journal: Journal, store: FakeStore) -> None:
    """A flush that was answered in it covers that."""
    journal.commit(1, (), never)
    assert store.operations == [("sync",)]
    journal.commit(2, (), never)
    assert store.operations == [("sync",)], "others wrote nothing since"
    journal.quiesce()
    journal.log(3, ())
    assert store.operations == [("sync",), ("sync",)]
    journal.quiesce()
    store.failure = StoreIOError("broken by design")
    with pytest.raises(StoreIOError, match="before its journal began may be lost"):
        journal.commit(4, (), never)


def test_quiesce_applies_and_leaves_nothing_to_recover(
    journal: Journal, store: FakeStore, path: Path
) -> None:
    journal.log(1, data(0, 1))
    journal.quiesce()
    assert (store.image[0], journal.statistics().used_bytes, describe_journal(path).records) == (1, 0, ())
    assert store.operations[-1] == ("sync",)


def test_an_epoch_is_logged_while_another_is_applied(journal: Journal, store: FakeStore) -> None:
    journal.log(1, data(0, 1))
    while store.entered.acquire(blocking=False):
        pass
    store.stall()
    thread = threading.Thread(target=journal.apply, args=(1,))
    thread.start()
    try:
        assert store.entered.acquire(timeout=10)
        journal.log(2, data(0, 2))
        assert journal.statistics().waiting_epochs == (1, 2)
    finally:
        store.proceed()
        thread.join()
    assert journal.statistics().waiting_epochs == (2,)


def test_commits_go_on_while_the_store_syncs(journal: Journal, store: FakeStore) -> None:
    journal.commit(1, data(0, 1), never)
    while store.entered.acquire(blocking=False):
        pass
    store.stall()
    thread = threading.Thread(target=journal.retire)
    thread.start()
    try:
        assert store.entered.acquire(timeout=10)
        journal.log(2, data(0, 2))
    finally:
        store.proceed()
        thread.join()
    statistics = journal.statistics()
    assert (statistics.records, statistics.waiting_epochs) == (1, (2,))
