"""netbuf.plugmeter: what the kernel's counters mean for the ledger, and which of them nobody of ours made."""

from __future__ import annotations

import pytest

from netbuf.errors import HoldBrokenError
from netbuf.ledger import Ledger
from netbuf.plugmeter import PlugMeter
from netbuf.plugwire import PassageReading, QueueReading


def passage(left: int, lost: int = 0, frame_bytes: int = 60) -> PassageReading:
    return PassageReading(left, left, left * frame_bytes, lost)


def queue(items: int, frame_bytes: int = 60) -> QueueReading:
    return QueueReading(items, items * frame_bytes, 0)


def made(*, epoch: int | None = 1) -> tuple[Ledger, PlugMeter]:
    ledger = Ledger(depth=1, limit_bytes=6000)
    if epoch is not None:
        ledger.hold(epoch)
    return ledger, PlugMeter(ledger, "rl0g")


def figures(ledger: Ledger) -> tuple[int, int, int, int, int]:
    seen = ledger.statistics()
    return seen.held_items, seen.held_bytes, seen.released_items, seen.released_bytes, seen.dropped_items


def test_what_waits_while_holding_is_held() -> None:
    ledger, meter = made()
    meter.observe(passage(0), queue(3))
    meter.observe(passage(0), queue(5))
    assert figures(ledger) == (5, 300, 0, 0, 0)


def test_what_waits_while_closed_is_not() -> None:
    ledger, meter = made(epoch=None)
    meter.observe(passage(0), queue(3))
    assert figures(ledger) == (0, 0, 0, 0, 0)


def test_what_leaves_of_a_release_is_released_and_what_comes_meanwhile_waits() -> None:
    ledger, meter = made()
    meter.waiting(queue(4))
    ledger.seal(1)
    ledger.begin_release(1)
    meter.observe(passage(1), queue(5))
    assert figures(ledger) == (3, 180, 1, 60, 0)
    meter.observe(passage(4), queue(2))
    ledger.end_release(released=True)
    assert figures(ledger) == (0, 0, 4, 240, 0)
    meter.observe(passage(4), queue(2))
    assert figures(ledger) == (2, 120, 4, 240, 0)


def test_an_opening_lets_out_all_and_what_passes_behind_it_is_counted_once() -> None:
    ledger, meter = made()
    meter.waiting(queue(2))
    ledger.seal(1)
    meter.waiting(queue(5))
    ledger.begin_open()
    meter.observe(passage(1), queue(4))
    meter.observe(passage(7), queue(0))
    ledger.end_open(opened=True)
    assert figures(ledger) == (0, 0, 5, 300, 0)
    meter.observe(passage(7), queue(0))
    assert figures(ledger) == (0, 0, 7, 420, 0)


def test_what_found_no_tap_is_lost_not_released() -> None:
    ledger, meter = made()
    meter.waiting(queue(4))
    ledger.seal(1)
    ledger.begin_release(1)
    meter.observe(passage(4, lost=3), queue(0))
    ledger.end_release(released=True)
    assert figures(ledger) == (0, 0, 1, 240, 3)
    ledger.begin_open()
    ledger.end_open(opened=True)
    meter.observe(passage(6, lost=5), queue(0))
    seen = ledger.statistics()
    assert (seen.released_items, seen.dropped_items) == (1, 5)


def test_frames_that_came_during_the_seal_belong_to_the_next_epoch() -> None:
    ledger, meter = made()
    meter.waiting(queue(5))  # the kernel has sealed 3
    ledger.seal(1)
    ledger.begin_release(1)
    meter.observe(passage(3), queue(2))
    meter.carry_over()
    ledger.end_release(released=True)
    assert figures(ledger) == (2, 120, 3, 180, 0)
    assert ledger.open_epoch == 2
    meter.observe(passage(3), queue(2))
    assert figures(ledger) == (2, 120, 3, 180, 0)


def test_of_those_the_kernel_may_turn_out_to_have_released_some() -> None:
    ledger, meter = made()
    meter.waiting(queue(5))
    ledger.seal(1)
    ledger.begin_release(1)
    meter.observe(passage(3), queue(2))
    meter.carry_over()
    ledger.end_release(released=True)
    meter.observe(passage(4), queue(1))
    assert figures(ledger) == (1, 60, 4, 240, 0)
    with pytest.raises(HoldBrokenError, match="1 frames have left that nobody released"):
        meter.observe(passage(6), queue(0))


def test_a_frame_that_leaves_unreleased_breaks_the_hold() -> None:
    _, meter = made()
    meter.observe(passage(0), queue(3))
    with pytest.raises(HoldBrokenError, match="rl0g is cut: 1 frames have left that nobody released"):
        meter.observe(passage(1), queue(2))


def test_more_than_was_released_breaks_the_hold() -> None:
    ledger, meter = made()
    meter.waiting(queue(2))
    ledger.seal(1)
    ledger.begin_release(1)
    with pytest.raises(HoldBrokenError, match="1 frames more than were released"):
        meter.observe(passage(3), queue(0))


def test_a_queue_that_shrinks_breaks_the_hold() -> None:
    _, meter = made()
    meter.waiting(queue(3))
    with pytest.raises(HoldBrokenError, match="2 frames are gone from its queue"):
        meter.waiting(queue(1))


def test_a_frame_that_leaves_a_closed_hold_breaks_it() -> None:
    _, meter = made(epoch=None)
    with pytest.raises(HoldBrokenError, match="1 frames have left while closed"):
        meter.observe(passage(1), queue(0))
