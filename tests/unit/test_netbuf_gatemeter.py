"""netbuf.gatemeter: what has passed is booked once, while the ledger is open, and without what was lost."""

from __future__ import annotations

import pytest
from fakes.wiring import FakeGate

from netbuf.gatemeter import GateMeter
from netbuf.ledger import Ledger


@pytest.fixture
def ledger() -> Ledger:
    """An open one."""
    made = Ledger(depth=1, limit_bytes=1000)
    made.begin_open()
    made.end_open(opened=True)
    return made


def passing(*sizes_bytes: int) -> FakeGate:
    gate = FakeGate()
    gate.pass_after(0)
    for size_bytes in sizes_bytes:
        assert gate.lets_pass(size_bytes)
    return gate


def released(ledger: Ledger) -> tuple[int, int]:
    figures = ledger.statistics()
    return figures.released_items, figures.released_bytes


def test_what_has_passed_is_booked_once(ledger: Ledger) -> None:
    gate = passing(60, 100)
    meter = GateMeter(ledger, gate)
    for _ in range(2):
        meter.book()
        assert released(ledger) == (2, 160)
    gate.lets_pass(40)
    meter.book()
    assert released(ledger) == (3, 200)


def test_a_header_counts_for_each(ledger: Ledger) -> None:
    GateMeter(ledger, passing(60, 100), header_bytes=12).book()
    assert released(ledger) == (2, 184)


def test_what_was_lost_was_not_released(ledger: Ledger) -> None:
    gate = passing(50, 150)
    meter = GateMeter(ledger, gate)
    meter.book(lost_items=1)
    assert released(ledger) == (1, 100)
    gate.lets_pass(70)
    meter.book(lost_items=1)
    assert released(ledger) == (2, 170)
    gate.lets_pass(70)
    meter.book(lost_items=2)
    assert released(ledger) == (2, 170)


def test_nothing_is_booked_unless_open() -> None:
    ledger = Ledger(depth=1, limit_bytes=1000)
    GateMeter(ledger, passing(60)).book()
    assert released(ledger) == (0, 0)
