"""A plug and its IFB as net/sched/sch_plug.c and drivers/net/ifb.c have them, without a kernel."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fakes.wiring import FakeGate

from netbuf.errors import HoldBrokenError, InterfaceVanishedError, KernelRefusedError
from netbuf.plugwire import PassageReading, QueueReading
from netbuf.redirect import Undelivered
from netbuf.tap import VNET_HEADER_BYTES


class FakeCopies:
    """`netbuf.framecopies.Copies`, of what a FakePlug is sent; `room` for how many more (None: any)."""

    def __init__(self) -> None:
        self.room: int | None = None
        self._heeding = True
        self._waiting: list[bytes] = []
        self._lost_items = 0

    def come(self, frame: bytes) -> None:
        if not self._heeding:
            return
        if self.room == 0:
            self._lost_items += 1
            return
        self._waiting.append(bytes(VNET_HEADER_BYTES) + frame)
        if self.room is not None:
            self.room -= 1

    def heed(self, wanted: bool) -> None:
        self._heeding = wanted

    def read(self) -> list[bytes]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def take_lost(self) -> int:
        lost, self._lost_items = self._lost_items, 0
        return lost

    def close(self) -> None:
        self._heeding = False


class FakePlug:
    """`netbuf.plugwiring.Plumbing` and its queue, between a guest that sends and a LAN that receives.

    Released frames leave `burst` at a time, when all may leave and at each look at the IFB: as softirqs do.
    """

    def __init__(self, limit_bytes: int = 1 << 30, *, burst: int = 64) -> None:
        self.limit_bytes = limit_bytes
        self.burst = burst
        self.gate = FakeGate()
        self.copied: FakeCopies | None = None
        self.asked: list[str] = []
        self.joined = False
        self.closed = False
        self.guest_is_gone = False
        self.broken = False
        self.refuses: list[str] = []  # what is asked one after the other, and at the last there is no memory
        self.during_buffer: list[bytes] = []  # come after the kernel's count and before its echo
        self._waiting: deque[bytes] = deque()
        self._out: list[bytes] = []
        self._current_items = self._last_items = self._to_release = 0
        self._indefinite = False
        self._cut = False
        self._refused_items = self._undelivered_items = 0
        self._left_items = self._left_bytes = self._lost_items = 0

    # --- the guest's and the LAN's ends ---------------------------------------------------------

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            if self.copied is not None:
                self.copied.come(frame)
            if self.gate.lets_pass(len(frame)):
                assert self.joined, "a gate that passes before there is a LAN"
                self._out.append(frame)
            elif self._cut:
                self._undelivered_items += 1
            elif sum(map(len, self._waiting)) + len(frame) > self.limit_bytes:
                self._undelivered_items += 1
                self._refused_items += 1
            else:
                self._waiting.append(frame)
                self._current_items += not self._indefinite
        if self._indefinite:
            self._run(len(frames))

    def received(self) -> list[bytes]:
        """What has reached the LAN since the last call."""
        frames, self._out = self._out, []
        return frames

    def lose_tap(self) -> None:
        """The guest tap is gone: what leaves from now on goes nowhere."""
        self.guest_is_gone = True

    def purge(self, items: int) -> None:
        """Somebody empties the queue, as taking the IFB down does."""
        for _ in range(items):
            self._waiting.popleft()

    def leak(self, items: int) -> None:
        """Somebody lets frames out."""
        self._to_release += items
        self._run(items)

    # --- Queue ----------------------------------------------------------------------------------

    def buffer(self) -> QueueReading:
        self._ask("buffer")
        self._last_items, self._current_items = self._current_items, 0
        self._indefinite = False
        self.send(*self.during_buffer)
        self.during_buffer = []
        return self._reading()

    def release_one(self) -> QueueReading:
        self._ask("release one")
        self._to_release += self._last_items
        self._last_items = 0
        return self._reading()

    def release_all(self) -> QueueReading:
        self._ask("release all")
        self._indefinite = True
        self._to_release = self._last_items = self._current_items = 0
        reading = self._reading()
        self._run(self.burst)
        return reading

    def waiting(self) -> QueueReading:
        self._ask("waiting")
        return self._reading()

    def passage(self) -> PassageReading:
        self._ask("passage")
        self._run(self.burst)
        return PassageReading(self._left_items, self._left_items, self._left_bytes, self._lost_items)

    def _ask(self, what: str) -> None:
        if self._cut:
            raise InterfaceVanishedError("the hold 'rl0i' is gone; find out who deletes it")
        if self.broken:
            raise HoldBrokenError("the hold 'rl0i' has no plug of ours any more; find out who changes it")
        self.asked.append(what)
        if what in self.refuses[:1] and self.refuses.pop(0) and not self.refuses:
            raise KernelRefusedError(f"{what}: the kernel refused; see its log")

    def _reading(self) -> QueueReading:
        return QueueReading(len(self._waiting), sum(map(len, self._waiting)), self._refused_items)

    def _run(self, items_max: int) -> None:
        for _ in range(items_max):
            if not self._waiting or not (self._indefinite or self._to_release):
                return
            self._to_release -= not self._indefinite
            frame = self._waiting.popleft()
            self._left_items += 1
            self._left_bytes += len(frame)
            if self.guest_is_gone:
                self._lost_items += 1
            elif self.joined:
                self._out.append(frame)

    # --- Plumbing -------------------------------------------------------------------------------

    @property
    def queue(self) -> FakePlug:
        return self

    def join(self) -> None:
        self.joined = True

    def check_guest(self) -> None:
        if self.guest_is_gone:
            raise InterfaceVanishedError("the guest tap 'rl0g' is gone; end its hold")

    def cut(self) -> None:
        self._cut = True
        self.gate.shut()
        self._waiting.clear()
        self.joined = False

    def announce(self, frame: bytes) -> None:
        self._out.append(frame)

    def copies(self, limit_bytes: int) -> FakeCopies:
        self.copied = FakeCopies()
        return self.copied

    def replay(self, frames: Sequence[bytes]) -> int:
        self._out += [frame[VNET_HEADER_BYTES:] for frame in frames]
        return 0

    def undelivered(self) -> Undelivered:
        return Undelivered(self._undelivered_items)

    def close(self) -> None:
        self.cut()
        self.gate.close()
        self.closed = True
