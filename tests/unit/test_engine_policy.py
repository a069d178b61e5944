"""Trigger policies: when each mode would end an epoch."""

from __future__ import annotations

import pytest

from remuslike.engine.events import OutputHeld, OutputKind
from remuslike.engine.pace import Pace
from remuslike.engine.policy import (
    AdaptivePolicy,
    EpochPolicy,
    EventTapPolicy,
    Situation,
    TriggerPolicy,
)

NET, DISK = OutputKind.NETWORK, OutputKind.DISK
PAUSE_S = 0.005


# --- epoch ------------------------------------------------------------------------------------------


def test_epochs_are_counted_from_the_start_of_the_one_before() -> None:
    policy: TriggerPolicy = EpochPolicy(0.025)
    assert policy.due_at(Situation(began=10.0)) == 10.025
    assert policy.due_at(Situation(began=10.0, first_frame=10.001)) == 10.025
    assert not policy.synchronous


@pytest.mark.parametrize(
    ("started", "began"),
    [(1.0, 1.0), (1.0015, 1.0), (1.5, 1.5), (0.9, 0.9)],
    ids=["in time", "a late timer", "long overdue", "early, under pressure"],
)
def test_a_late_timer_makes_no_epoch_longer(started: float, began: float) -> None:
    pace = Pace(EpochPolicy(0.5))
    pace.begin(0.5)
    due_at = pace.due_at(1, committing=False)
    assert due_at == 1.0
    pace.begin(started, due_at)
    assert pace.due_at(2, committing=False) == began + 0.5


# --- event-tap --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taps", "first_frame", "first_write", "due_at"),
    [
        ({NET, DISK}, None, None, None),
        ({NET, DISK}, 1.0, None, 1.0),
        ({NET, DISK}, 1.0, 0.9, 0.9),
        ({NET}, 1.0, 0.9, 1.0),
        ({NET}, None, 0.9, 1.4),
        ({NET}, 1.5, 0.9, 1.4),
        ({DISK}, 0.9, None, 1.4),
        ({DISK}, 0.9, 1.0, 1.0),
    ],
)
def test_a_tapped_output_is_due_at_once_and_another_after_a_while(
    taps: set[OutputKind], first_frame: float | None, first_write: float | None, due_at: float | None
) -> None:
    policy: TriggerPolicy = EventTapPolicy(frozenset(taps), 0.5)
    assert policy.due_at(Situation(0.0, first_frame, first_write, committed_at=0.0)) == due_at
    assert policy.synchronous


# --- adaptive ---------------------------------------------------------------------------------------


def adaptive(floor_s: float = 0.0, **situation: float | None) -> float | None:
    policy: TriggerPolicy = AdaptivePolicy(ceiling_s=0.1, floor_s=floor_s)
    assert not policy.synchronous
    fields: dict[str, float | None] = {"began": 1.0, "committed_at": 1.01, "pause_s": PAUSE_S, **situation}
    return policy.due_at(Situation(**fields))  # type: ignore[arg-type]


def test_without_a_frame_an_epoch_lasts_as_long_as_it_may() -> None:
    assert adaptive(first_write=1.02) == 1.1


def test_an_epoch_that_holds_nothing_lasts_four_times_as_long() -> None:
    assert adaptive() == 1.4
    assert adaptive(first_write=1.3) == 1.1, "at once"
    assert adaptive(first_frame=1.3) == 1.1, "at once"


def test_a_lonely_frame_starts_a_checkpoint_once_the_last_has_committed() -> None:
    assert adaptive(first_frame=1.03) == 1.03
    assert adaptive(first_frame=1.005) == 1.01
    assert adaptive(first_frame=1.03, committed_at=None) == 1.1


def test_a_floor_holds_for_every_load() -> None:
    assert adaptive(floor_s=0.05, first_frame=1.03) == 1.05
    assert adaptive(floor_s=0.05, first_frame=1.07) == 1.07


def test_the_busier_the_guest_the_longer_its_epochs() -> None:
    due = [adaptive(first_frame=1.0, committed_at=1.0, load=load) for load in (0, 1, 4.5, 8)]
    assert due == [pytest.approx(1.0 + load * PAUSE_S) for load in (0, 1, 4.5, 8)]
    assert adaptive(first_frame=1.0, load=8, pause_s=1.0) == 1.1  # the ceiling


def test_a_guest_that_writes_before_it_replies_is_given_twice_the_time() -> None:
    due = [adaptive(first_frame=1.02, first_write=1.001, load=load) for load in (0, 1, 4.5, 16)]
    assert due == [1.02, 1.02, pytest.approx(1.0 + 9 * PAUSE_S), 1.1]


# --- what they are fed with -------------------------------------------------------------------------


class Recorder:
    """A policy that only looks."""

    synchronous = False

    def __init__(self) -> None:
        self.seen: list[Situation] = []

    def due_at(self, situation: Situation) -> float | None:
        self.seen.append(situation)
        return None


def test_the_first_output_of_a_kind_counts_and_only_in_its_epoch() -> None:
    recorder = Recorder()
    pace = Pace(recorder)
    pace.begin(1.0)
    for at, kind in ((1.1, NET), (1.2, NET), (1.3, DISK)):
        pace.output_held(OutputHeld(at, 4, kind))
    pace.due_at(4, committing=True)
    pace.output_held(OutputHeld(1.4, 5, NET))  # told before epoch 4 is captured
    pace.output_held(OutputHeld(1.5, 4, NET))  # told late
    pace.committed(1.6)
    pace.due_at(5, committing=False)
    assert recorder.seen == [Situation(1.0, 1.1, 1.3, None), Situation(1.0, 1.4, None, 1.6)]


def test_averages_follow_a_load_that_changes() -> None:
    recorder = Recorder()
    pace = Pace(recorder)
    for _ in range(20):
        pace.captured(0.008, 64)
    pace.due_at(1, committing=False)
    for packets in (0, 1, 0, 1):
        pace.captured(0.004, packets)
    pace.due_at(1, committing=False)
    before, after = recorder.seen
    assert (before.pause_s, before.load) == (pytest.approx(0.008, rel=0.01), pytest.approx(6, rel=0.01))
    assert 0.004 < after.pause_s < 0.006
    assert 0 < after.load < 2


def test_a_burst_is_soon_forgotten() -> None:
    recorder = Recorder()
    pace = Pace(recorder)
    for packets in [100_000] * 20 + [0] * 4:
        pace.captured(PAUSE_S, packets)
    pace.due_at(1, committing=False)
    assert recorder.seen[0].load < 3
