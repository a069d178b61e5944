"""What every dirty-page tracker must do: no page that a process has written is ever missed.

A property knows a tracker only by `scan()`, and the process by `WritingProcess`. It fails by an assertion.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import numpy as np
from fakes.writing_process import WritingProcess

from remuslike.engine.ports import Indices
from remuslike.errors import GuestError


class Tracker(Protocol):
    """The pages written since the last scan, ascending; they count as clean from then on."""

    def scan(self) -> Indices: ...


def nothing() -> None:
    """What happens in the middle of most scans."""


class OpenTracker(Protocol):
    """A tracker to be held to the suite."""

    def __call__(
        self, process: WritingProcess, amid: Callable[[], None] = nothing
    ) -> AbstractContextManager[Tracker]:
        """`amid` is called in each scan, where the tracker has read what was written and has not yet
        forgotten it; of one that does both at once, just before."""
        ...


Property = Callable[[OpenTracker], None]
PROPERTIES: list[Property] = []

MAPPINGS: Sequence[Literal["shared", "private", "anonymous"]] = ("shared", "private", "anonymous")


def conformant(check: Property) -> Property:
    """Make `check` a part of the suite."""
    PROPERTIES.append(check)
    return check


def assert_found(found: Indices, written: Sequence[int], page_count: int) -> None:
    """Every written page is there, once, in ascending order, and all are pages of the region."""
    assert found.dtype == np.int64
    assert found.ndim == 1
    assert np.all(np.diff(found) > 0)
    assert not len(found) or 0 <= found[0] <= found[-1] < page_count
    assert set(written) <= set(found.tolist())


@conformant
def the_first_scan_reports_every_page(open_tracker: OpenTracker) -> None:
    with WritingProcess(300) as process, open_tracker(process) as tracker:
        assert tracker.scan().tolist() == list(range(300))


@conformant
def populated_before_or_not_every_page_is_in_the_first_scan(open_tracker: OpenTracker) -> None:
    with WritingProcess(64) as process:
        process.write(range(0, 64, 3), 1)
        with open_tracker(process) as tracker:
            assert tracker.scan().tolist() == list(range(64))


@conformant
def what_nobody_writes_is_not_reported(open_tracker: OpenTracker) -> None:
    with WritingProcess(300) as process, open_tracker(process) as tracker:
        tracker.scan()
        assert tracker.scan().tolist() == []
        process.write([7], 1)
        assert tracker.scan().tolist() == [7]
        assert tracker.scan().tolist() == []


@conformant
def written_pages_are_reported(open_tracker: OpenTracker) -> None:
    with WritingProcess(300) as process, open_tracker(process) as tracker:
        tracker.scan()
        for value, pages in enumerate(([0], [299], [5, 6, 7], range(0, 300, 2), range(300)), 1):
            process.write(pages, value)
            assert_found(tracker.scan(), pages, 300)


@conformant
def a_page_written_again_is_reported_again(open_tracker: OpenTracker) -> None:
    with WritingProcess(16) as process, open_tracker(process) as tracker:
        tracker.scan()
        for value in range(1, 20):
            process.write([3, 4], value)
            assert_found(tracker.scan(), [3, 4], 16)


@conformant
def a_page_first_populated_by_its_write_is_reported(open_tracker: OpenTracker) -> None:
    with WritingProcess(300) as process, open_tracker(process) as tracker:
        tracker.scan()
        process.write([250], 1)
        assert_found(tracker.scan(), [250], 300)


@conformant
def a_page_that_is_only_read_is_not_reported(open_tracker: OpenTracker) -> None:
    with WritingProcess(300) as process, open_tracker(process) as tracker:
        process.write([3, 4], 1)
        tracker.scan()
        process.read([3, 200, 201])  # the latter are populated by it
        assert tracker.scan().tolist() == []
        process.write([4, 201], 2)
        assert tracker.scan().tolist() == [4, 201]


@conformant
def a_page_dropped_and_written_again_is_reported(open_tracker: OpenTracker) -> None:
    with WritingProcess(32) as process, open_tracker(process) as tracker:
        process.write(range(32), 1)
        tracker.scan()
        process.drop(9)
        tracker.scan()
        process.write([9], 2)
        assert_found(tracker.scan(), [9], 32)


@conformant
def the_same_byte_written_again_is_a_write(open_tracker: OpenTracker) -> None:
    with WritingProcess(8) as process, open_tracker(process) as tracker:
        process.write([2], 1)
        tracker.scan()
        process.write([2], 1)
        assert_found(tracker.scan(), [2], 8)


@conformant
def several_threads_write_and_none_is_missed(open_tracker: OpenTracker) -> None:
    with WritingProcess(2048) as process, open_tracker(process) as tracker:
        tracker.scan()
        for seed in range(5):
            pages = sorted(random.Random(seed).sample(range(2048), 700))
            process.write(pages, seed + 1, threads=4)
            assert_found(tracker.scan(), pages, 2048)


@conformant
def pages_of_a_private_mapping_are_reported(open_tracker: OpenTracker) -> None:
    with WritingProcess(300, mapping="private") as process:
        process.write([8, 9], 1)
        with open_tracker(process) as tracker:
            assert tracker.scan().tolist() == list(range(300))
            process.read([250])
            assert tracker.scan().tolist() == []
            for value, page in enumerate((8, 250, 299), 2):
                process.write([page], value)
                assert tracker.scan().tolist() == [page]


@conformant
def what_is_written_amid_a_scan_is_in_it_or_in_the_next(open_tracker: OpenTracker) -> None:
    for mapping in MAPPINGS:
        with WritingProcess(64, mapping=mapping) as process:
            pending: list[int] = []

            def write_the_pending(process: WritingProcess = process, pending: list[int] = pending) -> None:
                if pending:
                    process.begin_write([pending[0]], 1)
                    process.wait_finished_or_stopped()

            with open_tracker(process, amid=write_the_pending) as tracker:
                tracker.scan()
                for page in (0, 31, 63):
                    pending.append(page)
                    found = set(tracker.scan().tolist())
                    pending.clear()
                    process.finish()
                    found |= set(tracker.scan().tolist())
                    assert page in found, f"{mapping}: page {page} was written amid a scan and never reported"


@conformant
def what_is_written_between_scan_and_copy_is_in_the_next_scan(open_tracker: OpenTracker) -> None:
    """The copy that a pause-less synchronisation makes: scan, then read while the process writes on."""
    for mapping in MAPPINGS:
        with WritingProcess(256, mapping=mapping) as process, open_tracker(process) as tracker:
            copy = process.snapshot()
            for value in range(1, 40):
                process.begin_write(range(256), value, threads=3)
                dirty = tracker.scan()
                copy[dirty] = process.snapshot()[dirty]
                process.finish()
            dirty = tracker.scan()
            copy[dirty] = process.snapshot()[dirty]
            assert np.array_equal(copy, process.snapshot()), (
                f"{mapping}: a page was written, and not reported"
            )


@conformant
def random_rounds_keep_a_copy_exact(open_tracker: OpenTracker) -> None:
    for seed in range(3):
        chance = random.Random(seed)
        with WritingProcess(512) as process, open_tracker(process) as tracker:
            copy = np.zeros_like(process.pages)
            for number in range(30):
                pages = chance.sample(range(512), chance.randrange(1, 200))
                process.write(pages, number % 250 + 1, threads=chance.randrange(1, 4))
                dirty = tracker.scan()
                assert number == 0 or set(dirty.tolist()) <= set(pages), f"seed={seed} round={number}"
                copy[dirty] = process.pages[dirty]
                assert np.array_equal(copy, process.pages), f"seed={seed} round={number}"


@conformant
def a_process_that_is_gone_is_named(open_tracker: OpenTracker) -> None:
    """As the guest's error, which the daemons expect: QEMU may die at any instant."""
    with WritingProcess(16) as process, open_tracker(process) as tracker:
        tracker.scan()
        process.kill()
        try:
            found = tracker.scan()
        except GuestError as error:
            assert str(error) == f"QEMU (process {process.pid}) is gone"
        else:
            raise AssertionError(f"a process that is gone was scanned: {found.tolist()}")


@conformant
def more_ranges_than_one_call_takes_are_all_reported(open_tracker: OpenTracker) -> None:
    page_count = 2 * 66_000  # PAGEMAP_SCAN: 65,536 ranges a call
    with WritingProcess(page_count) as process, open_tracker(process) as tracker:
        tracker.scan()
        chosen = np.arange(0, page_count, 2)
        process.write(range(0, page_count, 2), 1)
        assert np.array_equal(np.intersect1d(tracker.scan(), chosen), chosen)
        assert len(tracker.scan()) == 0
