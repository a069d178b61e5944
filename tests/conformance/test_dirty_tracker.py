"""Every dirty-page tracker against the suite, and the suite against a broken one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import dirty_tracker_suite as suite
import pytest
from dirty_tracker_suite import PROPERTIES, OpenTracker, Property, Tracker
from fakes.writing_process import WritingProcess

from remuslike.engine.ports import Indices
from remuslike.guest.dirty import PagemapScan
from remuslike.guest.injection import inject_write_protection

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace another process"),
]


@contextmanager
def open_pagemap_scan(process: WritingProcess) -> Iterator[Tracker]:
    inject_write_protection(process.pid, process.start, process.length)
    with closing(PagemapScan(process.pid, process.start, process.length)) as tracker:
        yield tracker


class ForgetsTheLast:
    """Broken: page 299 is never reported."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def scan(self) -> Indices:
        found = self._tracker.scan()
        kept: Indices = found[found != 299]
        return kept


@contextmanager
def open_broken(process: WritingProcess) -> Iterator[Tracker]:
    with open_pagemap_scan(process) as tracker:
        yield ForgetsTheLast(tracker)


@pytest.mark.parametrize("open_tracker", [pytest.param(open_pagemap_scan, id="pagemap scan")])
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_tracker(open_tracker: OpenTracker, check: Property) -> None:
    check(open_tracker)


@pytest.mark.parametrize("check", [suite.the_first_scan_reports_every_page, suite.written_pages_are_reported])
def test_a_tracker_that_misses_a_page_is_caught(check: Property) -> None:
    with pytest.raises(AssertionError):
        check(open_broken)
