"""The lab's machine as a process: started, heard, ended, and nothing left."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from remuslike.lab.errors import LabEndedError, LabStartError
from remuslike.lab.machine import CONSOLE_TAIL_LINES, DeadlinePassed, Machine, start_machine
from remuslike.lab.wire import Frame, Kind, encode


def machine(script: str) -> Machine:
    """A machine that is a shell script; its $0 is the channel."""
    return start_machine(lambda channel: ("bash", "-c", script, str(channel)))


def soon() -> float:
    return time.monotonic() + 30


def test_frames_come_and_go() -> None:
    started = machine("cat <&$0 >&$0")
    try:
        started.send(encode(Frame(Kind.RUN, b"x")) + encode(Frame(Kind.END)))
        assert started.next_frame(soon()) == Frame(Kind.RUN, b"x")
        assert started.next_frame(soon()) == Frame(Kind.END)
        with pytest.raises(DeadlinePassed):
            started.next_frame(time.monotonic())
    finally:
        started.close()
    assert started.process.returncode == -9


def test_the_end_says_what_was_on_the_console() -> None:
    started = machine(r"for n in $(seq 99); do printf 'line %s\r\n' $n; done; echo 'and an error' >&2")
    with pytest.raises(
        LabEndedError, match=r"ended.*console:\n    line 51\n(    line \d\d\n)+    and an error$"
    ):
        started.next_frame(soon())
    assert len(started.console_tail().splitlines()) == CONSOLE_TAIL_LINES
    assert started.closed


def test_a_console_that_never_ends_delays_nothing() -> None:
    started = machine("yes")
    with pytest.raises(DeadlinePassed):
        started.next_frame(time.monotonic() + 0.05)
    started.close()
    assert "    y\n" in started.console_tail()


def test_a_machine_that_has_ended_takes_nothing() -> None:
    started = machine("exit 3")
    started.process.wait()
    with pytest.raises(LabEndedError, match="takes nothing any more"):
        started.send(b"x")
    assert started.process.returncode == 3


def test_a_closed_machine_says_so() -> None:
    started = machine("exec sleep 1000")
    started.close()
    started.close()
    for attempt in (lambda: started.send(b"x"), lambda: started.next_frame(soon())):
        with pytest.raises(LabEndedError, match="closed before"):
            attempt()


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(LabStartError, match="no-such-program can't be started: No such file"):
        start_machine(lambda channel: ("no-such-program", str(channel)))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: machine("exec sleep 1000").close(),
        lambda: machine("exit 1").next_frame(soon()),
        lambda: start_machine(lambda channel: ("no-such-program",)),
    ],
    ids=["closed", "ended", "not started"],
)
def test_no_descriptor_is_left(attempt: Callable[[], object]) -> None:
    before = descriptors()
    with suppress(LabEndedError, LabStartError):
        attempt()
    assert descriptors() == before
