"""The implementations of OutputBuffer, each between a guest and an outside for the suite."""

from __future__ import annotations

import errno
import itertools
import os
import select
import struct
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio
from fakes import output_buffer as fakes
from fakes.namespace import GUEST_MAC, BridgedLan
from fakes.output_buffer import FakeBuffer
from fakes.wiring import FakeWiring, fake_guest_tap
from output_buffer_suite import Errors, OpenSubject, Subject
from trio.testing import wait_all_tasks_blocked
from unit.diskbuf_fakes import FakeStore
from unit.netbuf_fakes import FakePlug

import diskbuf.errors
import netbuf.errors
from diskbuf import DiskBuffer, FileStore, Store
from diskbuf.extents import EXTENT_BYTES_MIN, Bytes, Extent
from diskbuf.store import Allocation
from netbuf import PlugHold, TapHold
from netbuf.sizing import poll_s
from netbuf.tap import VNET_HEADER_BYTES
from netbuf.taphold import GATHER_S
from remuslike.daemon.outputs import Outputs
from remuslike.engine.events import OutputKind

# --- the fakes --------------------------------------------------------------------------------------


class FakeSubject:
    """A FakeBuffer, which has both ends itself."""

    lanes = 1
    waits_at_limit = True
    item_bytes = 100
    errors = Errors(
        hold=(fakes.HoldError,),
        seal=(fakes.SealError,),
        release=(fakes.ReleaseError,),
        open=(fakes.OpenError,),
        outside=(fakes.OutsideError,),
    )

    def __init__(self, buffer: FakeBuffer) -> None:
        self.buffer = buffer
        self.lane_limit_bytes = buffer.statistics().limit_bytes

    async def emit(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.buffer.emit(number)

    async def settle(self) -> None:
        """It never does anything by itself."""

    def outside(self) -> list[list[int]]:
        return [list(self.buffer.outside)]

    def leave_room(self, count: int | None) -> None:
        self.buffer.room = count


def open_fake(kind: type[FakeBuffer]) -> OpenSubject:
    @asynccontextmanager
    async def open_subject(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
        limit_bytes = limit_items * FakeSubject.item_bytes
        yield FakeSubject(kind(item_bytes=FakeSubject.item_bytes, limit_bytes=limit_bytes, depth=depth))

    return open_subject


# --- the tap hold -----------------------------------------------------------------------------------

_FRAME_HEAD = bytes(VNET_HEADER_BYTES) + bytes.fromhex("525400000002") + GUEST_MAC + b"\x88\xb5"

# Frames emitted before the hold gets its turn: fewer than a socket's buffer or a TAP's ring holds.
_FRAMES_AT_ONCE = 50


class Line(Protocol):
    """The guest's and the LAN's end of a hold."""

    def send(self, frame: bytes) -> None: ...
    def received(self) -> list[bytes]: ...


class TapSubject:
    """A TapHold; a number is a frame of `item_bytes`, vnet header included."""

    lanes = 1
    waits_at_limit = True

    def __init__(self, hold: TapHold, line: Line, item_bytes: int, *, outside_fails: bool) -> None:
        self.buffer = hold
        self.item_bytes = item_bytes
        self.lane_limit_bytes = hold.statistics().limit_bytes
        self.errors = Errors(
            hold=(netbuf.errors.HoldError,),
            seal=(netbuf.errors.SealError,),
            release=(netbuf.errors.ReleaseError,),
            open=(netbuf.errors.OpenError,),
            outside=(netbuf.errors.InterfaceVanishedError,) if outside_fails else (),
        )
        self._line = line
        self._left: list[int] = []

    async def emit(self, numbers: Iterable[int]) -> None:
        remaining = iter(numbers)
        while some := list(itertools.islice(remaining, _FRAMES_AT_ONCE)):
            for number in some:
                self._line.send((_FRAME_HEAD + struct.pack(">I", number)).ljust(self.item_bytes, b"\0"))
            await self.settle()
            self._collect()

    async def settle(self) -> None:
        """Until the hold has read what it let come together."""
        await wait_all_tasks_blocked()
        if select.select([self.buffer._wiring.hold_fileno()], [], [], 0)[0]:
            await trio.sleep(GATHER_S)
            await wait_all_tasks_blocked()

    def outside(self) -> list[list[int]]:
        self._collect()
        return [list(self._left)]

    def _collect(self) -> None:
        for frame in self._line.received():
            assert len(frame) == self.item_bytes
            assert frame.startswith(_FRAME_HEAD)
            self._left.append(struct.unpack_from(">I", frame, len(_FRAME_HEAD))[0])

    def leave_room(self, count: int | None) -> None:
        assert isinstance(self._line, FakeWiring)
        self._line.leave_room(count)


@asynccontextmanager
async def open_tap_over_sockets(
    *, depth: int = 2, limit_items: int = 1 << 14, item_bytes: int = 72
) -> AsyncIterator[Subject]:
    wiring = FakeWiring()
    hold = TapHold(fake_guest_tap(), "br0", limit_items * item_bytes, depth, wire=lambda *_: wiring)
    try:
        async with _running(hold):
            yield TapSubject(hold, wiring, item_bytes, outside_fails=True)
    finally:
        wiring.close_ends()


@asynccontextmanager
async def open_tap_in_namespace(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
    item_bytes = 72
    lan = BridgedLan()
    hold = TapHold(lan.guest, "br0", limit_items * item_bytes, depth)
    try:
        async with _running(hold):
            yield TapSubject(hold, lan, item_bytes, outside_fails=False)
    finally:
        lan.close_ends()


@asynccontextmanager
async def _running(hold: TapHold | PlugHold) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        try:
            yield
        finally:
            hold.close()


# --- the plug hold ----------------------------------------------------------------------------------

# The plug counts what is on the wire.
_PLUG_ITEM_BYTES = 60


class PlugSubject:
    """A PlugHold; a number is a frame of `item_bytes`. Prerequisite: trio's autojump clock."""

    lanes = 1
    waits_at_limit = False
    item_bytes = _PLUG_ITEM_BYTES
    errors = Errors(
        hold=(netbuf.errors.HoldError,),
        seal=(netbuf.errors.SealError,),
        release=(netbuf.errors.ReleaseError,),
        open=(netbuf.errors.OpenError,),
    )

    def __init__(self, hold: PlugHold, line: Line) -> None:
        self.buffer = hold
        self.lane_limit_bytes = hold.statistics().limit_bytes
        self._line = line
        self._left: list[int] = []

    async def emit(self, numbers: Iterable[int]) -> None:
        length = VNET_HEADER_BYTES + self.item_bytes
        remaining = iter(numbers)
        while some := list(itertools.islice(remaining, _FRAMES_AT_ONCE)):
            for number in some:
                self._line.send((_FRAME_HEAD + struct.pack(">I", number)).ljust(length, b"\0"))
            self._collect()
        await self.settle()

    async def settle(self) -> None:
        """Until the hold has looked at the kernel's queue again."""
        await trio.sleep(2 * poll_s(0, self.lane_limit_bytes))

    def outside(self) -> list[list[int]]:
        self._collect()
        return [list(self._left)]

    def leave_room(self, count: int | None) -> None:
        """The kernel takes what it has been told to release."""

    def _collect(self) -> None:
        for frame in self._line.received():
            assert len(frame) == VNET_HEADER_BYTES + self.item_bytes
            assert frame.startswith(_FRAME_HEAD)
            self._left.append(struct.unpack_from(">I", frame, len(_FRAME_HEAD))[0])


class FakeLine:
    """The ends of a FakePlug, with the vnet headers that those of a tap have."""

    def __init__(self, plug: FakePlug) -> None:
        self._plug = plug

    def send(self, frame: bytes) -> None:
        self._plug.send(frame[VNET_HEADER_BYTES:])

    def received(self) -> list[bytes]:
        return [bytes(VNET_HEADER_BYTES) + frame for frame in self._plug.received()]


@asynccontextmanager
async def open_plug_over_model(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
    plug = FakePlug()
    hold = PlugHold(fake_guest_tap(), "br0", limit_items * _PLUG_ITEM_BYTES, wire=lambda *_: plug)
    async with _running(hold):
        yield PlugSubject(hold, FakeLine(plug))


@asynccontextmanager
async def open_plug_in_namespace(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
    # On one processor, or a marker could overtake frames that another's softirqs still carry.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    lan = BridgedLan()
    hold = PlugHold(lan.guest, "br0", limit_items * _PLUG_ITEM_BYTES)
    try:
        async with _running(hold):
            yield PlugSubject(hold, lan)
    finally:
        lan.close_ends()


# --- the disk buffer --------------------------------------------------------------------------------

_BLOCK_BYTES = EXTENT_BYTES_MIN
_BLOCKS = 1 << 16
_MARK = struct.Struct("<QQ")  # a number and its complement, so that no other block looks like one


class WatchedStore:
    """A store that notes which numbers reach `inner`, once each, and can be short of room."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._seen: set[int] = set()
        self.arrived: list[int] = []
        self.room: int | None = None

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def read_only(self) -> bool:
        return self._inner.read_only

    @property
    def uri(self) -> str:
        return self._inner.uri

    def read_cached(self, offset: int, target: memoryview) -> bool:
        return self._inner.read_cached(offset, target)

    def read_view(self, offset: int, length: int) -> memoryview | None:
        return self._inner.read_view(offset, length)

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        return self._inner.allocation(offset, length)

    def read(self, offset: int, target: memoryview) -> None:
        self._inner.read(offset, target)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """What there is room for, then `StoreFullError`: as a full file system does (write(2))."""
        taken = list(pieces) if self.room is None else list(pieces)[: self.room]
        if taken:
            self._inner.write(offset, taken)
        if self.room is not None:
            self.room -= len(taken)
        for block in taken:
            number, complement = _MARK.unpack_from(block)
            assert number == ~complement & (1 << 64) - 1, "a block that the guest didn't write"
            if number not in self._seen:
                self._seen.add(number)
                self.arrived.append(number)
        if len(taken) < len(pieces):
            raise diskbuf.errors.StoreFullError(f"write at {offset}: error {errno.ENOSPC}; make room")

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._inner.zero(offset, length, punch_hole=punch_hole)

    def sync(self) -> None:
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()


class DiskSubject:
    """A DiskBuffer; a number is a block of the disk, written by one client that waits for each answer."""

    lanes = 1
    waits_at_limit = True
    item_bytes = _BLOCK_BYTES
    errors = Errors(
        hold=(diskbuf.errors.HoldError,),
        seal=(diskbuf.errors.SealError,),
        release=(diskbuf.errors.ReleaseError,),
        open=(diskbuf.errors.OpenError,),
        outside=(diskbuf.errors.StoreFullError,),
    )

    def __init__(self, buffer: DiskBuffer, store: WatchedStore) -> None:
        self.buffer = buffer
        self.lane_limit_bytes = buffer.statistics().limit_bytes
        self._store = store
        self._unwritten: deque[int] = deque()
        self._more = trio.Event()
        self._gone = False

    async def run(self) -> None:
        """The client, whose requests are answered in a thread of their own, as they are in a server."""
        try:
            while True:
                await self._more.wait()
                self._more = trio.Event()
                while self._unwritten:
                    await trio.to_thread.run_sync(self._write, self._unwritten[0], abandon_on_cancel=True)
                    self._unwritten.popleft()
        finally:
            self._gone = True
            self.buffer.wake()

    def _write(self, number: int) -> None:
        block = _MARK.pack(number, ~number & (1 << 64) - 1).ljust(_BLOCK_BYTES, b".")
        change = Extent.of_data(number % _BLOCKS * _BLOCK_BYTES, block)
        try:
            self.buffer.change(change, lambda: self._gone)
        except diskbuf.errors.WriteRefusedError:
            assert self.buffer.state in ("closed", "discarded")

    async def emit(self, numbers: Iterable[int]) -> None:
        self._unwritten.extend(numbers)
        self._more.set()
        await self.settle()

    async def settle(self) -> None:
        while self._unwritten and not self.buffer.waiting:
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()

    def outside(self) -> list[list[int]]:
        return [list(self._store.arrived)]

    def leave_room(self, count: int | None) -> None:
        self._store.room = count


@asynccontextmanager
async def open_disk_over_memory(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
    async with _open_disk(FakeStore(_BLOCKS * _BLOCK_BYTES), depth, limit_items) as subject:
        yield subject


@asynccontextmanager
async def open_disk_over_file(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory, "image")
        os.mknod(image)
        os.truncate(image, _BLOCKS * _BLOCK_BYTES)
        store = FileStore.open(image)
        try:
            async with _open_disk(store, depth, limit_items) as subject:
                yield subject
        finally:
            store.close()


@asynccontextmanager
async def _open_disk(store: Store, depth: int, limit_items: int) -> AsyncIterator[DiskSubject]:
    watched = WatchedStore(store)
    subject = DiskSubject(DiskBuffer(watched, limit_bytes=limit_items * _BLOCK_BYTES, depth=depth), watched)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subject.run)
        yield subject
        nursery.cancel_scope.cancel()


# --- several at once --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CombinedStatistics:
    """What the statistics of all lanes add up to; `parts` so that any change in one is a change."""

    state: str
    open_epoch: int | None
    sealed_epochs: tuple[int, ...]
    held_items: int
    held_bytes: int
    limit_bytes: int
    released_items: int
    released_bytes: int
    dropped_items: int
    peak_bytes: int
    parts: tuple[Any, ...]


class CombinedBuffer:
    """`Outputs`, with statistics that add up those of its parts."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs
        self.hold = outputs.hold
        self.prepare = outputs.prepare
        self.seal = outputs.seal
        self.release = outputs.release
        self.open = outputs.open
        self.discard = outputs.discard

    @property
    def depth(self) -> int:
        return self._outputs.depth

    @property
    def pressure(self) -> Any:
        return self._outputs.pressure

    def on_pressure(self, callback: Callable[[Any], None]) -> None:
        self._outputs.on_pressure(lambda: callback(self._outputs.pressure))

    def on_output(self, callback: Callable[[int], None]) -> None:
        """Of the buffer that is first."""
        told: set[int] = set()

        def tell(_kind: OutputKind, epoch: int) -> None:
            if epoch not in told:
                told.add(epoch)
                callback(epoch)

        self._outputs.on_output(tell)

    def open_items(self) -> int:
        return sum(buffer.open_items() for buffer in [*self._outputs.networks, *self._outputs.disks])

    def statistics(self) -> CombinedStatistics:
        parts = self._outputs.statistics().values()
        sums = {
            name: sum(part[name] for part in parts)
            for name in (
                "held_items held_bytes limit_bytes released_items released_bytes dropped_items peak_bytes"
            ).split()
        }
        first = next(iter(parts))
        return CombinedStatistics(
            state=first["state"],
            open_epoch=first["open_epoch"],
            sealed_epochs=tuple(first["sealed_epochs"]),
            parts=tuple(repr(part) for part in parts),
            **sums,
        )


class OutputsSubject:
    """`Outputs` over several buffers, a lane each: first the networks, then the disks."""

    waits_at_limit = True

    def __init__(self, taps: list[TapSubject], disks: list[DiskSubject]) -> None:
        self._lanes: list[TapSubject | DiskSubject] = [*taps, *disks]
        self.lanes = len(self._lanes)
        self.buffer = CombinedBuffer(Outputs([tap.buffer for tap in taps], [disk.buffer for disk in disks]))
        self.item_bytes = _BLOCK_BYTES
        self.lane_limit_bytes = self._lanes[0].lane_limit_bytes
        kinds = [lane.errors for lane in self._lanes]
        self.errors = Errors(
            hold=tuple(kind for errors in kinds for kind in errors.hold),
            seal=tuple(kind for errors in kinds for kind in errors.seal),
            release=tuple(kind for errors in kinds for kind in errors.release),
            open=tuple(kind for errors in kinds for kind in errors.open),
            outside=tuple(kind for errors in kinds for kind in errors.outside),
        )

    async def emit(self, numbers: Iterable[int]) -> None:
        chosen = list(numbers)
        for place, lane in enumerate(self._lanes):
            if mine := [number for number in chosen if number % self.lanes == place]:
                await lane.emit(mine)

    async def settle(self) -> None:
        for lane in self._lanes:
            await lane.settle()

    def outside(self) -> list[list[int]]:
        return [lane.outside()[0] for lane in self._lanes]

    def leave_room(self, count: int | None) -> None:
        """Only the last lane is short of room: the others do what they may."""
        self._lanes[-1].leave_room(count)


def open_outputs(taps: int, disks: int, extra_depth: int = 0) -> OpenSubject:
    """`extra_depth`: by how much the first lane is deeper than the others."""

    @asynccontextmanager
    async def open_subject(*, depth: int = 2, limit_items: int = 1 << 14) -> AsyncIterator[Subject]:
        depths = itertools.chain([depth + extra_depth], itertools.repeat(depth))
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            tap_lanes = [
                await enter(
                    open_tap_over_sockets(
                        depth=next(depths), limit_items=limit_items, item_bytes=_BLOCK_BYTES
                    )
                )
                for _ in range(taps)
            ]
            disk_lanes = [
                await enter(open_disk_over_memory(depth=next(depths), limit_items=limit_items))
                for _ in range(disks)
            ]
            yield OutputsSubject(tap_lanes, disk_lanes)  # type: ignore[arg-type]

    return open_subject
