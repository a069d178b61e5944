"""The secondary's protocol: what it stages, acknowledges and applies, and when it takes over.

Pure: one event in, effects out. Invariants, between events:

- An epoch is acknowledged only when each of its parts has been staged (P2), in order (P5).
- Epochs are applied one at a time, in order, and only acknowledged ones: `applied <= acknowledged`.
- At most `window` epochs are acknowledged and not applied; a further one waits whole, and its
  primary with it, for its acknowledgement (P6). Until then it is as good as partial.
- With `durable` acknowledgements an epoch counts as acknowledged here from when its logging was asked
  for: it is whole, and may be taken over with. The primary hears of it only once it is logged.
- `Activate` is asked for only with the witness's grant, with `applied == acknowledged` (P2, P3).
- Without an acknowledged base there is nothing to take over with.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.detector import Detector
from remuslike.engine.effects import BackupEffect, ExitStatus, Finish
from remuslike.engine.events import BackupEvent, Farewell
from remuslike.engine.phases import BackupPhase, BackupSettings


class BackupCore:
    """One secondary until `Finish`; see the head of this module."""

    def __init__(self, settings: BackupSettings) -> None:
        self._settings = settings
        self._detector = Detector(settings.detect_s)
        self.phase = BackupPhase.WAITING
        self.generation = 0
        self.acknowledged: int | None = None
        self.applied: int | None = None
        self.receiving: int | None = None
        self.unacknowledged: deque[int] = deque()  # whole, but too far ahead of what is applied
        self.unapplied: deque[int] = deque()
        self.unlogged: deque[int] = deque()  # of the unapplied, those on their way into the journals
        self._applying = False
        self._parts = 0
        self._linked = False
        self._granted = False
        self._retry_at: float | None = None
        self._stop_asked = False
        self._final: Finish | None = None

    @property
    def can_take_over(self) -> bool:
        """Whether a whole epoch is here."""
        return self.acknowledged is not None

    def next_tick(self, now: float) -> float | None:
        """When the next `Tick` is worth something, in seconds; None: not before another event."""
        times = [now + self._detector.interval_s] if self._linked else []
        if self._retry_at is not None:
            times.append(self._retry_at)
        return min(times, default=None)

    def step(self, event: BackupEvent) -> list[BackupEffect]:
        """Advance by one event; the effects are to be performed in order."""
        if self.phase is BackupPhase.ENDED:
            return []
        ends = on.Logged | on.Applied | on.ApplyFailed | on.StopRequested
        if self.phase is BackupPhase.ENDING and not isinstance(event, ends):
            return []
        match event:
            case on.Tick():
                return self._tick(event)
            case on.SyncPart():
                return self._sync_part()
            case on.EpochBegan():
                return self._epoch_began(event)
            case on.EpochPart():
                return self._epoch_part(event)
            case on.EpochCompleted():
                return self._epoch_completed(event)
            case on.Logged():
                return self._logged(event)
            case on.Applied():
                return self._applied(event)
            case on.PeerReady():
                return self._peer_ready(event)
            case on.LinkLost():
                return self._lost()
            case on.PeerLeft():
                return self._peer_left(event)
            case on.WitnessGranted():
                self.generation = event.generation
                self._granted = True
                self._retry_at = None
                return self._take_over()
            case on.WitnessRefused():
                return self._refused(event)
            case on.WitnessUnreachable():
                self._retry_at = event.now + self._settings.witness_retry_s
                return []
            case on.OutputOpened():
                return []
            case on.Activated():
                assert self.phase is BackupPhase.ACTIVATING
                self.phase = BackupPhase.ACTIVE
                return []
            case on.ActivationFailed():
                return self._fail(f"the standby could not be activated: {event.reason}")
            case on.ApplyFailed():
                return self._fail(f"an acknowledged epoch could not be applied: {event.reason}")
            case on.GuestEnded():
                return self._guest_ended(event)
            case on.StopRequested():
                return self._stop()
            case _:
                assert_never(event)

    # --- receiving ------------------------------------------------------------------------------

    def _peer_ready(self, event: on.PeerReady) -> list[BackupEffect]:
        if self.phase is not BackupPhase.WAITING or self.unapplied:
            return [
                do.EndSession(f"this secondary is {self.phase.value}, {len(self.unapplied)} epochs to apply")
            ]
        self.phase = BackupPhase.SYNCING
        self.generation = event.generation
        self._linked = True
        self._detector.watch(event.now)
        self.acknowledged = self.applied = None
        return []

    def _sync_part(self) -> list[BackupEffect]:
        if self.phase is not BackupPhase.SYNCING or self.receiving is not None:
            return self._violation("synchronisation data outside a synchronisation")
        return [do.ApplySync()]

    def _epoch_began(self, event: on.EpochBegan) -> list[BackupEffect]:
        if self.phase not in (BackupPhase.SYNCING, BackupPhase.STANDBY):
            return self._violation(f"epoch {event.epoch} outside a session")
        if self.receiving is not None:
            return self._violation(f"epoch {event.epoch} began within epoch {self.receiving}")
        newest = self.unacknowledged[-1] if self.unacknowledged else self.acknowledged
        if newest is not None and event.epoch != newest + 1:
            return self._violation(f"epoch {event.epoch} came, expected {newest + 1}")
        if len(self.unacknowledged) >= self._settings.window:
            return self._violation(f"{len(self.unacknowledged)} epochs wait for their acknowledgement")
        self.receiving = event.epoch
        self._parts = 0
        return []

    def _epoch_part(self, event: on.EpochPart) -> list[BackupEffect]:
        if event.epoch != self.receiving:
            return self._violation(f"a part of epoch {event.epoch} came within epoch {self.receiving}")
        self._parts += 1
        return []

    def _epoch_completed(self, event: on.EpochCompleted) -> list[BackupEffect]:
        if event.epoch != self.receiving:
            return self._violation(f"epoch {event.epoch} ended within epoch {self.receiving}")
        if event.parts != self._parts:
            return self._violation(f"epoch {event.epoch} has {self._parts} parts, expected {event.parts}")
        self.receiving = None
        self.phase = BackupPhase.STANDBY
        self.unacknowledged.append(event.epoch)
        return [*self._acknowledge_next(), *self._apply_next()]

    def _acknowledge_next(self) -> list[BackupEffect]:
        if not self.unacknowledged or len(self.unapplied) >= self._settings.window:
            return []
        self.acknowledged = self.unacknowledged.popleft()
        self.unapplied.append(self.acknowledged)
        if not self._settings.durable:
            return [do.Acknowledge(self.acknowledged)]
        self.unlogged.append(self.acknowledged)
        return [do.Log(self.acknowledged)]

    def _logged(self, event: on.Logged) -> list[BackupEffect]:
        epoch = self.unlogged.popleft()
        assert event.epoch == epoch, f"logged {event.epoch}, expected {epoch}"
        # No other session begins while an epoch is unapplied: a link that is there is this epoch's own.
        acknowledge = [do.Acknowledge(epoch)] if self._linked else []
        return [*acknowledge, *self._apply_next()]

    def _apply_next(self) -> list[BackupEffect]:
        if self._applying or not self.unapplied or self.unapplied[0] in self.unlogged:
            return []
        self._applying = True
        return [do.Apply(self.unapplied[0])]

    def _applied(self, event: on.Applied) -> list[BackupEffect]:
        assert self._applying
        assert event.epoch == self.unapplied[0], f"applied {event.epoch}, expected {self.unapplied[0]}"
        self._applying = False
        self.applied = self.unapplied.popleft()
        if self._final is not None and not self.unapplied:
            return self._end(self._final)
        return [*self._acknowledge_next(), *self._apply_next(), *self._take_over()]

    def _violation(self, what: str) -> list[BackupEffect]:
        if not self._linked:
            return []  # still in the pipe when the session ended
        return [do.EndSession(f"the primary broke the protocol: {what}"), *self._lost()]

    # --- taking over ----------------------------------------------------------------------------

    def _tick(self, event: on.Tick) -> list[BackupEffect]:
        if self._linked and self._detector.silent(event.now, event.last_heard):
            silence_ms = (event.now - event.last_heard) * 1e3
            return [do.EndSession(f"the primary has been silent for {silence_ms:.0f} ms"), *self._lost()]
        if self._retry_at is not None and event.now >= self._retry_at:
            self._retry_at = None
            return [do.AcquireWitness(self.generation)]
        return []

    def _lost(self) -> list[BackupEffect]:
        if not self._linked:
            return []
        self._linked = False
        result: list[BackupEffect] = [do.DropPartial(epoch) for epoch in self.unacknowledged]
        self.unacknowledged.clear()
        if self.receiving is not None:
            result.append(do.DropPartial(self.receiving))
            self.receiving = None
        if not self.can_take_over:
            self.phase = BackupPhase.WAITING
            return result
        self.phase = BackupPhase.CONTENDING
        return [*result, do.AcquireWitness(self.generation)]

    def _take_over(self) -> list[BackupEffect]:
        if not self._granted or self.unapplied or self.phase is not BackupPhase.CONTENDING:
            return []
        assert self.applied is not None
        assert self.applied == self.acknowledged
        self.phase = BackupPhase.ACTIVATING
        return [do.OpenOutput(self.generation), do.Activate(self.applied)]

    def _refused(self, event: on.WitnessRefused) -> list[BackupEffect]:
        """The primary goes on alone: what is here is out of date, and counts no more."""
        self._retry_at = None
        self.generation = event.generation
        self.phase = BackupPhase.WAITING
        self.acknowledged = None
        if self._stop_asked:
            return self._finish(Finish(ExitStatus.CLEAN, "stopped as asked"), None)
        return []

    def _peer_left(self, event: on.PeerLeft) -> list[BackupEffect]:
        if not self._linked:
            return []
        match event.farewell:
            case Farewell.ENDED:
                ended = Finish(ExitStatus.CLEAN, "the primary ended its guest in order")
                return self._finish(ended, None)
            case Farewell.TAKE_OVER | Farewell.LEAVING:
                said = f"the primary said {event.farewell.value}"
                return [do.EndSession(said), *self._lost()]
            case _:
                assert_never(event.farewell)

    # --- ending ---------------------------------------------------------------------------------

    def _stop(self) -> list[BackupEffect]:
        if self._stop_asked:
            return self._fail("stopped before it had finished")
        self._stop_asked = True
        if self.phase is BackupPhase.CONTENDING and not self._granted:
            return []  # the answer decides: if it is ours, the primary will not run the guest
        return self._finish(Finish(ExitStatus.CLEAN, "stopped as asked"), Farewell.LEAVING)

    def _guest_ended(self, event: on.GuestEnded) -> list[BackupEffect]:
        if self.phase is BackupPhase.ACTIVE and event.end is on.GuestEnd.SHUTDOWN:
            return self._finish(Finish(ExitStatus.CLEAN, f"the guest ended: {event.detail}"), None)
        return self._fail(event.detail, ExitStatus.GUEST_DIED)

    def _fail(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> list[BackupEffect]:
        farewell = Farewell.LEAVING if self._linked else None
        return [do.EndSession(message, farewell), *self._end(Finish(status, message))]

    def _finish(self, final: Finish, farewell: Farewell | None) -> list[BackupEffect]:
        """Stop once all that was acknowledged is applied, so that the disks end as one epoch (P2)."""
        leave = do.EndSession(final.message, farewell if self._linked else None)
        self._linked = False
        self.unacknowledged.clear()
        if not self.unapplied:
            return [leave, *self._end(final)]
        self.phase = BackupPhase.ENDING
        self._final = final
        return [leave]

    def _end(self, final: Finish) -> list[BackupEffect]:
        self.phase = BackupPhase.ENDED
        return [do.DestroyGuest(final.message), final]
