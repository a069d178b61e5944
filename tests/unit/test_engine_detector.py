"""The failure detector over scripted ticks."""

from __future__ import annotations

import pytest

from remuslike.engine.detector import Detector

DETECT_S = 0.1


def watching(now: float = 0.0) -> Detector:
    detector = Detector(DETECT_S)
    detector.watch(now)
    return detector


def verdicts(detector: Detector, *ticks: tuple[float, float]) -> list[bool]:
    """What it says at each (now, last_heard)."""
    return [detector.silent(now, last_heard) for now, last_heard in ticks]


def test_silence_counts_from_the_last_byte() -> None:
    ticks = [(0.03, 0.0), (0.06, 0.05), (0.1, 0.05), (0.14, 0.05), (0.151, 0.05)]
    assert verdicts(watching(), *ticks) == [False, False, False, False, True]


def test_a_peer_that_is_heard_is_never_suspected() -> None:
    assert not any(verdicts(watching(), *[(n / 50, n / 50 - 0.01) for n in range(1, 100)]))


def test_after_a_gap_the_peer_gets_half_a_detection_more() -> None:
    """We were not running ourselves: its bytes may wait unread."""
    ticks = [(0.02, 0.01), (3.0, 0.01), (3.04, 0.01), (3.05, 0.01)]
    assert verdicts(watching(), *ticks) == [False, False, False, True]


def test_a_peer_heard_after_the_gap_starts_afresh() -> None:
    ticks = [(0.02, 0.01), (3.0, 0.01), (3.04, 3.01), (3.08, 3.01), (3.1, 3.01), (3.12, 3.01)]
    assert verdicts(watching(), *ticks) == [False, False, False, False, False, True]


def test_a_new_peer_is_not_blamed_for_the_one_before() -> None:
    detector = watching()
    assert verdicts(detector, (0.04, 0.0), (0.08, 0.0), (0.1, 0.0)) == [False, False, True]
    detector.watch(5.0)
    assert not detector.silent(5.01, 5.0)


def test_ticking_at_the_interval_detects_within_a_tenth_more() -> None:
    detector = watching()
    now = 0.0
    while not detector.silent(now, 0.0):
        now += detector.interval_s
    assert DETECT_S <= now <= DETECT_S * 1.1 + 1e-9


def test_detection_needs_a_duration() -> None:
    with pytest.raises(AssertionError, match="detect_s=0 must be positive"):
        Detector(0)


def test_a_process_that_is_always_late_still_suspects_in_the_end() -> None:
    detector = Detector(1.0)
    detector.watch(0.0)
    assert not detector.silent(2.0, last_heard=0.0)  # the grace
    assert detector.silent(4.0, last_heard=0.0)
    assert not detector.silent(6.0, last_heard=5.5)  # heard again: a grace of its own
    assert detector.silent(8.0, last_heard=5.5)
