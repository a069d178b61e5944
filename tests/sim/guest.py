"""A model guest: a number of executed steps, memory, a disk it remembers writing, and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .buffers import Buffer, Output
from .oracle import Oracle, Snapshot
from .world import World

PAGE_COUNT = 12
BLOCK_COUNT = 8
FRAME_KINDS = ("arp", "dhcp", "icmp", "udp", "tcp")


@dataclass(frozen=True, slots=True)
class Devices:
    """All of a guest that is neither RAM nor disk."""

    incarnation: int
    steps: int
    frames: int
    writes: int
    answered: tuple[int, ...]
    blocks: tuple[int, ...]  # what the guest believes its disk to hold: its page cache, so to speak
    powered_off: bool


FRESH = Devices(0, 0, 0, 0, (), (0,) * BLOCK_COUNT, False)


class Guest:
    """Runs step by step while resumed; stands still while it waits for a buffer to take an output."""

    def __init__(
        self,
        world: World,
        oracle: Oracle,
        host: str,
        incarnation: int,
        devices: Devices,
        pages: list[int],
        step_s: float,
    ) -> None:
        self._world = world
        self._oracle = oracle
        self._host = host
        self._step_s = step_s
        self.incarnation = incarnation
        self.pages = pages
        self.dirty = set(range(PAGE_COUNT))
        self.steps = devices.steps
        self.frames = devices.frames
        self.writes = devices.writes
        self.answered = list(devices.answered)
        self.blocks = list(devices.blocks)
        self.powered_off = devices.powered_off
        self.paused = True
        self.alive = True
        self.inbox: list[int] = []
        self.network: Buffer
        self.disk: Buffer
        self.on_power_off: Callable[[], None] = lambda: None
        self.frozen_until: Callable[[], float] = lambda: 0.0  # its daemon's: nothing takes its output
        self._waits = 0
        self._stepping = False
        self._turn = 0

    def resume(self) -> None:
        if self.alive and self.paused and not self.powered_off:
            self.paused = False
            self._oracle.guest_runs(self._host, True)
            self._schedule()

    def pause(self) -> None:
        """Prerequisite: the buffers are prepared, so that nothing is left in flight."""
        assert self._waits == 0 or not self.alive, f"{self._host}: paused with an output in flight"
        if not self.paused:
            self.paused = True
            self._turn += 1
            self._oracle.guest_runs(self._host, False)

    def destroy(self) -> None:
        self.alive = False
        self.paused = True
        self._turn += 1
        self._oracle.guest_runs(self._host, False)

    def power_off(self) -> None:
        if self.alive and not self.powered_off and not self.paused:
            self.powered_off = True
            self.paused = True
            self._turn += 1
            self._oracle.guest_runs(self._host, False)
            self.on_power_off()

    def devices(self) -> Devices:
        return Devices(
            self.incarnation,
            self.steps,
            self.frames,
            self.writes,
            tuple(self.answered),
            tuple(self.blocks),
            self.powered_off,
        )

    def snapshot(self) -> Snapshot:
        """The whole truth about this guest now, for the oracle."""
        return Snapshot(
            incarnation=self.incarnation,
            frames=self.frames,
            writes=self.writes,
            answered=frozenset(self.answered),
            pages=tuple(self.pages),
            blocks=tuple(self.blocks),
            devices=self.devices(),
        )

    def request(self, number: int) -> None:
        """A client's request arrives; a repeated one is answered again and not done again."""
        if self.alive and not self.powered_off and number not in self.inbox and len(self.inbox) < 4:
            self.inbox.append(number)

    def _schedule(self) -> None:
        turn = self._turn
        delay = self._step_s * (0.5 + self._world.random.random())
        self._world.after(delay, lambda: self._step(turn))

    def _step(self, turn: int) -> None:
        if turn != self._turn or self._waits:
            return
        if self.frozen_until() > self._world.now:
            self._world.at(self.frozen_until(), lambda: self._step(turn))
            return
        random = self._world.random
        self.steps += 1
        self._stepping = True
        self._touch(random.randrange(PAGE_COUNT))
        if self.inbox:
            number = self.inbox.pop(0)
            if number not in self.answered:
                self.answered.append(number)
                self._write(random.randrange(BLOCK_COUNT))
            self._send("tcp", number)
        else:
            if random.random() < 0.3:
                self._write(random.randrange(BLOCK_COUNT))
            if random.random() < 0.5:
                self._send(random.choice(FRAME_KINDS), 0)
        self._stepping = False
        if turn == self._turn and not self._waits:
            self._schedule()

    def _touch(self, page: int) -> None:
        self.pages[page] = self._oracle.new_token()
        self.dirty.add(page)

    def _write(self, block: int) -> None:
        """The guest counts the write as done once the buffer has answered it."""
        token = self._oracle.new_token()
        output = Output(self.writes + 1, self.incarnation, "write", block, token)
        self._emit(self.disk, output)

    def _send(self, kind: str, reply_to: int) -> None:
        output = Output(self.frames + 1, self.incarnation, kind, reply_to=reply_to)
        self.frames += 1
        self._emit(self.network, output)

    def _emit(self, buffer: Buffer, output: Output) -> None:
        self._waits += 1
        buffer.offer(output, lambda: self._taken(output))

    def _taken(self, output: Output) -> None:
        if not self.alive:
            return
        self._waits -= 1
        if output.kind == "write":
            self.writes += 1
            self.blocks[output.block] = output.token
            self._touch(output.block)
        if self._waits == 0 and not self.paused and not self._stepping:
            self._schedule()
