"""The secondary daemon: performs what `engine.backup` decides, and reports what came of it.

Applying, taking over and ending are done by one worker, in the order they were asked for.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from socket import socketpair
from typing import Any, assert_never

import structlog
import trio

from diskbuf import SealedWrites
from diskbuf.errors import DiskbufError, JournalFullError
from netbuf import rarp_frame
from netbuf.errors import NetbufError
from remuslike.config import Settings
from remuslike.daemon.backup_session import PAGES_AT_ONCE_MAX, BackupSession, StagedEpoch
from remuslike.daemon.control import serve_control
from remuslike.daemon.host import Host, introduce, make_witness, open_host
from remuslike.daemon.listener import Listener
from remuslike.daemon.protector import Protector
from remuslike.daemon.question import ask_witness
from remuslike.daemon.retained import RetainedOutputs
from remuslike.daemon.stepper import Stepper
from remuslike.daemon.takeover import Takeover, cause_of
from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.backup import BackupCore
from remuslike.engine.effects import BackupEffect, Finish
from remuslike.engine.events import BackupEvent, GuestEnd
from remuslike.engine.handshake import Hello
from remuslike.engine.phases import BackupPhase, BackupSettings
from remuslike.engine.ports import StepHook
from remuslike.errors import GuestError, HostError, RequestError, WitnessError
from remuslike.guest.process import QemuProcess, start_qemu
from remuslike.guest.running import QemuGuest
from remuslike.guest.standby import QemuStandby
from transport import Link, apply_pages

_log = structlog.get_logger(__name__)

# Where the guest now is, said again while switches may be missing it: QEMU announces once more.
_ANNOUNCEMENTS = 5
_ANNOUNCEMENT_INTERVAL_S = 0.1

# A shared store is locked until the old primary's process ends. It was refused by the witness or is dead, so
# that takes no longer than one of its own checks; if it hangs, an operator hears of it every 5 s.
_LOCK_TURN_S = 0.01
_LOCK_WARNING_TURNS = 500


class BackupDaemon:
    """One secondary, from its configuration to the reason it ended."""

    def __init__(self, settings: Settings, hook: StepHook) -> None:
        self._settings = settings
        self._hook = hook
        self._witness = make_witness(settings)
        durable = settings.link.ack == "durable"
        self._core = BackupCore(BackupSettings(detect_s=settings.link.detect_ms / 1e3, durable=durable))
        self._stepper: Stepper[BackupEvent] = Stepper(self._take, self._core.next_tick, self._heard)
        self._finished = trio.Event()
        self.running = False  # set up, so that `request_stop` can be followed
        self._final: Finish | None = None
        self._destroyed = False
        self._takeover: Takeover | None = None
        self._protector: Protector | None = None
        self._staged: dict[int, StagedEpoch] = {}
        self._retained = RetainedOutputs()
        self._devices = b""
        self._applied = trio.Event()  # an epoch was; replaced then
        # Bounded by the core's window, and a takeover.
        self._work_in, self._work_out = trio.open_memory_channel[BackupEffect](math.inf)
        self._log_in, self._log_out = trio.open_memory_channel[int](math.inf)

    async def run(self) -> Finish:
        """Set up, stand by, perhaps take over, and clean up; expected errors of set-up propagate."""
        opening = open_host(self._settings, self._hook, owns_shared=False)
        async with opening as host, trio.open_nursery() as nursery:
            self._host: Host = host
            self._outputs = host.outputs
            self._nursery = nursery
            self._process, self._standby = await self._start_standby(nursery)
            try:
                self._hello = await introduce(self._settings, host, self._process.version)
                self._listener = Listener(
                    self._settings.link, self._hello, self.post, self._make_session, self._refusal
                )
                await nursery.start(self._listener.run)
                nursery.start_soon(self._work)
                nursery.start_soon(self._work_journals)
                nursery.start_soon(self._stepper.keep_time)
                await nursery.start(serve_control, self._settings.control_path, self._answer)
                self.running = True
                _log.info("secondary.ready", address=self._settings.link.address)
                await self._finished.wait()
                await self._listener.slot.wait_parted()
            finally:
                self._outputs.discard()
                await self._process.destroy()
                self._process.close()
                nursery.cancel_scope.cancel()
        assert self._final is not None
        return self._final

    async def _start_standby(self, nursery: trio.Nursery) -> tuple[QemuProcess, QemuStandby]:
        ours, theirs = socketpair()
        with theirs:
            process = start_qemu(
                self._settings.name,
                self._settings.guest,
                taps=self._host.tap_descriptors,
                disk_sockets=self._host.disk_sockets,
                log_path=self._host.qemu_log,
                incoming=theirs.fileno(),
                on_end=self._guest_ended,
            )
            await nursery.start(process.run)
            standby = QemuStandby(process, ours)
            await standby.prepare(theirs.fileno())
        _log.info("standby.started", pid=process.pid, qemu=process.version)
        return process, standby

    # --- stepping the core ----------------------------------------------------------------------

    def post(self, event: BackupEvent) -> None:
        """Step the core."""
        self._stepper.post(event)

    def _take(self, event: BackupEvent) -> None:
        before = self._core.phase
        effects = self._core.step(event)
        if self._core.phase is not before:
            self._note_phase(event, before)
        for effect in effects:
            self._perform(effect)

    def _heard(self) -> float:
        return self._listener.slot.heard()

    def request_stop(self) -> None:
        """As the operator asks (SIGTERM)."""
        if self._protector is not None:
            self._protector.post(on.StopRequested(time.monotonic()))
        else:
            self.post(on.StopRequested(time.monotonic()))

    def _note_phase(self, event: BackupEvent, before: BackupPhase) -> None:
        _log.info("secondary.phase", phase=self._core.phase.value, epoch=self._core.acknowledged)
        if self._core.phase is BackupPhase.CONTENDING and before is BackupPhase.STANDBY:
            now = time.monotonic()
            silence_ms = max(0.0, now - self._heard()) * 1e3
            self._takeover = Takeover(cause_of(event), self._core.acknowledged, silence_ms, now)

    def _perform(self, effect: BackupEffect) -> None:
        match effect:
            case do.Acknowledge():
                if self._listener.slot.session is not None:
                    self._listener.slot.session.acknowledge(effect.epoch)
            case do.ApplySync():
                if self._listener.slot.session is not None:
                    self._listener.slot.session.admit_sync()
            case do.Log():
                self._log_in.send_nowait(effect.epoch)
            case do.Apply() | do.OpenOutput() | do.Activate():
                self._work_in.send_nowait(effect)
            case do.DropPartial():
                self._staged.pop(effect.epoch, None)
                _log.info("epoch.dropped", epoch=effect.epoch)
            case do.AcquireWitness():
                self._nursery.start_soon(self._acquire, effect.expected_generation)
            case do.EndSession():
                self._listener.slot.end(effect)
            case do.DiscardOutput():
                self._outputs.discard()
            case do.DestroyGuest():
                self._destroyed = True
                _log.info("guest.destroy", reason=effect.reason)
                self._nursery.start_soon(self._process.destroy)
            case Finish():
                self._final = effect
                self._finished.set()
            case _:
                assert_never(effect)

    def _guest_ended(self, end: GuestEnd, detail: str) -> None:
        if self._protector is not None:
            self._protector.guest_ended(end, detail)
        elif not self._destroyed:
            _log.warning("guest.ended", how=end.value, detail=detail)
            self.post(on.GuestEnded(time.monotonic(), end, detail))

    async def _acquire(self, expected_generation: int) -> None:
        answer = await ask_witness(self._witness, expected_generation, self._settings.name)
        if isinstance(answer, on.WitnessRefused):
            self._takeover = None
        elif isinstance(answer, on.WitnessGranted) and self._takeover is not None:
            self._takeover.granted_at = answer.now
        self.post(answer)

    # --- sessions -------------------------------------------------------------------------------

    async def _refusal(self, theirs: Hello) -> str | None:
        """A session is worth something only if this side, too, reaches the witness that decides."""
        if self._settings.witness.kind != "none":
            try:
                token = await self._witness.read()
            except WitnessError as error:
                return f"does not reach its witness: {error}"
            if token.generation != theirs.generation:
                return (
                    f"finds generation {token.generation} at its witness, {theirs.name!r} has"
                    f" {theirs.generation}: both must use the same one"
                )
        if self._core.phase is not BackupPhase.WAITING:
            return f"takes no primary: it is {self._core.phase.value}"
        if self._core.unapplied:
            return f"takes no primary yet: {len(self._core.unapplied)} epochs are still to apply"
        return None

    def _make_session(self, link: Link) -> BackupSession:
        session = BackupSession(link, self._standby.ram, self._outputs, self.post, self._hook)
        self._staged, self._retained = session.staged, session.retained
        return session

    # --- the workers ----------------------------------------------------------------------------

    async def _work_journals(self) -> None:
        async for epoch in self._log_out:
            try:
                if self._staged[epoch].base:
                    # What was synchronised before the base went past the journals.
                    for _, disk in self._outputs.own_disks:
                        await disk.sync_store()
                for number, writes in self._staged[epoch].writes_by_disk().items():
                    if number not in self._outputs.shared:
                        await self._log(number, epoch, writes)
            except DiskbufError as error:
                self._apply_failed(epoch, error)
            else:
                self._hook("log.end", epoch)
                self.post(on.Logged(epoch))

    async def _work(self) -> None:
        async for effect in self._work_out:
            match effect:
                case do.Apply():
                    await self._apply(effect.epoch)
                case do.OpenOutput():
                    await self._open_output()
                case do.Activate():
                    await self._activate()

    async def _log(self, number: int, epoch: int, writes: SealedWrites) -> None:
        while True:
            applied = self._applied
            try:
                return await self._outputs.disks[number].log(epoch, writes)
            except JournalFullError:
                await applied.wait()  # what fills it is being applied

    async def _apply(self, epoch: int) -> None:
        self._hook("apply.begin", epoch)
        staged = self._staged.pop(epoch)
        try:
            if sum(batch.page_count for batch in staged.batches) <= PAGES_AT_ONCE_MAX:
                self._apply_pages(staged)
            else:
                await trio.to_thread.run_sync(self._apply_pages, staged)
            kept = []
            for number, writes in staged.writes_by_disk().items():
                if number in self._outputs.shared:
                    kept.append((number, writes))
                else:
                    await self._outputs.disks[number].apply(epoch, writes)
        except DiskbufError as error:
            self._apply_failed(epoch, error)
            return
        self._retained.keep(epoch, kept, staged.frames)
        self._devices = staged.devices
        self._applied.set()
        self._applied = trio.Event()
        self._hook("apply.end", epoch)
        self.post(on.Applied(time.monotonic(), epoch))

    def _apply_failed(self, epoch: int, error: DiskbufError) -> None:
        _log.error("apply.failed", epoch=epoch, error=str(error))
        self.post(on.ApplyFailed(time.monotonic(), str(error)))

    def _apply_pages(self, staged: StagedEpoch) -> None:
        for batch in staged.batches:
            apply_pages(batch, self._standby.ram)

    async def _open_output(self) -> None:
        try:
            await self._take_shared_disks()
            await self._outputs.open()
            self._replay_frames()
            self._retained = RetainedOutputs()
        except (DiskbufError, NetbufError) as error:
            self.post(on.ActivationFailed(time.monotonic(), str(error)))
            return
        if self._takeover is not None:
            self._takeover.opened_at = time.monotonic()
        self.post(on.OutputOpened(time.monotonic()))

    async def _take_shared_disks(self) -> None:
        """Once no other host can write to them any more, write what may not be there yet."""
        for number, store in self._outputs.shared.items():
            waited = 0
            while not await trio.to_thread.run_sync(store.try_acquire):
                if waited % _LOCK_WARNING_TURNS == 0:
                    _log.warning("takeover.store_in_use", disk=number, store=store.uri)
                waited += 1
                await trio.sleep(_LOCK_TURN_S)
        for epoch, number, writes in self._retained.writes():
            await self._outputs.disks[number].apply(epoch, writes)
            _log.info("takeover.replayed", epoch=epoch, disk=number)

    def _replay_frames(self) -> None:
        """Before the guest runs and can send any behind them: frames of acknowledged epochs, which the
        primary may not have sent. The LAN sees again what it has seen already, as it may anyway."""
        for epoch, nic, frames in self._retained.frames():
            if self._outputs.replay(nic, frames):
                _log.info("takeover.replay", epoch=epoch, nic=nic, frames=len(frames))
                if self._takeover is not None:
                    self._takeover.replayed_frames += len(frames)

    async def _activate(self) -> None:
        try:
            await self._standby.activate(self._devices)
        except GuestError as error:
            self.post(on.ActivationFailed(time.monotonic(), str(error)))
            return
        takeover = self._takeover
        if takeover is not None:
            takeover.running_at = time.monotonic()
            _log.info("takeover.done", epoch=takeover.epoch, activation_ms=takeover.activation_ms)
        self.post(on.Activated(time.monotonic()))
        self._nursery.start_soon(self._announce)
        self._nursery.start_soon(self._outputs.flush)
        self._nursery.start_soon(self._protect)

    async def _protect(self) -> None:
        """The guest is ours: from now on this daemon is to it what a primary is."""
        guest = QemuGuest(self._process, captures_in_use=self._settings.epoch.window)
        guest.adopt_running()
        successor = self._settings.link.successor
        if successor is not None:
            try:
                await guest.attach()
            except HostError as error:
                _log.error("takeover.unprotectable", error=str(error))
                successor = None
        self._protector = Protector(
            self._settings, guest, self._outputs, self._hello, self._witness, self._hook, successor
        )
        try:
            self._final = await self._protector.run(on.Adopted(time.monotonic(), self._core.generation))
        finally:
            guest.close()
        self._finished.set()

    async def _announce(self) -> None:
        """Teach the LAN the guest's new place. QEMU has said it once, as it does after any migration."""
        try:
            for _ in range(_ANNOUNCEMENTS):
                for nic, hold in zip(self._settings.guest.nics, self._outputs.networks, strict=True):
                    hold.announce([rarp_frame(nic.mac)])
                await trio.sleep(_ANNOUNCEMENT_INTERVAL_S)
        except NetbufError as error:  # the guest is over already
            _log.info("announcement.unsaid", error=str(error))

    # --- the control socket ---------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["command"] == "statistics":
            return self._statistics()
        if self._protector is not None:
            return await self._protector.answer(request)
        raise RequestError(f"command {request['command']!r}: before a takeover only statistics is known")

    def _statistics(self) -> dict[str, Any]:
        core, takeover = self._core, self._takeover
        return {
            "role": "secondary",
            "name": self._settings.name,
            "mode": self._settings.epoch.mode,
            "phase": core.phase.value,
            "protected": self._protector is not None and self._protector.protected,
            "generation": core.generation,
            "acknowledged": core.acknowledged,
            "applied": core.applied,
            "takeover": None
            if takeover is None
            else {**asdict(takeover), "activation_ms": takeover.activation_ms},
            "held": self._outputs.statistics(),
            "guest_pid": self._process.pid,
            "protection": self._protector.statistics() if self._protector else None,
        }
