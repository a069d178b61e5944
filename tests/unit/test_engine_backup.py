"""The secondary's core, path by path: events in, the exact effects out."""

from __future__ import annotations

import pytest

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.backup import BackupCore
from remuslike.engine.effects import BackupEffect, ExitStatus, Finish
from remuslike.engine.events import BackupEvent, Farewell, GuestEnd
from remuslike.engine.phases import BackupPhase, BackupSettings

DETECT_S = 0.1


def make(window: int = 2) -> BackupCore:
    return BackupCore(BackupSettings(DETECT_S, window, witness_retry_s=0.2))


def feed(core: BackupCore, *events: BackupEvent) -> list[BackupEffect]:
    """All effects of these events, with the module's invariants checked after each."""
    effects: list[BackupEffect] = []
    for event in events:
        effects += core.step(event)
        assert len(core.unapplied) <= core._settings.window
        assert len(core.unacknowledged) <= core._settings.window
        if core.applied is not None and core.acknowledged is not None:
            assert core.acknowledged - core.applied == len(core.unapplied)
    return effects


def epoch(number: int, parts: int = 2) -> list[BackupEvent]:
    """All frames of an epoch."""
    return [on.EpochBegan(number), *[on.EpochPart(number)] * parts, on.EpochCompleted(number, parts)]


def syncing() -> BackupCore:
    core = make()
    assert feed(core, on.PeerReady(0.0, 5)) == []
    return core


def standby() -> BackupCore:
    """Its base, epoch 1, is acknowledged and applied."""
    core = syncing()
    feed(core, *epoch(1), on.Applied(0.0, 1))
    assert core.can_take_over
    return core


# --- receiving --------------------------------------------------------------------------------------


def test_a_synchronisation_is_written_as_it_comes() -> None:
    assert feed(syncing(), on.SyncPart(), on.SyncPart()) == [do.ApplySync(), do.ApplySync()]


def durable(window: int = 2) -> BackupCore:
    core = BackupCore(BackupSettings(DETECT_S, window, witness_retry_s=0.2, durable=True))
    feed(core, on.PeerReady(0.0, 5))
    return core


def test_a_durable_acknowledgement_waits_for_the_journal_and_so_does_the_store() -> None:
    core = durable()
    assert feed(core, *epoch(1)) == [do.Log(1)]
    assert feed(core, on.Logged(1)) == [do.Acknowledge(1), do.Apply(1)]
    assert feed(core, *epoch(2)) == [do.Log(2)]
    assert feed(core, on.Logged(2), on.Applied(0.0, 1)) == [do.Acknowledge(2), do.Apply(2)]


def test_an_epoch_that_is_logged_while_an_older_one_is_applied_waits_for_it() -> None:
    core = durable()
    feed(core, *epoch(1), on.Logged(1), *epoch(2))
    assert feed(core, on.Applied(0.0, 1)) == []
    assert feed(core, on.Logged(2)) == [do.Acknowledge(2), do.Apply(2)]


def test_a_whole_epoch_is_taken_over_with_although_its_logging_outlives_the_link() -> None:
    core = durable()
    feed(core, *epoch(1), on.Logged(1), on.Applied(0.0, 1), *epoch(2))
    assert feed(core, on.LinkLost(0.0, "cut")) == [do.AcquireWitness(5)]
    assert feed(core, on.WitnessGranted(0.0, 6)) == []
    assert feed(core, on.Logged(2)) == [do.Apply(2)]
    assert feed(core, on.Applied(0.0, 2)) == [do.OpenOutput(6), do.Activate(2)]


def test_a_journal_that_fails_spoils_the_copy() -> None:
    core = durable()
    feed(core, *epoch(1))
    effects = feed(core, on.ApplyFailed(0.0, "no room in the journal"))
    assert [type(effect) for effect in effects] == [do.EndSession, do.DestroyGuest, Finish]


def test_a_secondary_that_stops_logs_and_applies_what_is_whole() -> None:
    core = durable()
    feed(core, *epoch(1))
    assert [type(effect) for effect in feed(core, on.StopRequested(0.0))] == [do.EndSession]
    assert feed(core, on.Logged(1)) == [do.Apply(1)]
    assert isinstance(feed(core, on.Applied(0.0, 1))[-1], Finish)


def test_an_epoch_is_acknowledged_when_it_is_whole_and_then_applied() -> None:
    core = syncing()
    frames = epoch(1)
    assert feed(core, *frames[:-1]) == []
    assert not core.can_take_over
    assert feed(core, frames[-1]) == [do.Acknowledge(1), do.Apply(1)]
    assert feed(core, on.Applied(0.1, 1)) == []
    assert core.phase is BackupPhase.STANDBY


def test_epochs_are_applied_one_at_a_time_in_order() -> None:
    core = standby()
    assert feed(core, *epoch(2), *epoch(3)) == [do.Acknowledge(2), do.Apply(2), do.Acknowledge(3)]
    assert feed(core, on.Applied(0.1, 2)) == [do.Apply(3)]


def test_a_slow_disk_withholds_acknowledgements_and_not_the_session() -> None:
    core = standby()
    feed(core, *epoch(2), *epoch(3))
    assert feed(core, *epoch(4), *epoch(5)) == []
    assert core.acknowledged == 3
    assert feed(core, on.Applied(0.1, 2)) == [do.Acknowledge(4), do.Apply(3)]
    assert feed(core, on.Applied(0.2, 3)) == [do.Acknowledge(5), do.Apply(4)]


def test_a_primary_that_ignores_the_missing_acknowledgements_is_not_ours() -> None:
    core = standby()
    feed(core, *epoch(2), *epoch(3), *epoch(4), *epoch(5))
    assert feed(core, on.EpochBegan(6)) == [
        do.EndSession("the primary broke the protocol: 2 epochs wait for their acknowledgement"),
        do.DropPartial(4),
        do.DropPartial(5),
        do.AcquireWitness(5),
    ]


VIOLATIONS: list[tuple[list[BackupEvent], str, list[int]]] = [
    ([on.SyncPart()], "synchronisation data outside a synchronisation", []),
    ([on.EpochBegan(3)], "epoch 3 came, expected 2", []),
    ([on.EpochBegan(1)], "epoch 1 came, expected 2", []),
    ([on.EpochBegan(2), on.EpochBegan(2)], "epoch 2 began within epoch 2", [2]),
    ([on.EpochPart(2)], "a part of epoch 2 came within epoch None", []),
    ([on.EpochBegan(2), on.EpochPart(3)], "a part of epoch 3 came within epoch 2", [2]),
    ([on.EpochBegan(2), on.EpochCompleted(3, 0)], "epoch 3 ended within epoch 2", [2]),
    ([on.EpochBegan(2), on.EpochPart(2), on.EpochCompleted(2, 2)], "epoch 2 has 1 parts, expected 2", [2]),
    ([on.EpochBegan(2), on.SyncPart()], "synchronisation data outside a synchronisation", [2]),
]


@pytest.mark.parametrize(("frames", "what", "dropped"), VIOLATIONS)
def test_a_broken_protocol_ends_the_session_and_keeps_what_is_whole(
    frames: list[BackupEvent], what: str, dropped: list[int]
) -> None:
    core = standby()
    assert feed(core, *frames) == [
        do.EndSession(f"the primary broke the protocol: {what}"),
        *[do.DropPartial(number) for number in dropped],
        do.AcquireWitness(5),
    ]
    assert feed(core, *epoch(2), on.SyncPart()) == [], "still in the pipe"
    assert core.acknowledged == 1


# --- losing the primary -----------------------------------------------------------------------------


def test_takeover_drops_the_partial_epoch_and_asks_before_it_opens() -> None:
    core = standby()
    feed(core, on.EpochBegan(2), on.EpochPart(2))
    assert feed(core, on.LinkLost(0.1, "reset")) == [do.DropPartial(2), do.AcquireWitness(5)]
    assert feed(core, on.WitnessGranted(0.1, 6)) == [do.OpenOutput(6), do.Activate(1)]
    assert feed(core, on.OutputOpened(0.1), on.Activated(0.1)) == []
    assert core.phase is BackupPhase.ACTIVE


def test_takeover_finishes_applying_first() -> None:
    core = standby()
    feed(core, *epoch(2), *epoch(3), on.LinkLost(0.1, "reset"))
    assert feed(core, on.WitnessGranted(0.1, 6)) == []
    assert feed(core, on.Applied(0.2, 2)) == [do.Apply(3)]
    assert feed(core, on.Applied(0.3, 3)) == [do.OpenOutput(6), do.Activate(3)]


def test_takeover_finished_applying_waits_for_the_grant() -> None:
    core = standby()
    feed(core, *epoch(2), on.LinkLost(0.1, "reset"))
    assert feed(core, on.Applied(0.2, 2)) == []
    assert feed(core, on.WitnessGranted(0.3, 6)) == [do.OpenOutput(6), do.Activate(2)]


def test_an_epoch_that_waits_for_its_acknowledgement_is_dropped_like_a_partial_one() -> None:
    core = standby()
    feed(core, *epoch(2), *epoch(3), *epoch(4), on.EpochBegan(5))
    assert feed(core, on.LinkLost(0.1, "reset")) == [
        do.DropPartial(4),
        do.DropPartial(5),
        do.AcquireWitness(5),
    ]
    assert core.acknowledged == 3


def test_silence_is_a_loss() -> None:
    core = standby()
    for now in (0.02, 0.04, 0.06, 0.08):
        assert feed(core, on.Tick(now, 0.0)) == []
    assert feed(core, on.Tick(0.1, 0.0)) == [
        do.EndSession("the primary has been silent for 100 ms"),
        do.AcquireWitness(5),
    ]


@pytest.mark.parametrize("farewell", [Farewell.TAKE_OVER, Farewell.LEAVING])
def test_a_primary_that_leaves_is_lost(farewell: Farewell) -> None:
    assert feed(standby(), on.PeerLeft(0.1, farewell)) == [
        do.EndSession(f"the primary said {farewell.value}"),
        do.AcquireWitness(5),
    ]


def test_without_a_base_there_is_nothing_to_take_over_with() -> None:
    core = syncing()
    feed(core, on.SyncPart(), on.EpochBegan(1), on.EpochPart(1))
    assert feed(core, on.LinkLost(0.1, "reset")) == [do.DropPartial(1)]
    assert core.phase is BackupPhase.WAITING
    assert core.next_tick(0.1) is None


def test_an_unreachable_witness_is_asked_again_and_nothing_opens() -> None:
    core = standby()
    feed(core, on.LinkLost(0.1, "reset"))
    assert feed(core, on.WitnessUnreachable(1.0, "no answer"), on.Tick(1.1, 0.0)) == []
    assert core.next_tick(1.1) == pytest.approx(1.2)
    assert feed(core, on.Tick(1.2, 0.0)) == [do.AcquireWitness(5)]


def test_a_refused_secondary_forgets_its_copy_and_waits_for_a_new_session() -> None:
    core = standby()
    feed(core, *epoch(2), on.LinkLost(0.1, "reset"))
    assert feed(core, on.WitnessRefused(0.2, "alpha", 6)) == []
    assert not core.can_take_over
    assert feed(core, on.PeerReady(0.2, 6)) == [
        do.EndSession("this secondary is waiting, 1 epochs to apply")
    ], "its memory is still being written to"
    assert feed(core, on.Applied(0.3, 2), on.PeerReady(0.4, 6)) == []
    assert feed(core, *epoch(9)) == [do.Acknowledge(9), do.Apply(9)]


def test_a_second_primary_is_sent_away() -> None:
    core = standby()
    feed(core, on.LinkLost(0.1, "reset"))
    assert feed(core, on.PeerReady(0.2, 6)) == [
        do.EndSession("this secondary is contending, 0 epochs to apply")
    ]


# --- ending -----------------------------------------------------------------------------------------


def test_a_primary_that_ended_its_guest_ends_the_secondary() -> None:
    message = "the primary ended its guest in order"
    assert feed(standby(), on.PeerLeft(0.1, Farewell.ENDED)) == [
        do.EndSession(message),
        do.DestroyGuest(message),
        Finish(ExitStatus.CLEAN, message),
    ]


def test_a_stop_finishes_applying_so_that_the_disks_are_one_epoch() -> None:
    core = standby()
    feed(core, *epoch(2), *epoch(3), *epoch(4))
    assert feed(core, on.StopRequested(0.1)) == [do.EndSession("stopped as asked", Farewell.LEAVING)]
    assert feed(core, on.LinkLost(0.1, "closed"), on.Tick(1.0, 0.0)) == []
    assert feed(core, on.Applied(0.2, 2)) == [do.Apply(3)]
    assert feed(core, on.Applied(0.3, 3)) == [
        do.DestroyGuest("stopped as asked"),
        Finish(ExitStatus.CLEAN, "stopped as asked"),
    ], "epoch 4 was never acknowledged"
    assert feed(core, on.WitnessGranted(1.0, 6), on.Applied(1.0, 4)) == [], "late"


FAILURES: list[tuple[BackupEvent, str, ExitStatus]] = [
    (
        on.ApplyFailed(0.1, "no room"),
        "an acknowledged epoch could not be applied: no room",
        ExitStatus.FAILED,
    ),
    (on.GuestEnded(0.1, GuestEnd.DIED, "gone"), "gone", ExitStatus.GUEST_DIED),
]


@pytest.mark.parametrize(("event", "message", "status"), FAILURES)
def test_a_spoilt_copy_leaves_and_never_takes_over(
    event: BackupEvent, message: str, status: ExitStatus
) -> None:
    core = standby()
    feed(core, *epoch(2))
    assert feed(core, event) == [
        do.EndSession(message, Farewell.LEAVING),
        do.DestroyGuest(message),
        Finish(status, message),
    ]
    assert feed(core, on.LinkLost(0.2, "closed"), on.WitnessGranted(0.2, 6)) == []


def active() -> BackupCore:
    core = standby()
    feed(core, on.LinkLost(0.1, "reset"), on.WitnessGranted(0.1, 6), on.Activated(0.1))
    return core


def test_a_standby_that_refuses_its_state_fails() -> None:
    core = standby()
    feed(core, on.LinkLost(0.1, "reset"), on.WitnessGranted(0.1, 6))
    message = "the standby could not be activated: bad stream"
    assert feed(core, on.ActivationFailed(0.1, "bad stream"))[-1] == Finish(ExitStatus.FAILED, message)


def test_an_active_guest_that_powers_off_ends_in_order() -> None:
    assert feed(active(), on.GuestEnded(1.0, GuestEnd.SHUTDOWN, "poweroff"))[-1] == Finish(
        ExitStatus.CLEAN, "the guest ended: poweroff"
    )


def test_an_active_guest_that_dies_is_a_failure() -> None:
    ended = on.GuestEnded(1.0, GuestEnd.DIED, "gone")
    assert feed(active(), ended)[-1] == Finish(ExitStatus.GUEST_DIED, "gone")


def test_a_second_stop_does_not_wait_for_a_disk_that_hangs() -> None:
    core = standby()
    feed(core, *epoch(2), on.StopRequested(0.1))
    assert core.phase is BackupPhase.ENDING
    ended = feed(core, on.StopRequested(5.0))
    assert ended[-1] == do.Finish(ExitStatus.FAILED, "stopped before it had finished")


def test_a_stop_while_contending_waits_for_the_answer() -> None:
    refused, granted = standby(), standby()
    for core in (refused, granted):
        feed(core, on.LinkLost(0.1, "cut"))
        assert feed(core, on.StopRequested(0.2)) == []
    ended = feed(refused, on.WitnessRefused(0.3, "alpha", 8))
    assert ended[-1] == do.Finish(ExitStatus.CLEAN, "stopped as asked")
    feed(granted, on.WitnessGranted(0.3, 8))
    assert granted.phase in (BackupPhase.CONTENDING, BackupPhase.ACTIVATING)
    ended = feed(granted, on.StopRequested(0.4))
    assert ended[-1].status is ExitStatus.FAILED
