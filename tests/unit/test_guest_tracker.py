"""remuslike.guest.tracker: which tracker a guest gets, why, and what is said if there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest

from remuslike.config import GuestSettings
from remuslike.engine.ports import Indices
from remuslike.errors import GuestError, MissingToolError
from remuslike.guest.memory import GuestMemory
from remuslike.guest.tracker import KINDS, Kind, open_tracker, require_tracker

Wish = Literal["auto", "pagemap-scan", "soft-dirty"]


class FakeTracker:
    """Tracks nothing, and remembers what it was opened for."""

    inline_pages_max = 1

    def __init__(self, pid: int, start: int, memory: GuestMemory) -> None:
        self.opened_for = (pid, start, memory)

    def scan(self) -> Indices:
        return np.arange(0)

    def close(self) -> None:
        pass


def works() -> None:
    """A probe of a kernel that has it."""


def lacks() -> None:
    raise MissingToolError("not in this kernel")


def refuses(pid: int, start: int, memory: GuestMemory) -> FakeTracker:
    raise MissingToolError("not in this process")


def kind(
    name: str,
    probe: Callable[[], None] = works,
    opener: Callable[[int, int, GuestMemory], FakeTracker] = FakeTracker,
) -> Kind:
    return Kind(name, name.upper(), probe, opener)


def guest(wish: Wish) -> GuestSettings:
    return GuestSettings(memory_mib=16, tracker=wish)


FIRST, SECOND = kind("pagemap-scan"), kind("soft-dirty")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory(1)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("wish", "kinds", "name", "reason"),
    [
        ("auto", [FIRST, SECOND], "pagemap-scan", "this kernel has PAGEMAP-SCAN"),
        ("pagemap-scan", [FIRST, SECOND], "pagemap-scan", "asked for"),
        ("soft-dirty", [FIRST, SECOND], "soft-dirty", "asked for"),
        (
            "auto",
            [kind("pagemap-scan", lacks), SECOND],
            "soft-dirty",
            "pagemap-scan: not in this kernel",
        ),
        (
            "auto",
            [kind("pagemap-scan", opener=refuses), SECOND],
            "soft-dirty",
            "pagemap-scan: not in this process",
        ),
    ],
)
def test_the_best_that_works_is_taken(
    memory: GuestMemory, wish: Wish, kinds: list[Kind], name: str, reason: str
) -> None:
    require_tracker(guest(wish), kinds)
    tracking = open_tracker(guest(wish), os.getpid(), memory, kinds)
    assert (tracking.name, tracking.reason) == (name, reason)
    assert isinstance(tracking.tracker, FakeTracker)
    assert tracking.tracker.opened_for == (os.getpid(), memory.pages.ctypes.data, memory)


@pytest.mark.parametrize(
    ("wish", "kinds", "failures"),
    [
        (
            "auto",
            [kind("pagemap-scan", lacks), kind("soft-dirty", lacks)],
            "pagemap-scan: not in this kernel; soft-dirty: not in this kernel",
        ),
        ("pagemap-scan", [kind("pagemap-scan", lacks), SECOND], "pagemap-scan: not in this kernel"),
        ("soft-dirty", [FIRST, kind("soft-dirty", lacks)], "soft-dirty: not in this kernel"),
    ],
)
def test_where_there_is_none_all_that_is_missing_is_named(
    memory: GuestMemory, wish: Wish, kinds: list[Kind], failures: str
) -> None:
    told = f"guest.tracker = {wish!r}: the guest's writes can't be noticed here: {failures}"
    with pytest.raises(MissingToolError) as before_the_start:
        require_tracker(guest(wish), kinds)
    with pytest.raises(MissingToolError) as attaching:
        open_tracker(guest(wish), os.getpid(), memory, kinds)
    assert str(before_the_start.value) == str(attaching.value) == told


def test_a_process_that_refuses_all_is_named_with_all_reasons(memory: GuestMemory) -> None:
    kinds = [kind("pagemap-scan", opener=refuses), kind("soft-dirty", opener=refuses)]
    require_tracker(guest("auto"), kinds)
    with pytest.raises(MissingToolError, match=r"pagemap-scan: not in this .*; soft-dirty: not in this proc"):
        open_tracker(guest("auto"), os.getpid(), memory, kinds)


def test_a_process_without_the_memory_is_no_matter_of_trackers(memory: GuestMemory) -> None:
    with pytest.raises(GuestError, match="is gone"):
        open_tracker(guest("auto"), 1 << 22, memory, [FIRST])


def test_this_kernel_has_one() -> None:
    """The suite runs on kernels that have either; what each lacks is named by its probe."""
    require_tracker(guest("auto"))
    lacking = []
    for each in KINDS:
        try:
            each.probe()
        except MissingToolError as error:
            lacking.append(str(error))
    assert len(lacking) < len(KINDS)
    assert all("it takes" in reason for reason in lacking)
