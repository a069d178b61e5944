"""A store in another process comes back without what its journal has applied: readers never see that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

import pytest
from diskbuf_fakes import FakeStore

from diskbuf.buffer import DIGEST_BYTES, DiskBuffer
from diskbuf.errors import StoreIOError
from diskbuf.journal import Journal, format_head, new_superblock
from diskbuf.journalfile import PreallocatedFile
from diskbuf.journalformat import CAPACITY_BYTES_MIN
from diskbuf.store import Allocation

SIZE = 64 << 10


def nothing() -> None:
    pass


class LosingStore(FakeStore):
    """`lose()` is the end of its process: what wasn't synced is gone, and the next sync says so, once."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.cached = False
        self.losses = 0
        self.before_read: Callable[[], None] = nothing
        self._stable = bytes(self.image)
        self._lost = False

    def lose(self) -> None:
        self.image[:] = self._stable
        self._lost = True
        self.losses += 1

    def read(self, offset: int, target: memoryview) -> None:
        super().read(offset, target)
        happens, self.before_read = self.before_read, nothing
        happens()

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        empty = not any(self.image[offset : offset + length])
        return [Allocation(length, hole=empty, zero=empty)]

    def sync(self) -> None:
        super().sync()
        lost, self._lost = self._lost, False
        if lost:
            raise StoreIOError("lost by design")
        self._stable = bytes(self.image)


@pytest.fixture
def store() -> LosingStore:
    return LosingStore()


@pytest.fixture
def journal(tmp_path: Path, store: LosingStore) -> Iterator[Journal]:
    """One that is retired by hand."""
    superblock = new_superblock(store, CAPACITY_BYTES_MIN)
    path = tmp_path / "journal"
    with closing(
        Journal(PreallocatedFile.create(path, format_head(superblock), superblock.file_bytes), store)
    ) as journal:
        yield journal


@pytest.fixture
async def buffer(store: LosingStore, journal: Journal) -> DiskBuffer:
    """With an epoch in the store that isn't stable yet."""
    buffer = DiskBuffer(store, limit_bytes=SIZE, journal=journal)
    buffer.hold(1)
    buffer.write(0, b"new")
    buffer.seal(1)
    await buffer.release(1)
    return buffer


async def test_a_read_after_a_loss_is_of_the_last_epoch(buffer: DiskBuffer, store: LosingStore) -> None:
    store.lose()
    assert buffer.try_read(0, 3) is None
    assert buffer.read(0, 3) == b"new"


async def test_a_read_that_others_mend_meanwhile_begins_again(
    buffer: DiskBuffer, store: LosingStore, journal: Journal
) -> None:
    """It has the older bytes already when the loss is mended, and is none the wiser by the state then."""
    store.lose()
    store.before_read = journal.mend
    assert buffer.read(0, 3) == b"new"


async def test_what_is_allocated_is_as_of_the_last_epoch(buffer: DiskBuffer, store: LosingStore) -> None:
    store.lose()
    assert list(buffer.allocation(0, 512)) == [Allocation(512, hole=False, zero=False)]


async def test_a_standby_is_given_the_last_epoch(buffer: DiskBuffer, store: LosingStore) -> None:
    store.lose()
    digest = await buffer.chunk_digests(0, 1)
    assert digest == blake2b(b"new".ljust(SIZE, b"\0"), digest_size=DIGEST_BYTES).digest()
    store.lose()
    assert (await buffer.read_chunk(0))[:3] == b"new"


async def test_what_is_mended_for_readers_is_written_again_before_it_is_retired(
    buffer: DiskBuffer, store: LosingStore, journal: Journal
) -> None:
    store.lose()
    buffer.read(0, 3)
    with pytest.raises(StoreIOError, match="by design"):
        journal.retire()
    store.lose()
    with pytest.raises(StoreIOError, match="by design"):
        journal.retire()
    journal.retire()
    store.lose()
    assert buffer.read(0, 3) == b"new"
    assert journal.statistics().records == 0


async def test_a_store_that_fails_meanwhile_fails_the_read(buffer: DiskBuffer, store: LosingStore) -> None:
    def fail() -> None:
        store.failure = StoreIOError("broken by design")

    store.lose()
    store.before_read = fail
    with pytest.raises(StoreIOError, match="broken"):
        buffer.read(0, 3)
    store.failure = None
    assert buffer.read(0, 3) == b"new"
