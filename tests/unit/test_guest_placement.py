"""remuslike.guest.placement, with this very process for QEMU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from remuslike.errors import GuestError
from remuslike.guest.placement import Placement


def test_apart_is_where_the_other_is_not_and_back_afterwards() -> None:
    allowed = os.sched_getaffinity(0)
    placement = Placement(os.getpid())
    try:
        with placement.apart():
            within = os.sched_getaffinity(0)
        assert os.sched_getaffinity(0) == allowed
    finally:
        placement.close()
    assert within <= allowed
    assert len(within) == max(1, len(allowed) - 1)


def test_a_thread_with_one_processor_stays_on_it() -> None:
    allowed = os.sched_getaffinity(0)
    only = {min(allowed)}
    os.sched_setaffinity(0, only)
    try:
        placement = Placement(os.getpid())
        with placement.apart():
            assert os.sched_getaffinity(0) == only
        placement.close()
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_process_that_is_gone_is_told_and_one_that_goes_changes_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    placement = Placement(process.pid)
    process.communicate()
    with placement.apart():
        assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getpid())
    placement.close()
    with pytest.raises(GuestError, match=f"process {process.pid}"):
        Placement(process.pid)
