"""remuslike.guest.placement, with this very process for QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from remuslike.errors import GuestError
from remuslike.guest.placement import Placement


def test_apart_is_where_the_other_is_not() -> None:
    allowed = os.sched_getaffinity(0)
    placement = Placement(os.getpid(), [])
    try:
        placement.stand_apart()
        apart = os.sched_getaffinity(0)
    finally:
        placement.go_anywhere()
        placement.close()
    assert os.sched_getaffinity(0) == allowed
    assert apart <= allowed
    assert len(apart) == max(1, len(allowed) - 1)


def test_a_thread_with_one_processor_stays_on_it() -> None:
    allowed = os.sched_getaffinity(0)
    only = {min(allowed)}
    os.sched_setaffinity(0, only)
    try:
        placement = Placement(os.getpid(), [os.getpid()])
        placement.stand_apart()
        assert os.sched_getaffinity(0) == only
        placement.make_way()
        assert os.sched_getaffinity(0) == only
        placement.close()
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_process_that_is_gone_is_told_and_one_that_goes_changes_nothing() -> None:
    allowed = os.sched_getaffinity(0)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    placement = Placement(process.pid, [process.pid])
    process.communicate()
    placement.stand_apart()
    placement.make_way()
    assert os.sched_getaffinity(0) == allowed
    placement.close()
    with pytest.raises(GuestError, match=f"process {process.pid}"):
        Placement(process.pid, [process.pid])


several_processors = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="needs two processors to keep two threads apart"
)


@contextmanager
def virtual_cpu_on(processor: int) -> Iterator[int]:
    """A process whose only thread is there, and stays."""

    def pin() -> None:
        os.sched_setaffinity(0, {processor})

    process = subprocess.Popen(["sleep", "60"], preexec_fn=pin)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def this_thread_on(processor: int) -> Iterator[set[int]]:
    """Gives what it is allowed otherwise."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield allowed
    finally:
        os.sched_setaffinity(0, allowed)


@several_processors
def test_it_leaves_the_processor_of_a_virtual_cpu() -> None:
    here = min(os.sched_getaffinity(0))
    with virtual_cpu_on(here) as process:
        placement = Placement(process, [process])
        with this_thread_on(here) as allowed:
            placement.make_way()
            # That it may run anywhere again shows that it was moved.
            assert os.sched_getaffinity(0) == allowed
        placement.close()


@several_processors
def test_it_stays_where_no_virtual_cpu_is() -> None:
    here, there = sorted(os.sched_getaffinity(0))[:2]
    with virtual_cpu_on(there) as process:
        placement = Placement(process, [process])
        with this_thread_on(here):
            placement.make_way()
            assert os.sched_getaffinity(0) == {here}
        placement.close()


def test_with_as_many_virtual_cpus_as_processors_it_stays() -> None:
    here = min(os.sched_getaffinity(0))
    with virtual_cpu_on(here) as process:
        placement = Placement(process, [process] * len(os.sched_getaffinity(0)))
        with this_thread_on(here):
            placement.make_way()
            assert os.sched_getaffinity(0) == {here}
        placement.close()
