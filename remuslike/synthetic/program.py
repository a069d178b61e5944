"""What the synthetic guest does while it runs, a short turn at a time.

Whatever decides what it does next is in `registers` and `ram`, so that a survivor which has these, and the
disk, goes on with the very next thing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from remuslike.synthetic import frames
from remuslike.synthetic.frames import HEADERS_BYTES, Datagram, Station
from remuslike.synthetic.ram import Ram
from remuslike.synthetic.rates import Rates
from remuslike.synthetic.registers import Registers
from remuslike.synthetic.service import (
    FRAMES_PORT,
    SERVICE_PORT,
    Operation,
    Reply,
    Report,
    Request,
    Status,
    decode_request,
    encode_number,
    encode_reply,
)
from remuslike.synthetic.storage import Storage

# In a turn, so that a `stop` waits for some 0.1 ms.
_TURN_PAGES_MAX = 128
_TURN_FRAMES_MAX = 32
_TURN_BLOCKS_MAX = 32
_VERIFY_PAGES = 128

_BLOCKS_UNDER_WAY_MAX = 64
"""As a virtio queue would have."""

_BEHIND_S = 0.25
"""What is further behind is skipped: a guest that can't keep up does what it can, now."""

_NS = 1_000_000_000


class Program:
    """The guest's program. `send` puts a frame on the interface, or returns False: not now."""

    def __init__(
        self,
        rates: Rates,
        registers: Registers,
        ram: Ram,
        storage: Storage | None,
        mac: bytes | None,
        send: Callable[[bytes], bool],
    ) -> None:
        self.registers = registers
        self._rates = rates
        self._ram = ram
        self._storage = storage
        self._send = send
        self._running = False
        self._recording: set[int] = set()  # clients; empty whenever nothing is under way on the disk
        interface = rates.interface
        self._station: Station | None = None
        if mac is not None and interface is not None:
            self._station = Station(mac, interface.ip.packed, SERVICE_PORT)
            everybody = interface.network.broadcast_address.packed
            self._everybody = frames.broadcast(everybody, FRAMES_PORT)

    # --- running and standing still -------------------------------------------------------------

    def resume(self) -> None:
        self._running = True

    def pause(self) -> None:
        """On return nothing is under way, and nothing leaves or changes."""
        self._running = False
        if self._storage is not None:
            self._storage.disk.drain()

    def activate(self) -> None:
        """It has just begun to live here."""
        self.registers.activations += 1
        self._begin_pass()
        if self._station is not None:
            self._emit(frames.announcement(self._station))

    def turn(self) -> bool:
        """Do some of what is due; whether more of it is. Prerequisite: it runs, and the clock was set."""
        registers = self.registers
        self._transmit()
        more = self._dirty_pages()
        more |= self._send_frames()
        more |= self._write_blocks()
        if self._ram.verifying:
            self._verify()
            more = True
        self._ram.note(registers)
        return more

    @property
    def idle(self) -> bool:
        """Whether nothing will be due, however much time passes."""
        rates = self._rates
        return not (
            rates.dirty_pages_s
            or rates.frames_s
            or rates.disk_writes_s
            or self._ram.verifying
            or self.registers.transmit
        )

    def _due(self, rate: int, done_or_skipped: int) -> tuple[int, int]:
        """How many are due, and how many of them are skipped."""
        behind = rate * self.registers.clock_ns // _NS - done_or_skipped
        most = max(int(rate * _BEHIND_S), 1)
        return min(behind, most), max(behind - most, 0)

    def _dirty_pages(self) -> bool:
        registers = self.registers
        due, skipped = self._due(self._rates.dirty_pages_s, registers.pages + registers.pages_skipped)
        registers.pages_skipped += skipped
        count = min(due, _TURN_PAGES_MAX, self._ram.slots)
        if count > 0:
            self._verify_pages(registers.pages + count)
            self._ram.write(registers.pages, count)
            registers.pages += count
        return due > count

    def _send_frames(self) -> bool:
        registers = self.registers
        due, skipped = self._due(self._rates.frames_s, registers.frames + registers.frames_skipped)
        registers.frames_skipped += skipped
        count = min(due, _TURN_FRAMES_MAX)
        if count <= 0 or self._station is None or registers.transmit:
            return False
        length = self._rates.frame_bytes - HEADERS_BYTES
        for number in range(registers.frames, registers.frames + count):
            payload = encode_number(number, length)
            self._emit(frames.datagram(self._station, self._everybody, payload))
        registers.frames += count
        return due > count

    def _write_blocks(self) -> bool:
        registers, storage = self.registers, self._storage
        if storage is None:
            return False
        due, skipped = self._due(self._rates.disk_writes_s, registers.blocks + registers.blocks_skipped)
        registers.blocks_skipped += skipped
        room = _BLOCKS_UNDER_WAY_MAX - storage.disk.under_way
        count = min(due, _TURN_BLOCKS_MAX, room)
        for _ in range(count):
            while self._ram.blocks_cursor.behind(registers.blocks):
                self._verify_blocks(storage)
            storage.write_block(registers.blocks)
            registers.blocks += 1
        return 0 < count < due

    def _emit(self, frame: bytes) -> None:
        waiting = self.registers.transmit
        if waiting or not self._running or not self._send(frame):
            waiting.append(frame)

    def _transmit(self) -> None:
        waiting = self.registers.transmit
        while waiting and self._send(waiting[0]):
            waiting.popleft()

    # --- verification ---------------------------------------------------------------------------

    def _begin_pass(self) -> None:
        self._ram.verify_table(self.registers)
        self._ram.begin_pass(self.registers, self._storage.slots if self._storage else 0)

    def _verify(self) -> None:
        """A step of the pass: pages, then blocks, then records."""
        ram, storage = self._ram, self._storage
        if not ram.pages_cursor.done:
            self._verify_pages(ram.pages_cursor.take(_VERIFY_PAGES)[1])
        elif storage is not None and not ram.blocks_cursor.done:
            self._verify_blocks(storage)
        else:
            if storage is not None:
                storage.disk.drain()
                storage.verify_records()
            ram.end_pass()

    def _verify_pages(self, until: int) -> None:
        """What the pass has left of the walk's positions before this one."""
        first, end = self._ram.pages_cursor.take_until(until)
        if first < end:
            self._ram.verify(first, end, self.registers.pages)
            self._ram.pages_cursor.advance(end)

    def _verify_blocks(self, storage: Storage) -> None:
        storage.disk.drain()
        storage.verify_blocks(self.registers)

    # --- the service ----------------------------------------------------------------------------

    def receive(self, frame: bytes) -> None:
        """A frame of the LAN. Prerequisite: it runs."""
        station = self._station
        if station is None:
            return
        meaning = frames.receive(frame, station)
        if isinstance(meaning, bytes):
            self._emit(meaning)
        elif meaning is not None and meaning.port == SERVICE_PORT:
            self._serve(station, meaning)

    def _serve(self, station: Station, datagram: Datagram) -> None:
        request = decode_request(datagram.payload)
        if request is None or request.client in self._recording:
            return

        def answer(status: Status, report: Report | None = None) -> None:
            row = self._ram.clients[request.client]
            reply = Reply(
                operation=request.operation,
                status=status,
                client=request.client,
                asked=request.sequence,
                sequence=int(row["sequence"]),
                counter=int(row["counter"]),
                report=report,
            )
            self._emit(frames.datagram(station, datagram.sender, encode_reply(reply)))

        match request.operation:
            case Operation.COUNT | Operation.COUNT_DURABLY:
                self._count(request, answer)
            case Operation.READ:
                answer(Status.OK)
            case Operation.VERIFY:
                if not self._ram.verifying:
                    self._begin_pass()
                answer(Status.OK, self.report())
            case Operation.REPORT:
                answer(Status.OK, self.report())

    def _count(self, request: Request, answer: Callable[[Status], None]) -> None:
        """Each number once. A number that is further on than the next is counted all the same: that the
        guest has lost some is for the client to find."""
        client = request.client
        row = self._ram.clients[client]
        last, counter, durable = int(row["sequence"]), int(row["counter"]), int(row["durable"])
        if request.sequence < last:
            answer(Status.STALE)
            return
        if request.sequence > last:
            counter += 1
            self.registers.requests += 1
            self._ram.set_client(client, request.sequence, counter, durable)
            self._ram.note(self.registers)
        if request.operation is Operation.COUNT or durable == request.sequence:
            answer(Status.OK)
        elif self._storage is None:
            answer(Status.DISK_ERROR)
        else:
            self._recording.add(client)
            recorded = partial(self._recorded, request, counter, answer)
            self._storage.write_record(client, request.sequence, counter, recorded)

    def _recorded(self, request: Request, counter: int, answer: Callable[[Status], None], done: bool) -> None:
        self._recording.remove(request.client)
        if done:
            self._ram.set_client(request.client, request.sequence, counter, request.sequence)
        else:
            self._ram.count_disk_error()
        answer(Status.OK if done else Status.DISK_ERROR)

    def report(self) -> Report:
        """What clients are told."""
        ram, registers = self._ram, self.registers
        return Report(
            passes=ram.passes,
            verifying=ram.verifying,
            contradictions=ram.contradictions,
            pages=registers.pages,
            frames=registers.frames,
            blocks=registers.blocks,
            requests=registers.requests,
            activations=registers.activations,
            disk_errors=ram.disk_errors,
            clock_ns=registers.clock_ns,
        )
