"""The secondary's model driver: carries out the effects of a `BackupCore` in simulated time."""

from __future__ import annotations

from collections.abc import Callable

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.backup import BackupCore
from remuslike.engine.phases import BackupPhase

from .buffers import Buffer, Disk, Output, Platter, State
from .faults import ContractError
from .guest import PAGE_COUNT, Devices, Guest
from .network import End, Frame
from .options import Options
from .oracle import Snapshot
from .primary import Part, PrimaryDriver
from .process import Effect, Event, Process
from .world import Steps


class BackupDriver:
    """Standby guest, its disk, and what is staged for it."""

    def __init__(
        self, process: Process, core: BackupCore, options: Options, incarnation: int, platter: Platter
    ) -> None:
        self.process = process
        self.core = core
        self.world = process.world
        self.oracle = process.oracle
        self.options = options
        self.incarnation = incarnation
        self.ram = [0] * PAGE_COUNT
        self.disk = Disk(platter)
        self.retained: dict[int, dict[int, int]] = {}  # epochs that may not be on the shared disk
        self.frames: dict[int, tuple[Output, ...]] = {}  # those of epochs that may not have left
        self._released = 0
        self._at_hand = False  # whether the disk is ours, and all that was acknowledged is on it or has left
        self.devices: Devices | None = None
        self.guest: Guest | None = None
        self.last_snapshot: Snapshot | None = None
        self.buffers = [self._buffer("frame"), self._buffer("write")]
        self.incoming: list[Part] = []  # of the epoch that arrives
        self.staged: dict[int, list[Part]] = {}  # whole epochs, until they are applied
        self._logging = self._logged = 0
        self.fails_apply = False
        self.fails_activation = False
        self.session = 0
        self._greeted = (0, 0)  # session and generation of the last handshake, accepted or not
        self._left_session = 0
        self._primary = ""
        self.adopt: Callable[[BackupDriver], PrimaryDriver]
        self.adopted: PrimaryDriver | None = None  # drives the guest on, once this side has taken over
        self._arrived: Part | None = None
        process.core = core
        process.perform = self.perform
        process.on_frame = self.on_frame
        process.before_step = self.before_step
        process.on_end = self._destroy

    def _buffer(self, sort: str) -> Buffer:
        name = self.process.name

        def leave(output: Output) -> None:
            if sort == "write":
                self.disk.write(output.block, output.token)
            self.oracle.left(name, sort, output.incarnation, output.number, output.reply_to)

        return Buffer(
            self.world,
            self.oracle,
            name,
            sort,
            depth=self.options.depth,
            limit_items=self.options.limit_items,
            leave=leave,
            paused=lambda: self.guest is None or self.guest.paused,
        )

    # --- what happens to it -----------------------------------------------------------------------

    def on_frame(self, end: End, frame: Frame) -> None:
        now, post = self.world.now, self.process.post
        match frame.kind:
            case "greet":
                self.process.shaken_hands = True
                assert isinstance(frame.body, int)
                end.send(Frame("ready"))
                post(on.PeerReady(now, frame.body), end)
            case "sync":
                post(on.SyncPart(), frame.body)
            case "begin":
                self.process.hook("receive.begin")
                post(on.EpochBegan(frame.epoch))
            case "part":
                assert isinstance(frame.body, Part)
                self.oracle.part_arrived(end.session, frame.epoch, frame.body.number)
                post(on.EpochPart(frame.epoch), (end.session, frame.body))
            case "released":
                self.released(end.session, frame.epoch)
            case "complete":
                assert isinstance(frame.body, int)
                self.process.hook("receive.complete")
                post(on.EpochCompleted(frame.epoch, frame.body))

    def before_step(self, event: Event, body: object) -> None:
        """Stage what came with `event`, as the driver does before it tells the core."""
        match event:
            case on.PeerReady():
                assert isinstance(body, End)
                self._greeted = (body.session, event.generation)
                self._primary = body.peer.host.name
            case on.SyncPart():
                assert isinstance(body, Part)
                self._arrived = body
            case on.EpochPart():
                assert isinstance(body, tuple)
                session, part = body
                if session != self._left_session:
                    self.incoming.append(part)
            case on.EpochCompleted():
                self.staged[event.epoch], self.incoming = self.incoming, []
                self.oracle.staged(self.process.name, len(self.staged), 2 * self.options.backup_window)

    def stop_qemu(self) -> None:
        if self.adopted is not None:
            self.adopted.qemu_dies()
        elif self.process.alive:
            self._destroy()
            self.process.post(on.GuestEnded(self.world.now, on.GuestEnd.DIED, "QEMU died"))

    def _destroy(self) -> None:
        if self.guest is not None:
            self.guest.destroy()

    def _powered_off(self) -> None:
        ended = on.GuestEnded(self.world.now, on.GuestEnd.SHUTDOWN, "it powered itself off")
        self.world.after(self.world.random.uniform(0, 0.003), lambda: self.process.post(ended))

    # --- what it does -----------------------------------------------------------------------------

    def perform(self, effect: Effect) -> None:
        match effect:
            case do.ApplySync():
                self._begin_session()
                assert self._arrived is not None
                self._write(self._arrived)
            case do.Log():
                self._begin_session()
                self.oracle.taken(self.session, effect.epoch)
                self.world.spawn(self.process, self.log(effect.epoch))
            case do.Acknowledge():
                self._begin_session()
                if self.options.durable:
                    self.oracle.acknowledged_durably(self.session, effect.epoch)
                else:
                    self.oracle.taken(self.session, effect.epoch)
                if self.process.link is not None:
                    self.process.link.send(Frame("acknowledge", effect.epoch))
                self.process.hook("ack.sent")
            case do.Apply():
                self.world.spawn(self.process, self.apply(effect.epoch))
            case do.DropPartial():
                self.drop_partial(effect.epoch)
            case do.AcquireWitness():
                self.process.ask_witness(effect.expected_generation)
            case do.OpenOutput():
                self.world.spawn(self.process, self._open())
            case do.Activate():
                self.world.spawn(self.process, self._activate())
            case do.DiscardOutput():
                for buffer in self.buffers:
                    buffer.discard()
            case do.DestroyGuest():
                if self.guest is not None:
                    self.last_snapshot = self.guest.snapshot()
                self._destroy()
            case do.EndSession():
                self._left_session = self._greeted[0]
                self.process.end_session(effect)
            case do.Finish():
                if effect.status is do.ExitStatus.CLEAN:
                    self.oracle.finished_in_order(self.process.name, self.last_snapshot, self.disk.blocks)
                self.process.finish(effect)
            case _:
                raise ContractError(f"the secondary's driver doesn't know {effect}")

    def drop_partial(self, epoch: int) -> None:
        self.incoming.clear()
        self.staged.pop(epoch, None)

    def _begin_session(self) -> None:
        """From its first effect on, a session overwrites what this side had."""
        session, generation = self._greeted
        if session != self.session:
            self.session = session
            self.retained.clear()
            self.frames.clear()
            self._released = 0
            self.oracle.session_began(session, self._primary, self.process.name, generation)

    def _write(self, part: Part) -> None:
        for page, token in part.pages.items():
            self.ram[page] = token
        if not self.options.shared:
            for block, token in part.blocks:
                self.disk.write(block, token)
        if part.devices is not None:
            self.devices = part.devices

    def log(self, epoch: int) -> Steps:
        """Into the journal, in order; what is there outlives this host."""
        earlier, self._logging = self._logging, epoch
        while self._logged < earlier:
            yield 0.0002
        yield self.world.random.uniform(0, self.options.log_s)
        if self.fails_apply:
            self.fails_apply = False
            self.process.post(on.ApplyFailed(self.world.now, "the journal is full"))
            return
        blocks = {block: token for part in self.staged[epoch] for block, token in part.blocks}
        self.oracle.logged(self.session, epoch, blocks)
        self._logged = epoch
        self.process.hook("log.end")
        self.process.post(on.Logged(epoch))

    def apply(self, epoch: int) -> Steps:
        hook, random = self.process.hook, self.world.random
        hook("apply.begin")
        for part in self.staged[epoch]:
            yield random.uniform(0, self.options.apply_s)
            if self.fails_apply:
                self.fails_apply = False
                self.process.post(on.ApplyFailed(self.world.now, "no room"))
                return
            self._write(part)
        parts = self.staged.pop(epoch)
        if epoch > self._released:
            self.retained[epoch] = {block: token for part in parts for block, token in part.blocks}
            self.frames[epoch] = tuple(frame for part in parts for frame in part.frames)
        self.oracle.applied(self.session, epoch, self.ram, None if self.options.shared else self.disk.blocks)
        hook("apply.end")
        self.process.post(on.Applied(self.world.now, epoch))

    def released(self, session: int, epoch: int) -> None:
        """The primary has let `epoch` out."""
        if session == self.session:
            self._released = epoch
            for held in [held for held in self.retained if held <= epoch]:
                del self.retained[held], self.frames[held]

    def may_write(self) -> bool:
        """Whether whoever had the shared disk before can't write to it any more."""
        return not self.disk.platter.locked_by()

    def _take_disk(self) -> Steps:
        """Replay what may not be on the shared disk, over whatever part of it is."""
        while not self.may_write():
            yield 0.002
        self.disk.platter.lock(lambda: self.process.alive and self.buffers[1].state is not State.DISCARDED)
        for epoch in sorted(self.retained):
            for block, token in self.retained[epoch].items():
                self.disk.write(block, token)
                yield self.world.random.uniform(0, 0.0005)

    def _open(self) -> Steps:
        if self.options.shared:
            yield from self._take_disk()
        for buffer in self.buffers:
            yield from buffer.open()
        yield from self.replay([frame for epoch in sorted(self.frames) for frame in self.frames[epoch]])
        self._at_hand = True
        self.process.post(on.OutputOpened(self.world.now))

    def replay(self, frames: list[Output]) -> Steps:
        """Send what the primary may not have sent, before the guest runs and sends more."""
        for frame in frames:
            if self.buffers[0].state is State.DISCARDED:
                return
            self.oracle.replayed(self.process.name, frame.incarnation, frame.number, frame.reply_to)
            yield self.world.random.uniform(0, 0.0002)

    def _activate(self) -> Steps:
        while not self._at_hand:
            yield 0.001
        yield self.world.random.uniform(0.003, 0.01)
        if self.fails_activation:
            self.process.post(on.ActivationFailed(self.world.now, "the stream was refused"))
            return
        name, devices = self.process.name, self.devices
        assert devices is not None, "activated without a device state"
        self.oracle.activated(name, self.incarnation, self.ram, devices, self.disk.blocks)
        guest = Guest(
            self.world, self.oracle, name, self.incarnation, devices, self.ram, self.options.guest_step_s
        )
        guest.network, guest.disk = self.buffers
        guest.on_power_off = self._powered_off
        guest.frozen_until = lambda: self.process.frozen_until
        self.guest = guest
        self.process.post(on.Activated(self.world.now))
        if guest.powered_off:
            self._powered_off()
        guest.resume()
        self.world.after(0, self._become_primary)

    def _become_primary(self) -> None:
        """The guest is this side's own: from now on a primary's core protects it."""
        if self.process.alive and self.core.phase is BackupPhase.ACTIVE:
            self.adopted = self.adopt(self)
            self.process.post(on.Adopted(self.world.now, self.core.generation))
