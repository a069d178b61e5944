"""remuslike.guest.soft_dirty over a page table that is a model, on any kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from remuslike.errors import MissingToolError
from remuslike.guest.soft_dirty import SOFT_DIRTY, Entries, SoftDirty

PAGES = 8
PRESENT = np.uint64(1 << 63)
SWAPPED = np.uint64(1 << 62)
# What else an entry may say: a frame's number, exclusively mapped, of a file.
NOISE = np.uint64(0x1234 | 1 << 56 | 1 << 61)


class ModelPageTable:
    """Entries as the kernel keeps them."""

    def __init__(self) -> None:
        self.entries = np.zeros(PAGES, np.uint64)
        self.can_stop = True
        self.stands = False
        self.clears = 0
        self.closed = False
        self.refusal: Exception | None = None

    def write(self, *pages: int) -> None:
        self.entries[[*pages]] = PRESENT | NOISE | SOFT_DIRTY

    def swap_out(self, page: int) -> None:
        """As of a private page: the bit stays."""
        self.entries[page] = SWAPPED | NOISE | (self.entries[page] & SOFT_DIRTY)

    def look_at(self, page: int) -> None:
        self.entries[page] |= PRESENT | NOISE

    def drop(self, page: int) -> None:
        self.entries[page] = 0

    def read(self) -> Entries:
        return self.entries

    def clear(self) -> None:
        assert self.stands, "bits may only be forgotten while the process stands still"
        if self.refusal:
            raise self.refusal
        # Not in place: what was read is a copy of what the kernel has.
        self.entries = self.entries & ~SOFT_DIRTY
        self.clears += 1

    @contextmanager
    def stopped(self) -> Iterator[bool]:
        self.stands = self.can_stop
        try:
            yield self.can_stop
        finally:
            self.stands = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def table() -> ModelPageTable:
    return ModelPageTable()


@pytest.fixture
def tracker(table: ModelPageTable) -> SoftDirty:
    """After its first scan."""
    tracker = SoftDirty(table)
    tracker.scan()
    return tracker


def test_the_first_scan_is_of_every_page_whatever_its_entry(table: ModelPageTable) -> None:
    table.write(3)
    found = SoftDirty(table).scan()
    assert found.tolist() == list(range(PAGES))
    assert found.dtype == np.int64


def test_written_pages_are_reported_once(table: ModelPageTable, tracker: SoftDirty) -> None:
    table.write(0, 5, 7)
    found = tracker.scan()
    assert found.tolist() == [0, 5, 7]
    assert found.dtype == np.int64
    assert tracker.scan().tolist() == []


def test_no_other_bit_is_taken_for_a_write(table: ModelPageTable, tracker: SoftDirty) -> None:
    table.look_at(2)
    assert tracker.scan().tolist() == []


def test_a_page_in_swap_keeps_its_bit_and_is_not_taken_for_gone(
    table: ModelPageTable, tracker: SoftDirty
) -> None:
    table.write(1, 2)
    tracker.scan()
    table.write(2)
    table.swap_out(1)
    table.swap_out(2)
    assert tracker.scan().tolist() == [2]


def test_a_page_whose_entry_has_gone_is_reported_once(table: ModelPageTable, tracker: SoftDirty) -> None:
    table.write(4)
    tracker.scan()
    table.drop(4)
    assert tracker.scan().tolist() == [4]
    assert tracker.scan().tolist() == []
    table.look_at(4)
    assert tracker.scan().tolist() == []


def test_nothing_is_forgotten_of_a_process_that_does_not_stop(
    table: ModelPageTable, tracker: SoftDirty
) -> None:
    table.can_stop = False
    table.write(1)
    assert tracker.scan().tolist() == [1]
    table.write(6)
    assert tracker.scan().tolist() == [1, 6]
    table.can_stop = True
    assert tracker.scan().tolist() == [1, 6]
    assert tracker.scan().tolist() == []


def test_a_first_scan_without_a_stop_hides_no_later_write(table: ModelPageTable) -> None:
    table.can_stop = False
    tracker = SoftDirty(table)
    table.write(1)
    assert tracker.scan().tolist() == list(range(PAGES))
    assert table.clears == 0
    table.can_stop = True
    assert tracker.scan().tolist() == [1]


def test_a_refusal_is_passed_on_and_the_process_goes_on(table: ModelPageTable, tracker: SoftDirty) -> None:
    table.refusal = MissingToolError("no")
    table.write(1)
    with pytest.raises(MissingToolError):
        tracker.scan()
    assert not table.stands
    table.refusal = None
    assert tracker.scan().tolist() == [1]


def test_close_closes_the_table(table: ModelPageTable, tracker: SoftDirty) -> None:
    tracker.close()
    assert table.closed
