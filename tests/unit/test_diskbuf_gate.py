from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from diskbuf.contract import Pressure, State
from diskbuf.errors import WriteRefusedError
from diskbuf.extents import Extent
from diskbuf.gate import Admission, Gate

LIMIT = 4096
WAIT_S = 10
"""Far beyond what anything takes: what hangs fails its test."""


def make_gate(
    *, read_only: bool = False, rose: list[Pressure] | None = None, began: list[int] | None = None
) -> Gate:
    told = [] if rose is None else rose
    begun = [] if began is None else began
    return Gate(limit_bytes=LIMIT, depth=2, read_only=read_only, rose=told.append, began=begun.append)


def change(length: int = 512) -> Extent:
    return Extent.of_data(0, bytes(length))


def admission(gate: Gate, extent: Extent) -> Admission:
    """What becomes of one change."""
    count, admitted = gate.try_admit((extent,), may_pass=True)
    assert count == (admitted is not Admission.WAITS)
    return admitted


@contextmanager
def waiter(gate: Gate, gone: threading.Event | None = None) -> Iterator[list[Admission]]:
    """A thread that asks for admission, and waits for it within the block."""
    found: list[Admission] = []
    abandoned = (gone or threading.Event()).is_set
    thread = threading.Thread(target=lambda: found.append(gate.admit(change(), abandoned)))
    thread.start()
    until_waiting(gate, 1)
    yield found
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it was not woken"


def until_waiting(gate: Gate, count: int) -> None:
    """Threads have no events to say that they wait; this one looks until they do."""
    looks = 0
    while gate.waiting != count:
        looks += 1
        assert looks < 100_000_000, f"{gate.waiting} of {count} wait"


def full_gate() -> Gate:
    gate = make_gate()
    gate.hold(1)
    assert admission(gate, change(LIMIT)) is Admission.HELD
    assert admission(gate, change()) is Admission.WAITS
    return gate


def test_the_state_decides() -> None:
    gate = make_gate()
    with pytest.raises(WriteRefusedError, match="is closed"):
        admission(gate, change())
    gate.end_opening(opened=True)
    assert admission(gate, change()) is Admission.PASSES
    gate.hold(1)
    assert admission(gate, change()) is Admission.HELD
    gate.discard()
    with pytest.raises(WriteRefusedError, match="is discarded"):
        admission(gate, change())
    read_only = make_gate(read_only=True)
    read_only.hold(1)
    with pytest.raises(WriteRefusedError, match="its store is read-only"):
        admission(read_only, change())


def test_changes_are_admitted_together_up_to_the_first_that_must_wait() -> None:
    told: list[Pressure] = []
    gate = make_gate(rose=told)
    changes = [change(LIMIT // 2)._replace(offset=place) for place in range(0, 2 * LIMIT, LIMIT // 2)]
    gate.hold(1)
    assert gate.try_admit(changes, may_pass=True) == (2, Admission.HELD)
    assert gate.try_admit(changes[2:], may_pass=True) == (0, Admission.WAITS)
    assert told == [Pressure.FULL]
    gate.prepare()
    assert gate.try_admit(changes[2:], may_pass=True) == (2, Admission.HELD)
    assert gate.statistics().held_items == 4
    assert gate.begin_opening()
    gate.settle()
    assert gate.try_admit(changes, may_pass=True) == (0, Admission.WAITS)


def test_released_epoch_makes_room() -> None:
    gate = full_gate()
    gate.seal(1)
    with waiter(gate) as found:
        gate.retire(gate.sealed_map(1))
    assert found == [Admission.HELD]


def test_prepare_makes_room() -> None:
    gate = full_gate()
    with waiter(gate) as found:
        gate.prepare()
    assert found == [Admission.HELD]
    assert gate.pressure is Pressure.FULL


def test_who_waited_passes_when_the_buffer_is_open() -> None:
    gate = full_gate()
    assert gate.begin_opening()
    with waiter(gate) as found:
        _, changes = gate.settle()
        gate.retire(changes)
        gate.end_opening(opened=True)
    assert found == [Admission.PASSES]


def test_waking_is_looking_again_and_no_more() -> None:
    gate = full_gate()
    gone = threading.Event()
    with waiter(gate, gone) as found:
        gate.wake()
        until_waiting(gate, 1)
        gone.set()
        gate.wake()
    assert found == [Admission.WAITS]
    assert gate.statistics().held_items == 1


def test_what_passes_is_waited_for_unless_discarded() -> None:
    gate = make_gate()
    gate.end_opening(opened=True)
    assert admission(gate, change()) is Admission.PASSES
    gate.hold(1)
    thread = threading.Thread(target=gate.wait_none_passing)
    thread.start()
    until_waiting(gate, 1)
    gate.passed((change(),), written=True)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert gate.statistics().released_items == 1
    gate.discard()
    gate.wait_none_passing()


def test_discarded_stays_discarded() -> None:
    gate = make_gate()
    gate.hold(1)
    admission(gate, change())
    assert gate.begin_opening()
    _, changes = gate.settle()
    gate.discard()
    gate.retire(changes)
    gate.end_opening(opened=True)
    assert gate.state is State.DISCARDED
    figures = gate.statistics()
    assert (figures.dropped_items, figures.released_items) == (1, 0)


def test_pressure_is_told_as_it_rises() -> None:
    told: list[Pressure] = []
    gate = make_gate(rose=told)
    gate.hold(1)
    admission(gate, change(LIMIT // 2))
    admission(gate, change(LIMIT // 2))
    admission(gate, change(LIMIT))
    assert told == [Pressure.SOON, Pressure.FULL]


def test_each_epoch_begins_once_with_a_change_or_a_flush() -> None:
    told: list[int] = []
    gate = make_gate(began=told)
    gate.tell_beginnings()
    gate.hold(3)
    gate.note_flush()
    assert told == [3]
    admission(gate, change())
    gate.note_flush()
    assert (told, gate.open_items) == ([3], 1)
    gate.seal(3)
    gate.seal(4)
    admission(gate, change())
    assert told == [3, 5]


def test_a_flush_that_is_not_the_guests_begins_no_epoch() -> None:
    told: list[int] = []
    gate = make_gate(began=told)
    gate.tell_beginnings()
    gate.hold(1)
    gate.flushes_ignored = True
    gate.note_flush()
    assert told == []
    gate.flushes_ignored = False
    gate.note_flush()
    assert told == [1]
    gate.flushes_ignored = True
    gate.seal(1)
    gate.note_flush()
    admission(gate, change())  # a change counts whosever it is: it must be held
    assert told == [1, 2]


def test_a_flush_that_waits_for_the_seal_after_which_flushes_do_not_count_begins_no_epoch() -> None:
    told: list[int] = []
    gate = make_gate(began=told)
    gate.tell_beginnings()
    gate.hold(1)
    lock = gate._lock

    class SealsFirst:
        """The lock, which a checkpoint has had when the flush gets it."""

        def __enter__(self) -> None:
            gate._lock = lock
            gate.flushes_ignored = True
            gate.seal(1)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    gate._lock = cast(threading.Lock, SealsFirst())
    gate.note_flush()
    assert told == []
    gate.flushes_ignored = False
    gate.note_flush()
    assert told == [2]


def test_nobody_who_has_not_asked_is_told_of_a_beginning() -> None:
    told: list[int] = []
    gate = make_gate(began=told)
    gate.note_flush()
    gate.hold(1)
    admission(gate, change())
    gate.tell_beginnings()
    admission(gate, change(1024))
    assert told == []
    gate.seal(1)
    admission(gate, change())
    assert told == [2]
    gate.discard()
    gate.note_flush()
    assert told == [2]
