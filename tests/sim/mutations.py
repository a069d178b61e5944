"""Deliberately broken variants. The oracle, or a buffer's contract, must catch every one of them.

A checker that can't fail is a defect: `test_simulation.py` asserts that each is caught within 6,000 seeds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.backup import BackupCore
from remuslike.engine.effects import BackupEffect, PrimaryEffect
from remuslike.engine.events import BackupEvent, PrimaryEvent
from remuslike.engine.phases import BackupPhase, Phase, Rest
from remuslike.engine.primary import PrimaryCore

from .backup import BackupDriver
from .buffers import Output
from .primary import PrimaryDriver
from .process import Effect
from .simulation import Parts
from .world import Steps


@dataclass(frozen=True, slots=True)
class Mutation:
    """`promises`: by which of P1 to P7, `tap`, `contract` or `liveness` it may be caught."""

    parts: Parts
    promises: frozenset[str]


class ReleasesBeforeAcknowledgement(PrimaryCore):
    """Releases an epoch once it is captured, and not again when it is acknowledged."""

    def step(self, event: PrimaryEvent) -> list[PrimaryEffect]:
        result: list[PrimaryEffect] = []
        result += [effect for effect in super().step(event) if not isinstance(effect, do.Release)]
        if isinstance(event, on.Captured) and event.epoch in self.unreleased:
            result.append(do.Release(event.epoch))
        return result


class ResumesBeforeAcknowledgement(PrimaryCore):
    """Lets the guest run on while its tapped output waits."""

    def _rest_after(self, epoch: int) -> Rest:
        rest = super()._rest_after(epoch)
        return Rest.NONE if rest is Rest.UNTIL_ACKNOWLEDGED else rest


class SealsTooEarly(PrimaryCore):
    """Forgets how many sealed epochs its buffers can hold."""

    def _may_checkpoint(self) -> bool:
        held, self.unreleased = self.unreleased, type(self.unreleased)()
        may = super()._may_checkpoint()
        self.unreleased = held
        return may


class OpensWithoutGrant(PrimaryCore):
    """Goes on alone without asking the witness."""

    def step(self, event: PrimaryEvent) -> list[PrimaryEffect]:
        result: list[PrimaryEffect] = []
        for effect in super().step(event):
            if isinstance(effect, do.AcquireWitness) and self.phase is Phase.CONTENDING:
                result += self.step(on.WitnessGranted(getattr(event, "now", 0.0), self.generation + 1))
            else:
                result.append(effect)
        return result


class GreetsWithOldGeneration(PrimaryCore):
    """Takes a new secondary without voiding what an older one may hold."""

    def _peer_connected(self) -> list[PrimaryEffect]:
        self.exposed = False
        return super()._peer_connected()


class IgnoresRefusal(PrimaryCore):
    """Stays where it is although the witness named the other side."""

    def step(self, event: PrimaryEvent) -> list[PrimaryEffect]:
        if isinstance(event, on.WitnessRefused):
            return super().step(on.WitnessGranted(event.now, event.generation))
        return super().step(event)


class SynchronisesDuringRelease(PrimaryCore):
    """Begins a session although a release still changes the disks that it compares."""

    def _peer_connected(self) -> list[PrimaryEffect]:
        unreleased, self.unreleased = self.unreleased, deque()
        try:
            return super()._peer_connected()
        finally:
            self.unreleased = unreleased


class DefersNothing(PrimaryCore):
    """Lets the end of a session or of the output break into a checkpoint."""

    @staticmethod
    def _ends_something(event: PrimaryEvent) -> bool:
        return False


class EndsInAHurry(PrimaryCore):
    """Takes any second reason to end, a guest's own shutdown too, for an impatient operator."""

    def _end(self, now: float, final: do.Finish) -> list[PrimaryEffect]:
        if self._final is not None:
            return self._give_way(do.ExitStatus.FAILED, "stopped before its last output could be released")
        return super()._end(now, final)


class AcknowledgesBeforeComplete(BackupCore):
    """Acknowledges an epoch at its first frame, and not again at its last."""

    def step(self, event: BackupEvent) -> list[BackupEffect]:
        result = super().step(event)
        if isinstance(event, on.EpochBegan) and self.receiving == event.epoch:
            return [*result, do.Acknowledge(event.epoch)]
        return [effect for effect in result if not isinstance(effect, do.Acknowledge)]


class AcknowledgesBeforeLogged(BackupCore):
    """Acknowledges an epoch durably when its logging begins, and not again at its end."""

    def step(self, event: BackupEvent) -> list[BackupEffect]:
        result: list[BackupEffect] = []
        for effect in super().step(event):
            if isinstance(effect, do.Log):
                result += [effect, do.Acknowledge(effect.epoch)]
            elif not (self._settings.durable and isinstance(effect, do.Acknowledge)):
                result.append(effect)
        return result


class ActivatesUnapplied(BackupCore):
    """Takes over without finishing what it has acknowledged."""

    def _take_over(self) -> list[BackupEffect]:
        if self._granted and self.phase is BackupPhase.CONTENDING and self.applied is not None:
            self.phase = BackupPhase.ACTIVATING
            return [do.OpenOutput(self.generation), do.Activate(self.applied)]
        return []


class TakesOverUngranted(BackupCore):
    """Takes the silence of its primary for a grant."""

    def step(self, event: BackupEvent) -> list[BackupEffect]:
        result = super().step(event)
        if self.phase is BackupPhase.CONTENDING:
            self._granted = True
            result += self._take_over()
        return result


class ResumesBeforeSeal(PrimaryDriver):
    """Captures and resumes, and only then closes the epoch in its buffers."""

    def checkpoint(self, effect: do.Checkpoint) -> Steps:
        if effect.base:
            yield from super().checkpoint(effect)
            return
        self._pause()
        yield 0.001
        self.capture(effect, tuple((write.block, write.token) for write in self.buffers[1].current))
        self.guest.resume()
        yield 0.003
        self._pause()
        self.close_epoch(effect)
        self.process.post(on.Captured(self.world.now, effect.epoch))


class FailsOpen(PrimaryDriver):
    """Lets everything out when the link breaks, so that nothing is lost."""

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, do.EndSession):
            for buffer in self.buffers:
                for output in buffer.held():
                    self.oracle.left(
                        self.process.name,
                        "write" if output.kind == "write" else "frame",
                        output.incarnation,
                        output.number,
                        output.reply_to,
                    )
        super().perform(effect)


class TellsReleasedTooEarly(PrimaryDriver):
    """Tells the secondary to forget what it is only about to release."""

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, do.Release):
            self.tell_released(effect.epoch)
        super().perform(effect)


class ForgetsReplay(BackupDriver):
    """Goes on where the acknowledged epoch ends, as if its frames had left."""

    def replay(self, frames: list[Output]) -> Steps:
        yield from super().replay([])


class ReplaysPartial(BackupDriver):
    """Sends again what came of an epoch that it never acknowledged."""

    def drop_partial(self, epoch: int) -> None:
        parts = [*self.incoming, *self.staged.get(epoch, [])]
        self.frames[epoch] = tuple(frame for part in parts for frame in part.frames)
        super().drop_partial(epoch)


class ReplaysBackwards(BackupDriver):
    """Sends the newest frame first."""

    def replay(self, frames: list[Output]) -> Steps:
        yield from super().replay(frames[::-1])


class AppliesPartial(BackupDriver):
    """Writes what has come of an epoch into memory and disk instead of dropping it."""

    def drop_partial(self, epoch: int) -> None:
        for part in self.incoming:
            self._write(part)
        super().drop_partial(epoch)


class KeepsPartial(BackupDriver):
    """Forgets to drop the partial epoch: its parts get into the next one."""

    def drop_partial(self, epoch: int) -> None:
        """Keep it."""


class AppliesOutOfOrder(BackupDriver):
    """Applies the newest of its staged epochs first."""

    def apply(self, epoch: int) -> Steps:
        newest = max(self.staged)
        self.staged[epoch], self.staged[newest] = self.staged[newest], self.staged[epoch]
        yield from super().apply(epoch)


class LosesPart(BackupDriver):
    """Forgets one frame of an epoch that it counts."""

    def before_step(self, event: object, body: object) -> None:
        super().before_step(event, body)
        if isinstance(event, on.EpochPart) and len(self.incoming) == 2:
            self.incoming.pop()


class ForgetsUnreleased(BackupDriver):
    """Takes an epoch that it has applied to its memory for one that is on the shared disk."""

    def apply(self, epoch: int) -> Steps:
        yield from super().apply(epoch)
        self.retained.clear()


class WritesUnlocked(BackupDriver):
    """Replays onto a shared disk that its primary may still be writing to."""

    def may_write(self) -> bool:
        return True


def _caught(parts: Parts, *promises: str) -> Mutation:
    return Mutation(parts, frozenset(promises))


MUTATIONS = {
    "release before ack": _caught(Parts(primary_core=ReleasesBeforeAcknowledgement), "P1"),
    "ack before complete": _caught(Parts(backup_core=AcknowledgesBeforeComplete), "P2"),
    "ack before logged": _caught(Parts(backup_core=AcknowledgesBeforeLogged), "P7"),
    "apply a partial epoch": _caught(Parts(backup_driver=AppliesPartial), "P2", "P7"),
    "second seal too early": _caught(Parts(primary_core=SealsTooEarly), "contract"),
    "open without grant": _caught(Parts(primary_core=OpensWithoutGrant), "P1", "P3"),
    "take over without grant": _caught(Parts(backup_core=TakesOverUngranted), "P3"),
    "resume before seal": _caught(Parts(primary_driver=ResumesBeforeSeal), "P1"),
    "apply out of order": _caught(Parts(backup_driver=AppliesOutOfOrder), "P2", "P7"),
    "takeover without finishing apply": _caught(Parts(backup_core=ActivatesUnapplied), "P2", "P7"),
    "release all at loss of link": _caught(Parts(primary_driver=FailsOpen), "P1"),
    "forget to drop the partial epoch": _caught(Parts(backup_driver=KeepsPartial), "P2", "P7"),
    "forget what is not on the shared disk": _caught(Parts(backup_driver=ForgetsUnreleased), "P7"),
    "write to a shared disk unlocked": _caught(Parts(backup_driver=WritesUnlocked), "P7"),
    "resume before the tapped output is safe": _caught(
        Parts(primary_core=ResumesBeforeAcknowledgement), "tap"
    ),
    "tell of a release too early": _caught(Parts(primary_driver=TellsReleasedTooEarly), "tap", "P7"),
    "forget to replay": _caught(Parts(backup_driver=ForgetsReplay), "tap"),
    "replay what nobody acknowledged": _caught(Parts(backup_driver=ReplaysPartial), "P1"),
    "replay backwards": _caught(Parts(backup_driver=ReplaysBackwards), "P5"),
    "lose a part": _caught(Parts(backup_driver=LosesPart), "P2", "P7"),
    "ignore the witness's refusal": _caught(Parts(primary_core=IgnoresRefusal), "P3"),
    "greet without a new generation": _caught(Parts(primary_core=GreetsWithOldGeneration), "P1", "P3"),
    "synchronise during a release": _caught(Parts(primary_core=SynchronisesDuringRelease), "P2", "P7"),
    "break into a checkpoint": _caught(
        Parts(primary_core=DefersNothing), "contract", "engine", "P3", "P5", "P7"
    ),
    "end in a hurry": _caught(Parts(primary_core=EndsInAHurry), "liveness"),
}
