"""Protects a running guest: performs what `engine.primary` decides, and reports what came of it.

A primary does this from its start, a secondary from its takeover on. Effects of a step are performed in
order. Those that take time are handed to one of three workers, each of which keeps the order of what it is
given: the *guest* worker (checkpoint, pause, resume), the *sender* (a session's epochs) and the *output*
worker (release, open).
"""

from __future__ import annotations

import math
import time
from typing import Any, assert_never

import structlog
import trio

from diskbuf.errors import DiskbufError
from netbuf.errors import NetbufError
from remuslike.config import Settings
from remuslike.daemon.connector import Connector
from remuslike.daemon.control import integer_argument
from remuslike.daemon.mode import make_policy, sends_frames
from remuslike.daemon.outputs import Outputs
from remuslike.daemon.primary_session import PendingEpoch, PrimarySession, Released
from remuslike.daemon.question import ask_witness
from remuslike.daemon.samples import Sample, Samples
from remuslike.daemon.stepper import Stepper
from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.effects import Finish, PrimaryEffect
from remuslike.engine.events import GuestEnd, OutputKind, PrimaryEvent
from remuslike.engine.handshake import Hello
from remuslike.engine.phases import OnLoss, PrimarySettings
from remuslike.engine.ports import StepHook, Witness
from remuslike.engine.primary import PrimaryCore
from remuslike.errors import GuestError, RequestError, first_message
from remuslike.guest.running import QemuGuest
from transport import Link

_log = structlog.get_logger(__name__)


class Protector:
    """One guest on this host, from the first word to the core until the core says `Finish`."""

    def __init__(
        self,
        settings: Settings,
        guest: QemuGuest,
        outputs: Outputs,
        hello: Hello,
        witness: Witness,
        hook: StepHook,
        secondary_address: str | None,
    ) -> None:
        """`secondary_address`: where to look for a secondary; None: nowhere, the guest stays alone."""
        self._settings = settings
        self._guest = guest
        self._outputs = outputs
        self._witness = witness
        self._hook = hook
        self._secondary_address = secondary_address
        self._core = PrimaryCore(
            PrimarySettings(
                name=settings.name,
                on_loss=OnLoss(settings.on_secondary_loss),
                detect_s=settings.link.detect_ms / 1e3,
                window=settings.epoch.window,
                depth=outputs.depth,
            ),
            make_policy(settings.epoch),
        )
        self._connector = Connector(settings.link, hello, self.post, self._make_session)
        self._stepper: Stepper[PrimaryEvent] = Stepper(
            self._take, self._core.next_tick, self._connector.slot.heard
        )
        self._sends_frames = sends_frames(settings.epoch)
        self._finished = trio.Event()
        self._final: Finish | None = None
        self._destroyed = False
        self._samples = Samples()
        self._checkpointed: Sample | None = None
        self._pause_began = 0.0
        self._captured: dict[int, PendingEpoch] = {}
        self._guest_lock = trio.Lock()
        # Bounded by the core: a checkpoint, a resume, a pause; as many releases as the buffers are deep.
        self._guest_in, self._guest_out = trio.open_memory_channel[PrimaryEffect](math.inf)
        self._output_in, self._output_out = trio.open_memory_channel[PrimaryEffect](math.inf)

    async def run(self, beginning: on.Started | on.Adopted) -> Finish:
        """Protect the guest until it, or the operator, or the witness ends it."""
        self._outputs.on_pressure(self._note_pressure)
        self._outputs.on_output(self._note_output)
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._work_guest)
            self._nursery.start_soon(self._work_output)
            self._nursery.start_soon(self._stepper.keep_time)
            self.post(beginning)
            if self._secondary_address is not None:
                self._nursery.start_soon(self._connector.run, self._secondary_address)
            await self._finished.wait()
            await self._connector.slot.wait_parted()
            self._nursery.cancel_scope.cancel()
        assert self._final is not None
        return self._final

    @property
    def protected(self) -> bool:
        """Whether a secondary could take over now with nothing lost."""
        return self._core.protected

    def _make_session(self, link: Link) -> PrimarySession:
        self._samples.abandon()
        return PrimarySession(link, self._guest, self._outputs, self._samples, self.post, self._hook)

    # --- stepping the core ----------------------------------------------------------------------

    def post(self, event: PrimaryEvent) -> None:
        """Step the core."""
        self._stepper.post(event)

    def _take(self, event: PrimaryEvent) -> None:
        before = self._core.phase, self._core.protected
        for effect in self._core.step(event):
            self._perform(effect)
        if before != (self._core.phase, self._core.protected):
            _log.info(
                "primary.phase",
                phase=self._core.phase.value,
                protected=self._core.protected,
                epoch=self._core.open_epoch,
            )

    def _perform(self, effect: PrimaryEffect) -> None:
        match effect:
            case do.Checkpoint() | do.PauseGuest() | do.ResumeGuest():
                self._guest_in.send_nowait(effect)
            case do.Release() | do.OpenOutput() | do.SealStalled():
                self._output_in.send_nowait(effect)
            case do.SendEpoch():
                pending = self._captured.pop(effect.epoch)
                if self._connector.slot.session is not None:
                    self._connector.slot.session.enqueue(pending)
            case do.AcquireWitness():
                self._nursery.start_soon(self._acquire, effect.expected_generation)
            case do.Greet():
                self._connector.greet(effect.generation)
            case do.StartSync():
                self._connector.start_sync()
            case do.EndSession():
                self._connector.end(effect)
            case do.DiscardOutput():
                self._outputs.discard()
            case do.DestroyGuest():
                self._destroyed = True
                _log.info("guest.destroy", reason=effect.reason)
                self._nursery.start_soon(self._guest.destroy)
            case Finish():
                self._final = effect
                self._finished.set()
            case _:
                assert_never(effect)

    def _note_pressure(self) -> None:
        self.post(on.PressureChanged(time.monotonic(), self._outputs.pressure))

    def _note_output(self, kind: OutputKind, epoch: int) -> None:
        self.post(on.OutputHeld(time.monotonic(), epoch, kind))

    def guest_ended(self, end: GuestEnd, detail: str) -> None:
        """QEMU says so, or is gone."""
        if not self._destroyed:
            _log.warning("guest.ended", how=end.value, detail=detail)
            self.post(on.GuestEnded(time.monotonic(), end, detail))

    async def _acquire(self, expected_generation: int) -> None:
        self.post(await ask_witness(self._witness, expected_generation, self._settings.name))

    # --- the guest worker -----------------------------------------------------------------------

    async def _work_guest(self) -> None:
        async for effect in self._guest_out:
            async with self._guest_lock:
                following: PrimaryEffect | None = effect
                while following is not None:
                    await self._carry_out(following)
                    following = self._next_effect()

    def _next_effect(self) -> PrimaryEffect | None:
        """What is to be done already: a resume right after its checkpoint, before any other task runs."""
        try:
            return self._guest_out.receive_nowait()
        except trio.WouldBlock:
            return None

    async def _carry_out(self, effect: PrimaryEffect) -> None:
        try:
            match effect:
                case do.Checkpoint():
                    await self._checkpoint(effect.epoch, base=effect.base)
                case do.PauseGuest():
                    self._outputs.prepare()
                    self._outputs.guest_stands(True)
                    await self._guest.pause()
                case do.ResumeGuest():
                    await self._resume()
        except* GuestError as group:
            self.guest_ended(GuestEnd.DIED, first_message(group))
        except* (DiskbufError, NetbufError) as group:
            self._output_failed(first_message(group))

    async def _checkpoint(self, epoch: int, *, base: bool) -> None:
        sample = self._samples.begin(epoch)
        self._hook("checkpoint.begin", epoch)
        self._outputs.prepare()
        began = time.perf_counter()
        self._pause_began = began
        self._outputs.guest_stands(True)
        await self._guest.pause(capture_follows=True)
        sample.stop_ms = (time.perf_counter() - began) * 1e3
        self._hook("checkpoint.paused", epoch)
        if self._destroyed:
            return
        sealing = time.perf_counter()
        packets = self._outputs.open_packets
        if not base:
            self._outputs.seal(epoch)
        elif not self._core.holding:
            self._outputs.hold(epoch + 1)
        sample.seal_ms = (time.perf_counter() - sealing) * 1e3
        self._hook("checkpoint.sealed", epoch)
        capture = await self._guest.capture()
        sample.note_capture(capture, time.monotonic())
        pending = PendingEpoch(epoch, capture, [], sample, base)
        if base:
            pending.chunks = [(number, disk.take_dirty_chunks()) for number, disk in self._outputs.own_disks]
        if base and self._core.holding:
            pending.writes = [disk.held_writes() for disk in self._outputs.disks]
            if self._sends_frames:
                pending.frames = self._outputs.held_frames()
        elif not base:
            pending.writes = [disk.sealed(epoch) for disk in self._outputs.disks]
            if self._sends_frames:  # the guest waits for their acknowledgement anyway
                pending.frames = self._outputs.sealed_frames(epoch)
        self._captured[epoch] = pending
        self._checkpointed = sample
        self._hook("checkpoint.captured", epoch)
        self.post(on.Captured(time.monotonic(), epoch, time.perf_counter() - began, packets))

    async def _resume(self) -> None:
        began = time.perf_counter()
        self._outputs.guest_stands(False)
        await self._guest.resume()
        ended = time.perf_counter()
        sample, self._checkpointed = self._checkpointed, None
        if sample is not None:
            sample.note_pause((ended - began) * 1e3, (ended - self._pause_began) * 1e3)
            self._hook("checkpoint.resumed", sample.epoch)

    # --- the output worker ----------------------------------------------------------------------

    async def _work_output(self) -> None:
        async for effect in self._output_out:
            if self._destroyed:
                continue
            try:
                match effect:
                    case do.Release():
                        self._hook("release.begin", effect.epoch)
                        await self._outputs.release(effect.epoch)
                        self._hook("release.end", effect.epoch)
                        self._tell_released(effect.epoch)
                        self._note_pressure()
                        self.post(on.Released(time.monotonic(), effect.epoch))
                    case do.SealStalled():
                        self._outputs.seal(effect.epoch)
                    case do.OpenOutput():
                        await self._outputs.open()
                        self._note_pressure()
                        self.post(on.OutputOpened(time.monotonic()))
                        await self._outputs.flush()
            except* (DiskbufError, NetbufError) as group:
                self._output_failed(first_message(group))

    def _tell_released(self, epoch: int) -> None:
        session = self._connector.slot.session
        if (self._outputs.shares or self._sends_frames) and session is not None:
            session.enqueue(Released(epoch))

    def _output_failed(self, reason: str) -> None:
        if not self._destroyed:
            _log.error("output.failed", error=reason)
            self.post(on.OutputFailed(time.monotonic(), reason))

    # --- the control socket ---------------------------------------------------------------------

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request on the control socket."""
        match request["command"]:
            case "statistics":
                return self.statistics()
            case "samples":
                first = integer_argument(request, "since", 0, 1 << 60, 0)
                return self._samples.since(first, self._checkpointed)
            case "measure-pause":
                return await self._measure_pauses(integer_argument(request, "count", 1, 1000, 40))
            case other:
                raise RequestError(f"command {other!r}: known are statistics, samples, measure-pause")

    async def _measure_pauses(self, count: int) -> dict[str, Any]:
        """QEMU's own part of a pause, with no capture: what ours is compared with.

        Between two checkpoints it changes nothing: what the guest had sent by then belongs to the epoch that
        goes on afterwards. But in event-tap with a tapped disk QEMU's own flush, with which it stops, counts
        as the guest's, for no seal follows: each measurement starts a checkpoint.
        """
        pauses: list[float] = []
        while len(pauses) < count:
            async with self._guest_lock:
                if self._core.paused:
                    raise RequestError("command 'measure-pause': only while the guest runs")
                # Whoever has stopped it resumes it, and not before its time.
                if self._guest.running:
                    self._outputs.prepare()
                    pauses.append(await self._guest.measure_pause())
            await trio.sleep(self._settings.epoch.epoch_ms / 1e3)
        return {"pause_ms": pauses}

    def statistics(self) -> dict[str, Any]:
        """What `remuslike status` prints."""
        core, session = self._core, self._connector.slot.session
        sync = session.sync if session and not core.holding else None
        return {
            "role": "primary",
            "name": self._settings.name,
            "mode": self._settings.epoch.mode,
            "phase": core.phase.value,
            "protected": core.protected,
            "generation": core.generation,
            "epoch": core.open_epoch,
            "checkpoints": self._samples.count,
            "sync": None
            if sync is None
            else {"passes": sync.passes, "pages_sent": sync.pages_sent, "chunks_sent": sync.chunks_sent},
            "wire_bytes": session.wire_bytes if session else 0,
            "raw_bytes": session.raw_bytes if session else 0,
            "held": self._outputs.statistics(),
            "secondary": self._connector.secondary_name if session else None,
            "guest_pid": self._guest.pid,
            "tracker": self._guest.tracker,
        }
