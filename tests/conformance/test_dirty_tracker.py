"""Every dirty-page tracker against the suite, and the suite against broken ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext

import dirty_tracker_suite as suite
import pytest
from dirty_tracker_suite import PROPERTIES, OpenTracker, Property, Tracker, nothing
from fakes.writing_process import WritingProcess

from remuslike.engine.ports import Indices
from remuslike.guest.dirty import PagemapScan
from remuslike.guest.injection import inject_write_protection
from remuslike.guest.page_table import ProcessPageTable
from remuslike.guest.soft_dirty import Entries, SoftDirty

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace another process"),
]


class Before:
    """Something happens before each scan."""

    def __init__(self, tracker: Tracker, happens: Callable[[], None]) -> None:
        self._tracker = tracker
        self._happens = happens

    def scan(self) -> Indices:
        self._happens()
        return self._tracker.scan()


@contextmanager
def open_pagemap_scan(process: WritingProcess, amid: Callable[[], None] = nothing) -> Iterator[Tracker]:
    inject_write_protection(process.pid, process.start, process.length)
    with closing(PagemapScan(process.pid, process.start, process.length)) as tracker:
        yield Before(tracker, amid)


class Amid:
    """A page table in which something happens before bits are cleared."""

    def __init__(self, table: ProcessPageTable, happens: Callable[[], None]) -> None:
        self._table = table
        self._happens = happens

    def read(self) -> Entries:
        return self._table.read()

    def clear(self) -> None:
        self._happens()
        self._table.clear()

    def stopped(self) -> AbstractContextManager[bool]:
        return self._table.stopped()

    def close(self) -> None:
        self._table.close()


class NeverStopped(Amid):
    """Broken: the process runs on."""

    def stopped(self) -> AbstractContextManager[bool]:
        return nullcontext(True)


class NeverCleared(Amid):
    """Broken: all that was ever written stays so."""

    def clear(self) -> None:
        pass


def soft_dirty(kind: type[Amid]) -> OpenTracker:
    @contextmanager
    def open_soft_dirty(process: WritingProcess, amid: Callable[[], None] = nothing) -> Iterator[Tracker]:
        table = ProcessPageTable(process.pid, process.start, process.length)
        with closing(SoftDirty(kind(table, amid))) as tracker:
            yield tracker

    return open_soft_dirty


class ForgetsTheLast:
    """Broken: page 299 is never reported."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def scan(self) -> Indices:
        found = self._tracker.scan()
        kept: Indices = found[found != 299]
        return kept


@contextmanager
def open_broken(process: WritingProcess, amid: Callable[[], None] = nothing) -> Iterator[Tracker]:
    with open_pagemap_scan(process, amid) as tracker:
        yield ForgetsTheLast(tracker)


@pytest.mark.parametrize(
    "open_tracker",
    [
        pytest.param(open_pagemap_scan, id="pagemap scan"),
        pytest.param(soft_dirty(Amid), id="soft-dirty", marks=pytest.mark.lab),
    ],
)
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_tracker(open_tracker: OpenTracker, check: Property) -> None:
    check(open_tracker)


@pytest.mark.parametrize("check", [suite.the_first_scan_reports_every_page, suite.written_pages_are_reported])
def test_a_tracker_that_misses_a_page_is_caught(check: Property) -> None:
    with pytest.raises(AssertionError):
        check(open_broken)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (NeverStopped, suite.what_is_written_amid_a_scan_is_in_it_or_in_the_next),
        (NeverCleared, suite.what_nobody_writes_is_not_reported),
    ],
)
def test_a_broken_page_table_is_caught(broken: type[Amid], check: Property) -> None:
    with pytest.raises(AssertionError):
        check(soft_dirty(broken))
