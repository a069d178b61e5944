"""The primary's model driver: carries out the effects of a `PrimaryCore` in simulated time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from remuslike.engine import effects as do
from remuslike.engine import events as on
from remuslike.engine.primary import PrimaryCore

from .buffers import Buffer, Disk, Level, Output, Platter, State
from .faults import ContractError, StoreError
from .guest import BLOCK_COUNT, FRESH, PAGE_COUNT, Devices, Guest
from .network import End, Frame
from .options import Options
from .oracle import Snapshot
from .process import Effect, Event, Process
from .world import Steps, Task

PRESSURE = {Level.NONE: on.Pressure.NONE, Level.SOON: on.Pressure.SOON, Level.FULL: on.Pressure.FULL}


@dataclass(frozen=True, slots=True)
class Part:
    """One frame's worth of an epoch or of a synchronisation."""

    number: int
    pages: dict[int, int]
    blocks: tuple[tuple[int, int], ...]  # (block, token), in the order written
    devices: Devices | None = None
    frames: tuple[Output, ...] = ()


class PrimaryDriver:
    """Guest, buffers, sender and output worker of the host that runs the guest.

    `adopted`: the guest, buffers and disk of a secondary that has taken over; else a fresh guest.
    """

    def __init__(
        self,
        process: Process,
        core: PrimaryCore,
        options: Options,
        adopted: tuple[Guest, list[Buffer], Disk] | None = None,
        platter: Platter | None = None,
    ) -> None:
        self.process = process
        self.core = core
        self.world = process.world
        self.oracle = process.oracle
        self.options = options
        if adopted is not None:
            self.guest, self.buffers, self.disk = adopted
            for buffer in self.buffers:
                self._watch(buffer)
        else:
            self.disk = Disk(platter or Platter(BLOCK_COUNT))
            self.disk.platter.lock(lambda: process.alive and self.buffers[1].state is not State.DISCARDED)
            self.guest = Guest(
                self.world, self.oracle, process.name, 0, FRESH, [0] * PAGE_COUNT, options.guest_step_s
            )
            self.buffers = [self._buffer("frame"), self._buffer("write")]
            self.guest.network, self.guest.disk = self.buffers
        self.guest.on_power_off = self._powered_off
        self.guest.frozen_until = lambda: self.process.frozen_until
        self.last_snapshot: Snapshot | None = None
        self.session_end: End | None = None
        self._candidate: End | None = None
        self._generation = 0
        self._pressure = Level.NONE
        self._checkpoint_task: Task | None = None
        self._captures: dict[int, tuple[End, list[Part]]] = {}
        self._sending: deque[int] = deque()
        self._sender_busy = False
        self._outgoing: deque[do.Release | do.OpenOutput] = deque()
        self._output_task: Task | None = None
        process.core = core
        process.perform = self.perform
        process.on_frame = self.on_frame
        process.before_step = self.before_step
        process.on_end = self.guest.destroy

    def _buffer(self, sort: str) -> Buffer:
        name = self.process.name

        def leave(output: Output) -> None:
            if sort == "write":
                self.disk.write(output.block, output.token, marking=not buffer.releasing)
            self.oracle.left(name, sort, output.incarnation, output.number, output.reply_to)

        buffer = Buffer(
            self.world,
            self.oracle,
            name,
            sort,
            depth=self.options.depth,
            limit_items=self.options.limit_items,
            leave=leave,
            paused=lambda: self.guest.paused,
        )
        self._watch(buffer)
        buffer.stall_s = self.options.store_stall_s if sort == "write" else 0.0
        return buffer

    def _watch(self, buffer: Buffer) -> None:
        kind = on.OutputKind.DISK if buffer.sort == "write" else on.OutputKind.NETWORK
        buffer.on_level = self._level_changed
        buffer.on_output = lambda epoch: self._output_held(kind, epoch)

    def _output_held(self, kind: on.OutputKind, epoch: int) -> None:
        """Told soon, maybe only after the next seal."""
        late_s = self.world.random.choice((0.0, 0.0, 0.0, 0.003))
        self.world.after(late_s, lambda: self.process.post(on.OutputHeld(self.world.now, epoch, kind)))

    # --- what happens to it -----------------------------------------------------------------------

    def on_frame(self, end: End, frame: Frame) -> None:
        now = self.world.now
        if frame.kind == "ready":
            self.process.shaken_hands = True
            self.session_end = end
            self.process.post(on.PeerReady(now, self._generation))
        elif frame.kind == "acknowledge":
            self.process.hook("ack.received")
            self.oracle.acknowledgement_received(end.session, frame.epoch)
            self.process.post(on.Acknowledged(now, frame.epoch))

    def connected(self, end: End) -> None:
        self.process.attach(end)
        self.process.post(on.PeerConnected(self.world.now), end)

    def before_step(self, event: Event, body: object) -> None:
        """Remember which link the core is about to decide on."""
        if isinstance(event, on.PeerConnected):
            assert isinstance(body, End)
            self._candidate = body

    def qemu_dies(self) -> None:
        if self.process.alive and self.guest.alive:
            self.guest.destroy()
            self._cancel_checkpoint()
            self.process.post(on.GuestEnded(self.world.now, on.GuestEnd.DIED, "QEMU died"))

    def _powered_off(self) -> None:
        ended = on.GuestEnded(self.world.now, on.GuestEnd.SHUTDOWN, "it powered itself off")
        self.world.after(self.world.random.uniform(0, 0.003), lambda: self.process.post(ended))

    def _level_changed(self) -> None:
        level = max(buffer.level for buffer in self.buffers)
        if level is not self._pressure:
            self._pressure = level
            changed = on.PressureChanged(self.world.now, PRESSURE[level])
            self.world.after(0, lambda: self.process.post(changed))

    # --- what it does -----------------------------------------------------------------------------

    def perform(self, effect: Effect) -> None:
        match effect:
            case do.Checkpoint():
                self._checkpoint_task = self.world.spawn(self.process, self.checkpoint(effect))
            case do.SendEpoch():
                self._sending.append(effect.epoch)
                if not self._sender_busy:
                    self.world.spawn(self.process, self._send())
            case do.Release() | do.OpenOutput():
                self._outgoing.append(effect)
                if self._output_task is None:
                    self._start_output()
            case do.PauseGuest():
                self._pause()
            case do.ResumeGuest():
                self.guest.resume()
            case do.AcquireWitness():
                self.process.ask_witness(effect.expected_generation)
            case do.Greet():
                self._generation = effect.generation
                if self._candidate is not None and self._candidate is self.process.link:
                    self._candidate.send(Frame("greet", body=effect.generation))
            case do.StartSync():
                self.world.spawn(self.process, self._synchronise())
            case do.SealStalled():
                for buffer in self.buffers:
                    buffer.seal(effect.epoch)
            case do.DiscardOutput():
                self._discard()
            case do.DestroyGuest():
                self.last_snapshot = self.guest.snapshot()
                self.guest.destroy()
                self._cancel_checkpoint()
            case do.EndSession():
                self.process.end_session(effect)
            case do.Finish():
                self._finish(effect)
            case _:
                raise ContractError(f"the primary's driver doesn't know {effect}")

    def _pause(self) -> None:
        for buffer in self.buffers:
            buffer.prepare()
        self.guest.pause()

    def _cancel_checkpoint(self) -> None:
        if self._checkpoint_task is not None:
            self._checkpoint_task.cancel()

    def _discard(self) -> None:
        self._cancel_checkpoint()
        self._outgoing.clear()
        if self._output_task is not None:
            self._output_task.cancel()
        for buffer in self.buffers:
            buffer.discard()

    def _finish(self, effect: do.Finish) -> None:
        if effect.status is do.ExitStatus.CLEAN:
            self.oracle.finished_in_order(self.process.name, self.last_snapshot, self.disk.blocks)
        self.process.finish(effect)

    def checkpoint(self, effect: do.Checkpoint) -> Steps:
        """Pause, close the epoch in every buffer, capture; the guest stays paused."""
        hook, random = self.process.hook, self.world.random
        hook("checkpoint.begin")
        for buffer in self.buffers:
            buffer.prepare()
        yield random.uniform(0, 0.002)
        if self._guest_is_gone():
            return  # its death is on the way to the core
        self.guest.pause()
        began = self.world.now
        hook("checkpoint.paused")
        yield random.uniform(0, 0.001)
        if self._guest_is_gone():
            return
        frames = len(self.buffers[0].current)
        self.close_epoch(effect)
        hook("checkpoint.sealed")
        yield random.uniform(0, self.options.capture_s)
        if self._guest_is_gone():
            return
        self.capture(effect, self._blocks(effect))
        hook("checkpoint.captured")
        self.process.post(on.Captured(self.world.now, effect.epoch, self.world.now - began, frames))
        hook("checkpoint.resumed")

    def _guest_is_gone(self) -> bool:
        return not self.guest.alive

    def close_epoch(self, effect: do.Checkpoint) -> None:
        for buffer in self.buffers:
            if not effect.base:
                buffer.seal(effect.epoch)
            elif buffer.state.value != "holding":
                buffer.hold(effect.epoch + 1)

    def _blocks(self, effect: do.Checkpoint) -> tuple[tuple[int, int], ...]:
        """What of the disk travels with this checkpoint."""
        buffer = self.buffers[1]
        if effect.base:
            dirty = set() if self.options.shared else self.disk.take_dirty()
            left_over = {block: self.disk.blocks[block] for block in dirty}
            held = {output.block: output.token for output in buffer.held()}
            return tuple(sorted((left_over | held).items()))
        return tuple((write.block, write.token) for write in buffer.sealed_outputs(effect.epoch))

    def capture(self, effect: do.Checkpoint, blocks: tuple[tuple[int, int], ...]) -> None:
        if not self.guest.paused:
            raise ContractError(f"the guest runs inside the checkpoint of epoch {effect.epoch}")
        assert self.session_end is not None, "a checkpoint needs a session"
        guest, epoch = self.guest, effect.epoch
        pages = {page: guest.pages[page] for page in sorted(guest.dirty)}
        guest.dirty.clear()
        frames: tuple[Output, ...] = ()
        if self.options.replays:
            # A base's are those that a stalled guest has held since before.
            held = self.buffers[0].held() if effect.base else self.buffers[0].sealed_outputs(epoch)
            frames = tuple(held)
        half = len(pages) // 2
        items = list(pages.items())
        parts = [
            Part(0, dict(items[:half]), ()),
            Part(1, dict(items[half:]), blocks, frames=frames),
            Part(2, {}, (), guest.devices()),
        ]
        self._captures[epoch] = (self.session_end, parts)
        session, window = self.session_end.session, self.options.window
        self.oracle.captured(self.process.name, session, epoch, guest.snapshot(), window, base=effect.base)

    def _send(self) -> Steps:
        self._sender_busy = True
        hook, random = self.process.hook, self.world.random
        while self._sending:
            epoch = self._sending.popleft()
            end, parts = self._captures.pop(epoch)
            hook("send.begin")
            yield random.uniform(0, self.options.encode_s)
            if not end.open:
                continue
            self.oracle.epoch_sent(end.session, epoch, len(parts))
            end.send(Frame("begin", epoch))
            for part in parts:
                if part.number == 1:
                    hook("send.half")
                end.send(Frame("part", epoch, part))
                yield random.uniform(0, self.options.encode_s)
            end.send(Frame("complete", epoch, len(parts)))
            hook("send.end")
        self._sender_busy = False

    def _synchronise(self) -> Steps:
        end, guest, random = self.session_end, self.guest, self.world.random
        assert end is not None, "a synchronisation needs a session"
        guest.dirty = set(range(PAGE_COUNT))
        blocks = set() if self.options.shared else set(range(BLOCK_COUNT))
        self.disk.take_dirty()
        for _ in range(random.randint(1, 3)):
            view = self.disk.blocks
            pages = {page: guest.pages[page] for page in sorted(guest.dirty)}
            guest.dirty.clear()
            end.send(
                Frame("sync", body=Part(0, pages, tuple((block, view[block]) for block in sorted(blocks))))
            )
            yield random.uniform(0, self.options.synchronise_s)
            if not end.open or end is not self.session_end:
                return
            blocks = set() if self.options.shared else self.disk.take_dirty()
        self.disk.dirty |= blocks
        self.process.post(on.SyncConverged(self.world.now))

    # --- output -----------------------------------------------------------------------------------

    def _start_output(self) -> None:
        task = Task(self.world, self.process, self._put_out())
        self._output_task = task
        task.advance()

    def _put_out(self) -> Steps:
        hook = self.process.hook
        buffers = list(self.buffers)
        self.world.random.shuffle(buffers)
        try:
            while self._outgoing:
                effect = self._outgoing.popleft()
                if isinstance(effect, do.Release):
                    hook("release.begin")
                    for buffer in buffers:
                        yield from buffer.release(effect.epoch)
                    hook("release.end")
                    self.tell_released(effect.epoch)
                    self.process.post(on.Released(self.world.now, effect.epoch))
                else:
                    for buffer in buffers:
                        yield from buffer.open()
                    self.process.post(on.OutputOpened(self.world.now))
        except StoreError as failure:
            self._outgoing.clear()
            self.process.post(on.OutputFailed(self.world.now, str(failure)))
        self._output_task = None

    def tell_released(self, epoch: int) -> None:
        """So that the secondary need not keep it any longer, where it keeps anything."""
        if (self.options.shared or self.options.replays) and self.session_end is not None:
            self.session_end.send(Frame("released", epoch))
