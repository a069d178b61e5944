"""The primary's protocol: when to checkpoint, what may leave, what to do alone.

Pure: one event in, effects out. Rule: every decision that lets output leave stands in this file,
and only three lines make one: `_acknowledged` and `_drain` (`Release`, P1, P5) and
`_granted` (`OpenOutput`, P3, P4).

Invariants, between events:

- `unreleased` and `unacknowledged` are ascending and without gaps; every epoch in `unreleased`
  was sealed, and `len(unreleased) <= depth` (P5, P6).
- Output is released for an epoch only if the epoch has left `unacknowledged` (P1).
- `exposed` is true while some secondary may hold a whole epoch under `generation`: then opening
  the output needs a new grant (P3).
- A checkpoint in progress (`checkpoint`) defers every event that would end the session or the
  guest in order, so that a seal never meets an opening buffer. A dead guest or a failed output
  can't wait for its `Captured`: with `DiscardOutput` the driver abandons the checkpoint.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.detector import Detector
from remuslike.engine.effects import ExitStatus, Finish, PrimaryEffect
from remuslike.engine.events import Farewell, GuestEnd, Pressure, PrimaryEvent
from remuslike.engine.pace import Pace
from remuslike.engine.phases import OnLoss, Phase, PrimarySettings, Rest, Want
from remuslike.engine.policy import TriggerPolicy


class PrimaryCore:
    """One primary from `Started` to `Finish`; see the head of this module."""

    def __init__(self, settings: PrimarySettings, policy: TriggerPolicy) -> None:
        assert settings.window >= 1, f"window={settings.window} must be at least 1"
        assert settings.depth >= 1, f"depth={settings.depth} must be at least 1"
        self._settings = settings
        self._pace = Pace(policy)
        self._detector = Detector(settings.detect_s)
        self.phase = Phase.STARTING
        self.generation = 0
        self.exposed = False
        self.holding = False
        self.paused = True
        self.open_epoch = 1
        self.checkpoint: int | None = None
        self.unacknowledged: deque[int] = deque()
        self.unreleased: deque[int] = deque()
        self._linked = False
        self._awake_at = 0.0
        self._slept = False  # for so long that the secondary must have taken us for dead
        self._pressure = Pressure.NONE
        self._awaiting_since = 0.0  # for how long the oldest acknowledgement has been due
        self._rest = Rest.NONE  # what must become of the last checkpoint before the guest resumes
        self._base: int | None = None  # the session's base, until it is acknowledged
        self._stalled_base = False  # the base was captured from a guest that stays paused
        self._drain_to: int | None = None  # a stalled guest's base is acknowledged: release up to it
        self._want: Want | None = None
        self._retry_at: float | None = None
        self._release_asked = 0  # the newest epoch whose release has been asked for
        self._stop_asked = False
        self._final: Finish | None = None  # why we are ending, once we are
        self._final_epoch: int | None = None  # the last checkpoint of all
        self._deferred: list[PrimaryEvent] = []

    @property
    def protected(self) -> bool:
        """Whether the secondary could take over now with nothing lost."""
        return self.phase is Phase.PROTECTED and self._base is None

    def next_tick(self, now: float) -> float | None:
        """When the next `Tick` is worth something, in seconds; None: not before another event."""
        times = []
        if self._linked:
            times.append(now + self._detector.interval_s)
        if self.phase is Phase.PROTECTED and self.checkpoint is None and self._may_checkpoint():
            due_at = self._due_at()
            times += [] if due_at is None else [due_at]
        if self._retry_at is not None:
            times.append(self._retry_at)
        return min(times, default=None)

    def step(self, event: PrimaryEvent) -> list[PrimaryEffect]:
        """Advance by one event; the effects are to be performed in order."""
        if self.phase is Phase.ENDED:
            return []
        slept_s, self._awake_at = event.now - self._awake_at, event.now
        if self._linked and not self._slept and slept_s >= self._settings.detect_s:
            self._slept = True
            reason = f"this side was not running for {slept_s * 1e3:.0f} ms: the secondary took it for dead"
            return [do.EndSession(reason), *self.step(on.LinkLost(event.now, reason)), *self.step(event)]
        if self.checkpoint is not None and self._ends_something(event):
            if isinstance(event, on.StopRequested) and event.__class__ in map(type, self._deferred):
                return self._give_way(ExitStatus.FAILED, "stopped within a checkpoint that did not end")
            self._deferred.append(event)
            return []
        return self._dispatch(event)

    @staticmethod
    def _ends_something(event: PrimaryEvent) -> bool:
        if isinstance(event, on.GuestEnded):
            return event.end is GuestEnd.SHUTDOWN
        return isinstance(event, on.LinkLost | on.PeerLeft | on.StopRequested)

    def _dispatch(self, event: PrimaryEvent) -> list[PrimaryEffect]:
        match event:
            case on.Tick():
                return self._tick(event)
            case on.Captured():
                return self._captured(event)
            case on.Acknowledged():
                return self._acknowledged(event)
            case on.Released():
                return self._released(event)
            case on.PressureChanged():
                self._pressure = event.pressure
                return self._consider(event.now)
            case on.OutputHeld():
                self._pace.output_held(event)
                return self._consider(event.now)
            case on.Started():
                return self._started(event)
            case on.Adopted():
                self.generation = event.generation
                self.phase, self.paused = Phase.SOLO, False
                return []
            case on.PeerConnected():
                return self._peer_connected()
            case on.PeerReady():
                return self._peer_ready(event)
            case on.SyncConverged():
                return self._start_checkpoint(base=True) if self.phase is Phase.SYNCING else []
            case on.OutputOpened():
                return self._output_opened()
            case on.LinkLost():
                return self._lost(event.now)
            case on.PeerLeft():
                return [do.EndSession(f"the secondary said {event.farewell.value}"), *self._lost(event.now)]
            case on.WitnessGranted():
                return self._granted(event)
            case on.WitnessRefused():
                return self._refused(event)
            case on.WitnessUnreachable():
                self._retry_at = event.now + self._settings.witness_retry_s
                return []
            case on.GuestEnded():
                return self._guest_ended(event)
            case on.OutputFailed():
                return self._give_way(ExitStatus.FAILED, event.reason)
            case on.StopRequested():
                return self._stop(event.now)
            case _:
                assert_never(event)

    # --- starting and sessions ------------------------------------------------------------------

    def _started(self, event: on.Started) -> list[PrimaryEffect]:
        assert self.phase is Phase.STARTING
        if event.holder not in ("", self._settings.name):
            return self._fenced(event.holder, event.generation)
        self.generation = event.generation
        if not event.holder:
            return self._ask(Want.START)
        # An earlier life of ours may have left a secondary that knows more than our disks: it goes first.
        self._want = Want.START
        self._retry_at = event.now + 2 * self._settings.detect_s
        return []

    def _peer_connected(self) -> list[PrimaryEffect]:
        # A release under way still changes the disks that a synchronisation would compare.
        releasing = bool(self.unreleased) and self.unreleased[0] <= self._release_asked
        idle = self.phase in (Phase.SOLO, Phase.STALLED) and self._drain_to is None and not releasing
        if not idle or self._final is not None or self._want is not None:
            return [do.EndSession("this primary is not ready for a secondary")]
        return self._ask(Want.GREET) if self.exposed else [do.Greet(self.generation)]

    def _peer_ready(self, event: on.PeerReady) -> list[PrimaryEffect]:
        assert not self._linked, "one handshake per link: the session before this one has not ended"
        if self.phase not in (Phase.SOLO, Phase.STALLED) or event.generation != self.generation:
            return [do.EndSession("the handshake came too late")]
        self._linked, self._slept = True, False
        self._detector.watch(event.now)
        self.phase = Phase.SYNCING
        return [do.StartSync()]

    def _output_opened(self) -> list[PrimaryEffect]:
        if self.phase is not Phase.OPENING:
            return []
        if self._final is not None:
            return self._finish(self._final)
        self.phase = Phase.SOLO
        return self._resume()

    # --- checkpoints ----------------------------------------------------------------------------

    def _may_checkpoint(self) -> bool:
        return (
            len(self.unacknowledged) < self._settings.window
            and len(self.unreleased) < self._settings.depth
            and self._drain_to is None
            and not self._stalled_base
            and self._rest is Rest.NONE
            and self._final_epoch is None
        )

    def _due_at(self) -> float | None:
        return self._pace.due_at(self.open_epoch, committing=bool(self.unacknowledged))

    def _consider(self, now: float) -> list[PrimaryEffect]:
        """Start a checkpoint if one is due and possible; stall the guest if one is overdue (P6)."""
        if self.checkpoint is not None:
            return []
        if self.phase is Phase.PROTECTED and self._may_checkpoint():
            due_at = self._due_at()
            due = (due_at is not None and now >= due_at) or self._pressure is not Pressure.NONE
            if due or self._final is not None:
                self._pace.begin(now, due_at)
                if self._final is not None:
                    self._final_epoch = self.open_epoch
                return self._start_checkpoint(base=False)
        if self._pressure is Pressure.FULL and self.holding and not self.paused:
            self.paused = True
            return [do.PauseGuest()]
        return []

    def _start_checkpoint(self, *, base: bool) -> list[PrimaryEffect]:
        assert self.checkpoint is None
        self.checkpoint = self.open_epoch
        if base:
            self._base = self.open_epoch
        return [do.Checkpoint(self.open_epoch, base)]

    def _captured(self, event: on.Captured) -> list[PrimaryEffect]:
        assert event.epoch == self.checkpoint, f"captured {event.epoch}, expected {self.checkpoint}"
        self.checkpoint = None
        if not self.unacknowledged:
            self._awaiting_since = event.now
        self.unacknowledged.append(event.epoch)
        self.exposed = True
        self._rest = self._rest_after(event.epoch)
        if event.epoch == self._base:
            self.phase = Phase.PROTECTED
            self._pace.begin(event.now)
            self._stalled_base = self.holding
        else:
            self._pace.captured(event.pause_s, event.packets)
            self.unreleased.append(event.epoch)
        if not self._stalled_base:
            self.open_epoch = event.epoch + 1
        self.holding = True
        self.paused = True
        over = any(isinstance(later, on.GuestEnded) for later in self._deferred)
        result: list[PrimaryEffect] = self._resume() if self._rest is Rest.NONE and not over else []
        result.append(do.SendEpoch(event.epoch))
        deferred, self._deferred = self._deferred, []
        for later in deferred:
            result += self.step(later)
        return result

    def _rest_after(self, epoch: int) -> Rest:
        base = epoch == self._base
        if self._pressure is Pressure.FULL or (base and self.paused):
            return Rest.UNTIL_RELEASED
        return Rest.UNTIL_ACKNOWLEDGED if self._pace.synchronous and not base else Rest.NONE

    def _acknowledged(self, event: on.Acknowledged) -> list[PrimaryEffect]:
        if not self._linked or self._slept:
            return []  # arrived in the same breath as the end of its session, or lay unread while we slept
        if not self.unacknowledged or event.epoch != self.unacknowledged[0]:
            expected = self.unacknowledged[0] if self.unacknowledged else "none"
            reason = f"the secondary acknowledged epoch {event.epoch}, expected {expected}"
            return [do.EndSession(reason), *self.step(on.LinkLost(event.now, reason))]
        epoch = self.unacknowledged.popleft()
        self._awaiting_since = event.now
        self._pace.committed(event.now)
        if epoch != self._base:
            self._release_asked = epoch
            return [do.Release(epoch), *self._end_rest(), *self._consider(event.now)]
        self._base = None
        if self._stalled_base:
            self._stalled_base, self._rest = False, Rest.NONE
            self._drain_to = epoch
            return self._drain()
        return [*self._end_rest(), *self._consider(event.now)]

    def _drain(self) -> list[PrimaryEffect]:
        """A stalled guest's base is safe: what it held since before the stall may leave, oldest first."""
        assert self._drain_to is not None
        if self.unreleased:
            if self.unreleased[0] <= self._release_asked:
                return []
            self._release_asked = self.unreleased[0]
            return [do.Release(self.unreleased[0])]
        self._release_asked = self._drain_to
        self.unreleased.append(self._drain_to)
        self.open_epoch = self._drain_to + 1
        return [do.SealStalled(self._drain_to), do.Release(self._drain_to)]

    def _released(self, event: on.Released) -> list[PrimaryEffect]:
        if not self.unreleased or event.epoch != self.unreleased[0]:
            return []  # released before the buffers were opened or discarded
        self.unreleased.popleft()
        if self._drain_to is not None:
            if event.epoch != self._drain_to:
                return self._drain()
            self._drain_to = None
            if self.phase is Phase.STALLED:
                return []
            return [*self._resume(), *self._consider(event.now)]
        if self._final is not None and event.epoch == self._final_epoch:
            return self._finish(self._final)
        return [*self._end_rest(), *self._consider(event.now)]

    def _end_rest(self) -> list[PrimaryEffect]:
        waits_for_release = self._rest is Rest.UNTIL_RELEASED and self.unreleased
        if self._rest is Rest.NONE or self.unacknowledged or waits_for_release:
            return []
        self._rest = Rest.NONE
        return self._resume()

    def _resume(self) -> list[PrimaryEffect]:
        if not self.paused or self._final is not None:
            return []
        self.paused = False
        return [do.ResumeGuest()]

    # --- losing the secondary -------------------------------------------------------------------

    def _tick(self, event: on.Tick) -> list[PrimaryEffect]:
        reason = self._silence(event)
        if reason is not None and self.checkpoint is None:
            return [do.EndSession(reason), *self.step(on.LinkLost(event.now, reason))]
        if self._retry_at is not None and event.now >= self._retry_at:
            self._retry_at = None
            return [do.AcquireWitness(self.generation), *self._consider(event.now)]
        return self._consider(event.now)

    def _silence(self, event: on.Tick) -> str | None:
        """Why the secondary counts as lost, if it does."""
        if not self._linked:
            return None
        if self._detector.silent(event.now, event.last_heard):
            return f"the secondary has been silent for {(event.now - event.last_heard) * 1e3:.0f} ms"
        owed_s = event.now - self._awaiting_since if self.unacknowledged else 0.0
        if owed_s >= self._settings.acknowledge_limit_s:
            return f"the secondary has owed epoch {self.unacknowledged[0]} for {owed_s:.0f} s"
        return None

    def _lost(self, now: float) -> list[PrimaryEffect]:
        if not self._linked:
            return []
        self._linked = False
        self._base = None
        if self.phase is Phase.SYNCING:
            self.phase = Phase.STALLED if self._settings.on_loss is OnLoss.STALL else Phase.SOLO
            return []
        if self.phase is not Phase.PROTECTED:
            return []  # ends already: the witness's answer decides, or the output that is opening
        self.unacknowledged.clear()
        self._rest = Rest.NONE
        self._stalled_base = False
        if self._settings.on_loss is OnLoss.SOLO or self._final is not None:
            return [*self._ask(Want.OPEN), *self._consider(now)]
        self.phase = Phase.STALLED
        pause: list[PrimaryEffect] = [] if self.paused else [do.PauseGuest()]
        self.paused = True
        return pause

    def _ask(self, want: Want) -> list[PrimaryEffect]:
        self._want = want
        if want is Want.OPEN:
            self.phase = Phase.CONTENDING
        return [do.AcquireWitness(self.generation)]

    def _granted(self, event: on.WitnessGranted) -> list[PrimaryEffect]:
        want, self._want = self._want, None
        assert want is not None, "the witness granted what nobody asked for"
        self._retry_at = None
        self.generation = event.generation
        self.exposed = False
        if want is Want.GREET and self._final is None:
            return [do.Greet(self.generation)]
        if want is Want.START and self._settings.on_loss is OnLoss.STALL:
            self.phase = Phase.STALLED
            return []
        self.phase = Phase.OPENING
        self.holding = False
        self.unreleased.clear()
        self._drain_to = None
        return [do.OpenOutput(self.generation)]

    def _refused(self, event: on.WitnessRefused) -> list[PrimaryEffect]:
        self._want = self._retry_at = None
        return self._fenced(event.holder, event.generation)

    def _fenced(self, holder: str, generation: int) -> list[PrimaryEffect]:
        reason = f"the witness gave generation {generation} to {holder}"
        self.phase = Phase.ENDED
        return [
            do.DiscardOutput(),
            do.DestroyGuest(reason),
            do.EndSession(reason),
            Finish(ExitStatus.FENCED, f"fenced: {reason}; the guest runs there, not here"),
        ]

    # --- ending ---------------------------------------------------------------------------------

    def _guest_ended(self, event: on.GuestEnded) -> list[PrimaryEffect]:
        if event.end is GuestEnd.DIED:
            return self._give_way(ExitStatus.GUEST_DIED, event.detail)
        self.paused = True
        return self._end(event.now, Finish(ExitStatus.CLEAN, f"the guest ended: {event.detail}"))

    def _give_way(self, status: ExitStatus, reason: str) -> list[PrimaryEffect]:
        """This host can't go on; a secondary that has a base may, at once."""
        self.phase = Phase.ENDED
        leave = do.EndSession(reason, Farewell.TAKE_OVER if self._linked else None)
        return [do.DiscardOutput(), do.DestroyGuest(reason), leave, Finish(status, reason)]

    def _stop(self, now: float) -> list[PrimaryEffect]:
        if self._stop_asked:
            return self._give_way(ExitStatus.FAILED, "stopped before its last output could be released")
        self._stop_asked = True
        return self._end(now, Finish(ExitStatus.CLEAN, "stopped as asked"))

    def _end(self, now: float, final: Finish) -> list[PrimaryEffect]:
        """End in order: a last checkpoint makes both disks the same, then both sides stop."""
        if self._final is not None:
            return []
        self._final = final
        if self.phase is Phase.PROTECTED:
            return self._consider(now)
        if self.phase is Phase.STARTING:
            return self._finish(final)
        if self._want is not None or self.phase is Phase.OPENING:
            return []  # the answer decides
        return self._ask(Want.OPEN) if self.holding else self._finish(final)

    def _finish(self, final: Finish) -> list[PrimaryEffect]:
        # A secondary without a base has half a copy: it waits for another primary.
        farewell = Farewell.ENDED if self.phase is Phase.PROTECTED and self._linked else None
        self.phase = Phase.ENDED
        return [do.DestroyGuest(final.message), do.EndSession(final.message, farewell), final]
