"""remuslike.guest.urgency, with a child process for QEMU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from remuslike.guest.urgency import Urgency

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a real-time priority"),
]


@pytest.fixture
def child() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()


def test_it_goes_first_from_the_beginning_to_the_end(child: int) -> None:
    os.setpriority(os.PRIO_PROCESS, child, 5)
    urgency = Urgency(child)
    assert os.sched_getscheduler(child) == os.SCHED_OTHER
    urgency.begin()
    assert os.sched_getscheduler(child) == os.SCHED_RR | os.SCHED_RESET_ON_FORK
    assert os.sched_getparam(child).sched_priority == 1
    urgency.begin()
    for _ in range(2):
        urgency.end()
        assert os.sched_getscheduler(child) == os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        assert os.getpriority(os.PRIO_PROCESS, child) == 5


def test_it_goes_first_again_in_the_next_pause(child: int) -> None:
    urgency = Urgency(child)
    for _ in range(2):
        urgency.begin()
        assert os.sched_getscheduler(child) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
        urgency.end()


def test_somebody_elses_policy_stays(child: int) -> None:
    os.sched_setscheduler(child, os.SCHED_FIFO, os.sched_param(3))
    urgency = Urgency(child)
    urgency.begin()
    urgency.end()
    assert os.sched_getscheduler(child) == os.SCHED_FIFO
    assert os.sched_getparam(child).sched_priority == 3


def test_a_process_that_is_gone_changes_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    before, after = Urgency(process.pid), Urgency(process.pid)
    before.begin()
    process.communicate()
    before.end()
    after.begin()
    after.end()


def test_a_refusal_is_told_once(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    urgency = Urgency(child)
    with capture_logs() as logs:
        for _ in range(2):
            urgency.begin()
            urgency.end()
    assert [line["event"] for line in logs] == ["pause.ordinary"]


def test_the_end_needs_no_privilege(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's user_check_sched_setscheduler: only with CAP_SYS_NICE may the flag be taken away."""
    setscheduler = os.sched_setscheduler

    def unprivileged(pid: int, policy: int, param: os.sched_param) -> None:
        if os.sched_getscheduler(pid) & ~policy & os.SCHED_RESET_ON_FORK:
            raise PermissionError(1, "Operation not permitted")
        setscheduler(pid, policy, param)

    urgency = Urgency(child)
    urgency.begin()
    monkeypatch.setattr(os, "sched_setscheduler", unprivileged)
    urgency.end()
    assert os.sched_getscheduler(child) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER


def test_an_end_that_is_refused_is_told_once(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    urgency = Urgency(child)
    urgency.begin()
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with capture_logs() as logs:
        for _ in range(2):
            urgency.end()
            urgency.begin()
    assert [line["event"] for line in logs] == ["pause.urgent"]
