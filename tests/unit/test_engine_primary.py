"""The primary's core, path by path: events in, the exact effects out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.effects import ExitStatus, Finish, PrimaryEffect
from remuslike.engine.events import Farewell, GuestEnd, OutputKind, Pressure, PrimaryEvent
from remuslike.engine.phases import OnLoss, Phase, PrimarySettings
from remuslike.engine.policy import AdaptivePolicy, EpochPolicy, EventTapPolicy, TriggerPolicy
from remuslike.engine.primary import PrimaryCore

EPOCH_S = 0.025
DETECT_S = 0.1
EPOCHS = EpochPolicy(EPOCH_S)


def make(
    on_loss: OnLoss = OnLoss.SOLO, policy: TriggerPolicy = EPOCHS, *, window: int = 2, depth: int = 2
) -> PrimaryCore:
    settings = PrimarySettings("alpha", on_loss, DETECT_S, window, depth, witness_retry_s=0.2)
    return PrimaryCore(settings, policy)


def feed(core: PrimaryCore, *events: PrimaryEvent) -> list[PrimaryEffect]:
    """All effects of these events, with the module's invariants checked after each.

    The loop was awake all along, however far apart they are.
    """
    effects: list[PrimaryEffect] = []
    for event in events:
        core._awake_at = event.now
        effects += core.step(event)
        for epochs in (core.unreleased, core.unacknowledged):
            assert list(epochs) == list(range(epochs[0], epochs[0] + len(epochs))) if epochs else True
        assert len(core.unreleased) <= core._settings.depth
        assert len(core.unacknowledged) <= core._settings.window
        assert core.exposed or not core.unacknowledged
    return effects


def tick(now: float) -> on.Tick:
    """A tick at which the peer has just been heard."""
    return on.Tick(now, now)


def alone(on_loss: OnLoss = OnLoss.SOLO, policy: TriggerPolicy = EPOCHS, **settings: int) -> PrimaryCore:
    """Started; SOLO with open output, or STALLED."""
    core = make(on_loss, policy, **settings)
    feed(core, on.Started(0.0, 0, ""), on.WitnessGranted(0.0, 1))
    if on_loss is OnLoss.SOLO:
        feed(core, on.OutputOpened(0.0))
    return core


def protected(on_loss: OnLoss = OnLoss.SOLO, policy: TriggerPolicy = EPOCHS, **settings: int) -> PrimaryCore:
    """The base, epoch 1, is acknowledged; the guest runs in epoch 2."""
    core = alone(on_loss, policy, **settings)
    feed(core, on.PeerConnected(0.0), on.PeerReady(0.0, 1), on.SyncConverged(0.0))
    feed(core, on.Captured(0.0, 1), on.Acknowledged(0.0, 1))
    assert core.protected
    return core


def stalled() -> PrimaryCore:
    """Epochs 2 and 3 were sealed, 2 is acknowledged and being released, 3 is not; the link is lost."""
    core = protected(OnLoss.STALL)
    feed(core, tick(0.03), on.Captured(0.03, 2), tick(0.06), on.Captured(0.06, 3))
    feed(core, on.Acknowledged(0.07, 2), on.LinkLost(0.07, "reset"))
    assert core.phase is Phase.STALLED
    return core


# --- starting ---------------------------------------------------------------------------------------


def test_a_primary_asks_before_its_guest_runs() -> None:
    core = make()
    assert feed(core, on.Started(0.0, 0, "")) == [do.AcquireWitness(0)]
    assert feed(core, on.WitnessGranted(0.0, 1)) == [do.OpenOutput(1)]
    assert feed(core, on.OutputOpened(0.0)) == [do.ResumeGuest()]
    assert core.phase is Phase.SOLO


def test_a_stalling_primary_keeps_its_guest_paused() -> None:
    assert alone(OnLoss.STALL).phase is Phase.STALLED


def test_a_restarted_primary_lets_an_older_secondary_go_first() -> None:
    core = make()
    assert feed(core, on.Started(1.0, 4, "alpha")) == []
    assert core.next_tick(1.0) == 1.0 + 2 * DETECT_S
    assert feed(core, tick(1.0 + 2 * DETECT_S)) == [do.AcquireWitness(4)]


def test_a_primary_whose_guest_runs_elsewhere_is_fenced() -> None:
    core = make()
    reason = "the witness gave generation 3 to beta"
    assert feed(core, on.Started(0.0, 3, "beta")) == [
        do.DiscardOutput(),
        do.DestroyGuest(reason),
        do.EndSession(reason),
        Finish(ExitStatus.FENCED, f"fenced: {reason}; the guest runs there, not here"),
    ]


def test_an_adopted_guest_is_simply_unprotected() -> None:
    core = make()
    assert feed(core, on.Adopted(0.0, 7)) == []
    assert feed(core, on.PeerConnected(0.0)) == [do.Greet(7)]


# --- epochs -----------------------------------------------------------------------------------------


def test_the_base_begins_to_hold_and_releases_nothing() -> None:
    core = alone()
    assert feed(core, on.PeerConnected(0.0)) == [do.Greet(1)]
    assert feed(core, on.PeerReady(0.0, 1)) == [do.StartSync()]
    assert feed(core, on.SyncConverged(0.0)) == [do.Checkpoint(1, base=True)]
    assert feed(core, on.Captured(0.0, 1)) == [do.ResumeGuest(), do.SendEpoch(1)]
    before = core.protected
    assert feed(core, on.Acknowledged(0.0, 1)) == []
    assert (before, core.protected) == (False, True)
    assert core.open_epoch == 2


def test_a_stalled_guest_first_runs_once_its_base_is_acknowledged() -> None:
    core = alone(OnLoss.STALL)
    feed(core, on.PeerConnected(0.0), on.PeerReady(0.0, 1), on.SyncConverged(0.0))
    assert feed(core, on.Captured(0.0, 1)) == [do.SendEpoch(1)]
    assert feed(core, on.Acknowledged(0.0, 1)) == [do.ResumeGuest()]


def test_an_epoch_is_released_by_its_acknowledgement_only() -> None:
    core = protected()
    assert feed(core, tick(0.024)) == []
    assert feed(core, tick(0.025)) == [do.Checkpoint(2, base=False)]
    assert feed(core, on.Captured(0.03, 2)) == [do.ResumeGuest(), do.SendEpoch(2)]
    assert feed(core, on.Acknowledged(0.04, 2)) == [do.Release(2)]
    assert feed(core, on.Released(0.05, 2)) == [do.Checkpoint(3, base=False)]


def test_a_window_of_two_has_two_epochs_under_way_and_not_three() -> None:
    core = protected(window=2, depth=3)
    feed(core, tick(0.03), on.Captured(0.03, 2))
    assert feed(core, tick(0.06)) == [do.Checkpoint(3, base=False)]
    feed(core, on.Captured(0.06, 3))
    assert feed(core, tick(0.09)) == []
    assert feed(core, on.Acknowledged(0.09, 2)) == [do.Release(2), do.Checkpoint(4, base=False)]


def test_a_shallow_buffer_makes_the_next_checkpoint_wait_for_the_release() -> None:
    core = protected(window=2, depth=1)
    feed(core, tick(0.03), on.Captured(0.03, 2))
    assert feed(core, tick(0.06), on.Acknowledged(0.06, 2)) == [do.Release(2)]
    assert feed(core, on.Released(0.06, 2)) == [do.Checkpoint(3, base=False)]


def test_the_timer_waits_for_the_epoch_and_not_while_the_window_is_full() -> None:
    core = protected(window=1)
    assert core.next_tick(0.02) == pytest.approx(EPOCH_S)
    feed(core, tick(0.025), on.Captured(0.03, 2))
    assert core.next_tick(0.03) == pytest.approx(0.03 + DETECT_S / 10)


# --- pressure (P6) ----------------------------------------------------------------------------------


def test_pressure_brings_an_early_checkpoint() -> None:
    core = protected()
    assert feed(core, on.PressureChanged(0.001, Pressure.SOON)) == [do.Checkpoint(2, base=False)]


def test_a_full_buffer_keeps_the_guest_paused_until_its_release() -> None:
    core = protected()
    feed(core, on.PressureChanged(0.001, Pressure.FULL))
    assert feed(core, on.Captured(0.002, 2)) == [do.SendEpoch(2)]
    assert feed(core, on.PressureChanged(0.003, Pressure.SOON)) == []
    assert feed(core, on.Acknowledged(0.01, 2)) == [do.Release(2)]
    assert feed(core, on.PressureChanged(0.01, Pressure.NONE)) == []
    assert feed(core, on.Released(0.01, 2)) == [do.ResumeGuest()]


def test_a_full_buffer_with_a_full_window_stalls_the_guest() -> None:
    core = protected(window=1)
    feed(core, tick(0.03), on.Captured(0.03, 2))
    assert feed(core, on.PressureChanged(0.04, Pressure.FULL)) == [do.PauseGuest()]
    assert feed(core, tick(0.05)) == []
    assert feed(core, on.Acknowledged(0.06, 2)) == [do.Release(2), do.Checkpoint(3, base=False)]
    assert feed(core, on.PressureChanged(0.06, Pressure.NONE), on.Captured(0.06, 3)) == [
        do.ResumeGuest(),
        do.SendEpoch(3),
    ]


# --- losing the secondary ---------------------------------------------------------------------------


def test_solo_opens_with_a_grant_and_goes_on() -> None:
    core = protected()
    feed(core, tick(0.03), on.Captured(0.03, 2))
    assert feed(core, on.LinkLost(0.04, "reset")) == [do.AcquireWitness(1)]
    assert feed(core, on.Acknowledged(0.04, 2)) == [], "it came with a session that has ended"
    assert feed(core, on.WitnessGranted(0.05, 2)) == [do.OpenOutput(2)]
    assert feed(core, on.Released(0.05, 2)) == [], "late"
    assert feed(core, on.OutputOpened(0.06)) == []
    assert core.phase is Phase.SOLO
    assert feed(core, on.PeerConnected(0.07)) == [do.Greet(2)]


def test_silence_is_a_loss() -> None:
    core = protected()
    for now in (0.02, 0.04, 0.06, 0.08):
        assert not any(isinstance(effect, do.AcquireWitness) for effect in feed(core, on.Tick(now, 0.0)))
    feed(core, on.Captured(0.09, 2))
    assert feed(core, on.Tick(0.1, 0.0)) == [
        do.EndSession("the secondary has been silent for 100 ms"),
        do.AcquireWitness(1),
    ]


def test_the_loser_destroys_its_guest_and_its_held_output() -> None:
    core = protected()
    feed(core, on.LinkLost(0.0, "reset"))
    reason = "the witness gave generation 2 to beta"
    assert feed(core, on.WitnessRefused(0.1, "beta", 2)) == [
        do.DiscardOutput(),
        do.DestroyGuest(reason),
        do.EndSession(reason),
        Finish(ExitStatus.FENCED, f"fenced: {reason}; the guest runs there, not here"),
    ]


def test_an_unreachable_witness_is_asked_again_and_nothing_opens() -> None:
    core = protected()
    feed(core, on.LinkLost(0.0, "reset"))
    assert feed(core, on.WitnessUnreachable(1.0, "no answer"), tick(1.1)) == []
    assert core.next_tick(1.1) == pytest.approx(1.2)
    assert feed(core, tick(1.2)) == [do.AcquireWitness(1)]


def test_a_loss_within_a_checkpoint_waits_for_its_capture() -> None:
    core = protected()
    assert feed(core, tick(0.03), on.LinkLost(0.03, "reset")) == [do.Checkpoint(2, base=False)]
    assert feed(core, on.Captured(0.04, 2)) == [do.ResumeGuest(), do.SendEpoch(2), do.AcquireWitness(1)]


def test_silence_within_a_checkpoint_is_noticed_after_it() -> None:
    core = protected()
    feed(core, on.Tick(0.03, 0.03))
    for now in (0.06, 0.09, 0.12, 0.15):
        assert feed(core, on.Tick(now, 0.03)) == []
    feed(core, on.Captured(0.16, 2))
    assert feed(core, on.Tick(0.17, 0.03))[1:] == [do.AcquireWitness(1)]


def test_a_loss_during_the_synchronisation_needs_no_grant() -> None:
    core = alone()
    feed(core, on.PeerConnected(0.0), on.PeerReady(0.0, 1))
    assert feed(core, on.LinkLost(0.1, "reset"), on.SyncConverged(0.1)) == []
    assert core.phase is Phase.SOLO
    assert not core.exposed


def test_stalling_pauses_the_guest_and_asks_nobody() -> None:
    core = protected(OnLoss.STALL)
    assert feed(core, on.LinkLost(0.1, "reset")) == [do.PauseGuest()]
    assert feed(core, tick(5.0)) == []
    assert core.next_tick(5.0) is None


def test_a_stalled_guest_drains_once_a_new_base_is_acknowledged() -> None:
    core = stalled()
    assert feed(core, on.Released(0.08, 2)) == []
    assert feed(core, on.PeerConnected(0.1)) == [do.AcquireWitness(1)], "the lost one may hold an epoch"
    assert feed(core, on.WitnessGranted(0.1, 2)) == [do.Greet(2)]
    assert feed(core, on.PeerReady(0.1, 2)) == [do.StartSync()]
    assert feed(core, on.SyncConverged(0.1)) == [do.Checkpoint(4, base=True)]
    assert feed(core, on.Captured(0.1, 4)) == [do.SendEpoch(4)]
    assert feed(core, tick(0.2)) == []
    assert feed(core, on.Acknowledged(0.2, 4)) == [do.Release(3)]
    assert feed(core, on.Released(0.2, 3)) == [do.SealStalled(4), do.Release(4)]
    assert feed(core, on.Released(0.2, 4)) == [do.ResumeGuest(), do.Checkpoint(5, base=False)]


def test_a_second_loss_before_the_base_is_acknowledged_keeps_everything_held() -> None:
    core = stalled()
    feed(core, on.Released(0.08, 2), on.PeerConnected(0.1), on.WitnessGranted(0.1, 2), on.PeerReady(0.1, 2))
    feed(core, on.SyncConverged(0.1), on.Captured(0.1, 4))
    assert feed(core, on.LinkLost(0.2, "reset")) == []
    assert list(core.unreleased) == [3]
    assert core.open_epoch == 4


def test_a_secondary_that_says_goodbye_is_lost() -> None:
    core = protected()
    assert feed(core, on.PeerLeft(0.1, Farewell.LEAVING)) == [
        do.EndSession("the secondary said leaving"),
        do.AcquireWitness(1),
    ]


@pytest.mark.parametrize(("epoch", "expected"), [(3, "2"), (1, "2"), (2**63, "2")])
def test_an_acknowledgement_out_of_order_ends_the_session(epoch: int, expected: str) -> None:
    core = protected()
    feed(core, tick(0.03), on.Captured(0.03, 2))
    assert feed(core, on.Acknowledged(0.04, epoch)) == [
        do.EndSession(f"the secondary acknowledged epoch {epoch}, expected {expected}"),
        do.AcquireWitness(1),
    ]


def test_an_acknowledgement_of_nothing_ends_the_session() -> None:
    core = protected()
    assert feed(core, on.Acknowledged(0.01, 2))[0] == do.EndSession(
        "the secondary acknowledged epoch 2, expected none"
    )


def test_a_handshake_under_an_old_generation_is_refused() -> None:
    core = alone()
    feed(core, on.PeerConnected(0.0))
    assert feed(core, on.PeerReady(0.0, 0)) == [do.EndSession("the handshake came too late")]


# --- ending -----------------------------------------------------------------------------------------

STOPPED = Finish(ExitStatus.CLEAN, "stopped as asked")
ORDERLY = [do.DestroyGuest("stopped as asked"), do.EndSession("stopped as asked", Farewell.ENDED), STOPPED]
UNLINKED = [do.DestroyGuest("stopped as asked"), do.EndSession("stopped as asked"), STOPPED]


def test_a_stop_takes_a_last_checkpoint_and_ends_when_it_is_released() -> None:
    core = protected()
    assert feed(core, on.StopRequested(0.001)) == [do.Checkpoint(2, base=False)]
    assert feed(core, on.Captured(0.002, 2)) == [do.SendEpoch(2)]
    assert feed(core, on.Acknowledged(0.003, 2)) == [do.Release(2)]
    assert feed(core, on.Released(0.004, 2)) == ORDERLY
    assert feed(core, on.StopRequested(0.005), tick(1.0), on.Acknowledged(1.0, 3)) == [], "late"
    assert core.phase is Phase.ENDED


def test_a_guest_that_powers_off_ends_the_same_way() -> None:
    core = protected()
    ended = on.GuestEnded(0.001, GuestEnd.SHUTDOWN, "poweroff")
    assert feed(core, ended) == [do.Checkpoint(2, base=False)]
    feed(core, on.Captured(0.002, 2), on.Acknowledged(0.003, 2))
    assert feed(core, on.Released(0.004, 2))[-1] == Finish(ExitStatus.CLEAN, "the guest ended: poweroff")


def test_a_guest_that_powers_off_within_a_checkpoint_is_not_resumed() -> None:
    core = protected()
    feed(core, tick(0.03), on.GuestEnded(0.03, GuestEnd.SHUTDOWN, "poweroff"))
    assert feed(core, on.Captured(0.03, 2)) == [do.SendEpoch(2), do.Checkpoint(3, base=False)]


def test_a_stop_of_an_ending_guest_only_waits() -> None:
    core = protected()
    feed(core, on.GuestEnded(0.001, GuestEnd.SHUTDOWN, "poweroff"), on.Captured(0.002, 2))
    assert feed(core, on.StopRequested(0.003)) == []
    feed(core, on.Acknowledged(0.004, 2))
    assert feed(core, on.Released(0.005, 2))[-1] == Finish(ExitStatus.CLEAN, "the guest ended: poweroff")


def test_a_second_stop_gives_up_and_leaves_the_guest_to_the_secondary() -> None:
    core = protected()
    feed(core, on.StopRequested(0.001), on.Captured(0.002, 2))
    message = "stopped before its last output could be released"
    assert feed(core, on.StopRequested(0.003)) == [
        do.DiscardOutput(),
        do.DestroyGuest(message),
        do.EndSession(message, Farewell.TAKE_OVER),
        Finish(ExitStatus.FAILED, message),
    ]


@pytest.mark.parametrize("on_loss", OnLoss)
def test_a_stop_without_a_secondary_is_immediate(on_loss: OnLoss) -> None:
    assert feed(alone(on_loss), on.StopRequested(1.0)) == UNLINKED


def test_a_stop_before_the_first_grant_does_not_wait_for_the_witness() -> None:
    core = make()
    feed(core, on.Started(0.0, 0, ""))
    assert feed(core, on.StopRequested(0.1)) == UNLINKED


def test_a_stop_of_a_stalled_guest_opens_first() -> None:
    core = stalled()
    assert feed(core, on.StopRequested(1.0)) == [do.AcquireWitness(1)]
    assert feed(core, on.WitnessGranted(1.0, 2)) == [do.OpenOutput(2)]
    assert feed(core, on.OutputOpened(1.0)) == UNLINKED


def test_a_stop_while_a_new_secondary_is_about_to_be_greeted_uses_the_grant_to_open() -> None:
    core = stalled()
    feed(core, on.Released(0.08, 2), on.PeerConnected(0.1))
    assert feed(core, on.StopRequested(0.1)) == []
    assert feed(core, on.WitnessGranted(0.1, 2)) == [do.OpenOutput(2)]
    assert feed(core, on.OutputOpened(0.1)) == UNLINKED


@pytest.mark.parametrize("late", [on.LinkLost(0.2, "reset"), on.PeerLeft(0.2, Farewell.LEAVING)])
def test_losing_the_link_while_opening_to_end_asks_the_witness_once(late: PrimaryEvent) -> None:
    core = stalled()
    feed(core, on.Released(0.08, 2), on.PeerConnected(0.1), on.WitnessGranted(0.1, 2), on.PeerReady(0.1, 2))
    assert feed(core, on.StopRequested(0.1)) == [do.AcquireWitness(2)]
    assert not any(isinstance(effect, do.AcquireWitness) for effect in feed(core, late))
    assert feed(core, on.WitnessGranted(0.2, 3)) == [do.OpenOutput(3)]
    assert feed(core, on.OutputOpened(0.2)) == UNLINKED


def test_a_link_lost_before_the_last_acknowledgement_opens_with_a_grant() -> None:
    core = protected()
    feed(core, on.StopRequested(0.001), on.Captured(0.002, 2))
    assert feed(core, on.LinkLost(0.003, "reset")) == [do.AcquireWitness(1)]
    assert feed(core, on.WitnessGranted(0.01, 2)) == [do.OpenOutput(2)]
    assert feed(core, on.OutputOpened(0.01)) == UNLINKED


GIVES_WAY: list[tuple[Callable[[PrimaryCore], object], PrimaryEvent, ExitStatus]] = [
    (lambda core: None, on.GuestEnded(0.1, GuestEnd.DIED, "gone"), ExitStatus.GUEST_DIED),
    (lambda core: None, on.OutputFailed(0.1, "gone"), ExitStatus.FAILED),
    (lambda core: feed(core, tick(0.03)), on.GuestEnded(0.1, GuestEnd.DIED, "gone"), ExitStatus.GUEST_DIED),
    (lambda core: feed(core, tick(0.03)), on.OutputFailed(0.1, "gone"), ExitStatus.FAILED),
]


@pytest.mark.parametrize(("before", "event", "status"), GIVES_WAY)
def test_a_host_that_cannot_go_on_gives_way_at_once(
    before: Callable[[PrimaryCore], object], event: PrimaryEvent, status: ExitStatus
) -> None:
    core = protected()
    before(core)
    assert feed(core, event) == [
        do.DiscardOutput(),
        do.DestroyGuest("gone"),
        do.EndSession("gone", Farewell.TAKE_OVER),
        Finish(status, "gone"),
    ]
    assert feed(core, on.Captured(0.2, 2), on.LinkLost(0.2, "reset")) == [], "late"


# --- bounds -------------------------------------------------------------------------------------------


def test_no_session_begins_while_a_release_still_changes_the_disks() -> None:
    core = stalled()
    declined = feed(core, on.PeerConnected(0.1))
    assert [type(effect) for effect in declined] == [do.EndSession]
    feed(core, on.Released(0.2, 2))
    assert feed(core, on.PeerConnected(0.3)) == [do.AcquireWitness(1)]


def test_a_secondary_that_lives_but_owes_an_acknowledgement_is_lost_in_the_end() -> None:
    core = protected(window=1)
    feed(core, tick(0.03), on.Captured(0.03, 2))
    times = [0.03 + 0.05 * step for step in range(1, 650)]
    effects = [effect for now in times for effect in feed(core, tick(now))]
    assert do.AcquireWitness(1) in effects
    ended = next(effect for effect in effects if isinstance(effect, do.EndSession))
    assert ended.reason == "the secondary has owed epoch 2 for 30 s"


def test_a_second_stop_within_a_checkpoint_that_does_not_end_gives_way() -> None:
    core = protected()
    feed(core, tick(0.03))
    assert feed(core, on.StopRequested(0.04)) == []
    assert feed(core, on.StopRequested(9.0))[-1] == do.Finish(
        ExitStatus.FAILED, "stopped within a checkpoint that did not end"
    )


def test_a_secondary_with_half_a_copy_is_not_told_that_all_ended_in_order() -> None:
    core = alone()
    feed(core, on.PeerConnected(0.0), on.PeerReady(0.0, 1))
    leaving = [effect for effect in feed(core, on.StopRequested(0.1)) if isinstance(effect, do.EndSession)]
    assert [effect.farewell for effect in leaving] == [None]


@pytest.mark.parametrize("first", ["tick", "acknowledgement"])
def test_a_primary_that_slept_releases_nothing_before_the_witness_has_spoken(first: str) -> None:
    core = protected()
    feed(core, tick(0.03), on.Captured(0.03, 2))
    woken = 0.03 + DETECT_S + 0.01
    events: list[PrimaryEvent] = [on.Acknowledged(woken, 2), tick(woken)]
    if first == "tick":
        events.reverse()
    effects = [effect for event in events for effect in core.step(event)]
    assert [type(effect) for effect in effects] == [do.EndSession, do.AcquireWitness]
    assert core.phase is Phase.CONTENDING


# --- modes ------------------------------------------------------------------------------------------

NET = OutputKind.NETWORK


def tapped(on_loss: OnLoss = OnLoss.SOLO, **settings: int) -> PrimaryCore:
    """Protected, in event-tap mode; nothing is held yet."""
    return protected(on_loss, EventTapPolicy(frozenset(OutputKind), EPOCH_S), **settings)


def test_a_tapped_guest_without_outputs_is_left_alone() -> None:
    core = tapped()
    assert feed(core, tick(100.0)) == []
    assert core.next_tick(100.0) == pytest.approx(100.0 + DETECT_S / 10)


def test_a_tapped_output_stops_the_guest_until_its_acknowledgement() -> None:
    core = tapped()
    assert feed(core, on.OutputHeld(1.0, 2, NET)) == [do.Checkpoint(2, base=False)]
    assert feed(core, on.Captured(1.01, 2, 0.005, 1)) == [do.SendEpoch(2)]
    assert core.paused
    assert feed(core, on.Acknowledged(1.02, 2)) == [do.Release(2), do.ResumeGuest()]
    assert feed(core, on.Released(1.03, 2)) == []


def test_an_output_may_come_before_the_last_one_has_left() -> None:
    core = tapped()
    feed(core, on.OutputHeld(1.0, 2, NET), on.Captured(1.0, 2), on.Acknowledged(1.0, 2))
    assert feed(core, on.OutputHeld(1.0, 3, NET)) == [do.Checkpoint(3, base=False)]
    assert feed(core, on.Captured(1.0, 3), on.Released(1.0, 2)) == [do.SendEpoch(3)]
    assert feed(core, on.Acknowledged(1.0, 3)) == [do.Release(3), do.ResumeGuest()]


def test_an_output_behind_a_seal_stops_the_guest_again_once_it_runs() -> None:
    core = tapped()
    feed(core, on.OutputHeld(1.0, 2, NET))
    assert feed(core, on.OutputHeld(1.001, 3, NET)) == []
    feed(core, on.Captured(1.002, 2))
    effects = feed(core, on.Acknowledged(1.003, 2))
    assert effects == [do.Release(2), do.ResumeGuest(), do.Checkpoint(3, base=False)]


def test_a_tapped_guest_whose_secondary_is_lost_goes_on_by_a_grant() -> None:
    core = tapped()
    feed(core, on.OutputHeld(1.0, 2, NET), on.Captured(1.0, 2))
    assert feed(core, on.LinkLost(1.0, "reset")) == [do.AcquireWitness(1)]
    assert feed(core, on.WitnessGranted(1.0, 2)) == [do.OpenOutput(2)]
    assert feed(core, on.OutputOpened(1.0)) == [do.ResumeGuest()]


def test_a_tapped_guest_is_ended_in_order_from_its_rest() -> None:
    core = tapped()
    feed(core, on.OutputHeld(1.0, 2, NET), on.Captured(1.0, 2))
    assert feed(core, on.StopRequested(1.0)) == []
    assert feed(core, on.Acknowledged(1.0, 2)) == [do.Release(2), do.Checkpoint(3, base=False)]
    feed(core, on.Captured(1.0, 3), on.Released(1.0, 2), on.Acknowledged(1.0, 3))
    assert isinstance(feed(core, on.Released(1.0, 3))[-1], Finish)


def test_a_silent_adaptive_guest_is_left_alone_and_a_late_output_is_let_out_at_once() -> None:
    core = protected(policy=AdaptivePolicy(ceiling_s=0.1))
    assert feed(core, tick(0.3)) == []
    assert feed(core, on.OutputHeld(0.3, 2, OutputKind.DISK)) == [do.Checkpoint(2, base=False)]


def test_an_adaptive_guest_is_checkpointed_when_the_last_one_has_committed() -> None:
    core = protected(policy=AdaptivePolicy(ceiling_s=0.1))
    assert feed(core, on.OutputHeld(0.01, 2, NET)) == [do.Checkpoint(2, base=False)]
    assert feed(core, on.Captured(0.015, 2, 0.005, 1)) == [do.ResumeGuest(), do.SendEpoch(2)]
    assert feed(core, on.OutputHeld(0.02, 3, NET)) == []
    assert feed(core, on.Acknowledged(0.03, 2)) == [do.Release(2), do.Checkpoint(3, base=False)]
