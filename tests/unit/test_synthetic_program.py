"""remuslike.synthetic.program with its RAM and its disk: rates, the service, and what verification finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from remuslike.synthetic import Rates, RatesError
from remuslike.synthetic.frames import Datagram, Station, datagram, receive
from remuslike.synthetic.program import Program
from remuslike.synthetic.ram import Ram
from remuslike.synthetic.registers import Registers, decode_registers, encode_registers
from remuslike.synthetic.service import (
    FRAMES_PORT,
    Operation,
    Reply,
    Report,
    Request,
    Status,
    decode_number,
    decode_reply,
    encode_request,
)
from remuslike.synthetic.storage import BLOCKS_OFFSET, SECTOR_BYTES, Storage

RATES = Rates(
    dirty_pages_s=3000,
    working_set_mib=2,
    frames_s=100,
    disk_writes_s=500,
    disk_write_bytes=512,
    address="10.77.0.2/24",
    seed=11,
)
MAC = bytes.fromhex("525400000001")
CLIENT = Station(bytes.fromhex("525400000002"), bytes([10, 77, 0, 1]), 4000)
GUEST = Station(MAC, bytes([10, 77, 0, 2]), 7777)
MEMORY_BYTES = 4 << 20
DISK_BYTES = BLOCKS_OFFSET + 64 * 512
SECOND_NS = 1_000_000_000
PAGE_BYTES = 4096


@dataclass
class FakeDisk:
    """Writes are done when they are waited for, and fail while it is broken."""

    contents: bytearray = field(default_factory=lambda: bytearray(DISK_BYTES))
    waiting: list[tuple[int, bytes, Callable[[bool], None]]] = field(default_factory=list)
    broken: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.contents)

    @property
    def under_way(self) -> int:
        return len(self.waiting)

    def write(
        self, offset: int, data: bytes, completed: Callable[[bool], None], *, durable: bool = False
    ) -> None:
        self.waiting.append((offset, data, completed))

    def drain(self) -> None:
        while self.waiting:
            offset, data, completed = self.waiting.pop(0)
            if not self.broken:
                self.contents[offset : offset + len(data)] = data
            completed(not self.broken)

    def read(self, offset: int, count: int) -> bytes | None:
        assert not self.waiting
        return None if self.broken else bytes(self.contents[offset : offset + count])


class Host:
    """A guest that runs, and what it has sent."""

    def __init__(
        self,
        rates: Rates = RATES,
        memory: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None,
        disk: FakeDisk | None = None,
        registers: Registers | None = None,
    ) -> None:
        self.memory = np.zeros(MEMORY_BYTES, np.uint8) if memory is None else memory.copy()
        self.disk = disk or FakeDisk()
        self.sent: list[bytes] = []
        self.plugged = True
        ram = Ram(self.memory, rates.working_set_mib, rates.seed)
        storage = Storage(self.disk, rates, ram)
        self.program = Program(rates, registers or Registers(), ram, storage, MAC, self._send)
        self.program.resume()

    def _send(self, frame: bytes) -> bool:
        if self.plugged:
            self.sent.append(frame)
        return self.plugged

    def run(self, seconds: float) -> None:
        """A while of its own time, in turns of a millisecond and those that are still due."""
        start = self.program.registers.clock_ns
        for tick in range(1, int(seconds * 1000) + 1):
            self.program.registers.clock_ns = start + tick * SECOND_NS // 1000
            while self.program.turn():
                pass
            self.disk.drain()

    def successor(self, device_state: bytes | None = None) -> Host:
        """Another host's, of this one's RAM, disk and device state, and nothing else."""
        state = self.device_state() if device_state is None else device_state
        host = Host(memory=self.memory, registers=decode_registers(state, b""))
        host.disk.contents[:] = self.disk.contents
        return host

    def device_state(self) -> bytes:
        return encode_registers(self.program.registers, b"")

    def ask(self, operation: Operation, client: int = 0, sequence: int = 0) -> None:
        payload = encode_request(Request(operation, client, sequence))
        self.program.receive(datagram(CLIENT, GUEST, payload))

    def heard(self) -> list[Reply]:
        """The answers since this was last asked."""
        heard = [receive(frame, CLIENT) for frame in self.sent]
        self.sent.clear()
        found = [decode_reply(one.payload) for one in heard if isinstance(one, Datagram)]
        return [reply for reply in found if reply is not None]

    def verify(self) -> Report:
        """All of it, until the end of the pass."""
        self.ask(Operation.VERIFY)
        while self.program.turn():
            pass
        return self.program.report()


# --- rates ----------------------------------------------------------------------------------------


def test_it_does_as_much_as_is_due() -> None:
    host = Host()
    host.run(0.5)
    report = host.program.report()
    assert (report.pages, report.frames, report.blocks) == (1500, 50, 250)
    numbers = [
        decode_number(frame[42:]) for frame in host.sent if frame[36:38] == FRAMES_PORT.to_bytes(2, "big")
    ]
    assert numbers == list(range(50))
    assert {len(frame) for frame in host.sent} == {RATES.frame_bytes}


def test_each_page_of_the_working_set_is_written_as_often_as_the_others() -> None:
    host = Host()
    host.run(512 / 3000)
    pages = host.memory[1 << 20 :].reshape(-1, PAGE_BYTES)
    assert int(pages.any(axis=1).sum()) == host.program.report().pages == 510
    assert len(np.unique(pages[pages.any(axis=1)][:, :8], axis=0)) == 510


def test_what_it_could_not_do_in_time_is_skipped() -> None:
    host = Host()
    host.program.registers.clock_ns = 100 * SECOND_NS
    while host.program.turn():
        host.disk.drain()
    registers = host.program.registers
    assert registers.pages == 750
    assert registers.pages + registers.pages_skipped == 300_000


def test_an_idle_guest_has_nothing_to_wait_for() -> None:
    assert Host(Rates(address="10.77.0.2/24", working_set_mib=1)).program.idle
    assert not Host().program.idle


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            Rates(working_set_mib=4),
            r"synthetic\.working_set_mib = 4: needs a guest\.memory_mib of 5",
        ),
        (
            Rates(working_set_mib=1, disk_write_bytes=65536),
            r"synthetic\.disk_write_bytes = 65536: the disk's",
        ),
    ],
)
def test_what_has_no_room_is_named(rates: Rates, message: str) -> None:
    with pytest.raises(RatesError, match=message):
        Host(rates)


# --- the service ----------------------------------------------------------------------------------


def test_each_number_is_counted_once() -> None:
    host = Host()
    for sequence in (1, 2, 2, 3):
        host.ask(Operation.COUNT, 5, sequence)
    assert [(reply.asked, reply.counter) for reply in host.heard()] == [(1, 1), (2, 2), (2, 2), (3, 3)]
    host.ask(Operation.COUNT, 5, 1)
    (stale,) = host.heard()
    assert (stale.status, stale.sequence, stale.counter) == (Status.STALE, 3, 3)


def test_a_number_too_far_on_shows_that_some_were_lost() -> None:
    host = Host()
    host.ask(Operation.COUNT, 5, 4)
    (reply,) = host.heard()
    assert (reply.sequence, reply.counter) == (4, 1)


def test_a_durable_answer_waits_for_its_record() -> None:
    host = Host()
    host.ask(Operation.COUNT_DURABLY, 5, 1)
    host.ask(Operation.COUNT_DURABLY, 5, 1)
    assert host.heard() == []
    assert host.disk.under_way == 1
    host.disk.drain()
    (reply,) = host.heard()
    assert (reply.status, reply.counter) == (Status.OK, 1)
    assert any(host.disk.contents[5 * SECTOR_BYTES : 6 * SECTOR_BYTES])
    host.ask(Operation.COUNT_DURABLY, 5, 1)
    assert (len(host.heard()), host.disk.under_way) == (1, 0)


def test_a_failed_record_is_told_and_written_when_it_is_asked_for_again() -> None:
    host = Host()
    host.disk.broken = True
    host.ask(Operation.COUNT_DURABLY, 5, 1)
    host.disk.drain()
    host.disk.broken = False
    host.ask(Operation.COUNT_DURABLY, 5, 1)
    host.disk.drain()
    assert [(reply.status, reply.counter) for reply in host.heard()] == [
        (Status.DISK_ERROR, 1),
        (Status.OK, 1),
    ]
    assert host.program.report().disk_errors == 1


def test_pausing_ends_what_is_under_way_and_sends_nothing() -> None:
    host = Host()
    host.ask(Operation.COUNT_DURABLY, 5, 1)
    host.program.pause()
    assert (host.disk.under_way, host.sent) == (0, [])
    other = host.successor()
    other.program.turn()
    (reply,) = other.heard()
    assert (reply.asked, reply.status) == (1, Status.OK)


def test_frames_wait_in_order_for_an_interface_that_takes_none() -> None:
    host = Host()
    host.plugged = False
    for sequence in (1, 2, 3):
        host.ask(Operation.COUNT, 5, sequence)
    assert not host.program.idle
    host.plugged = True
    host.program.turn()
    assert [reply.asked for reply in host.heard()] == [1, 2, 3]


# --- going on elsewhere, and verification ---------------------------------------------------------


def test_a_successor_does_the_very_next_thing() -> None:
    """And nothing else: it has only RAM, disk and device state."""
    first = Host()
    first.run(0.3)
    first.ask(Operation.COUNT_DURABLY, 1, 1)
    first.disk.drain()
    second = first.successor()
    first.sent.clear()
    for host in (first, second):
        host.run(0.3)
        host.ask(Operation.COUNT, 1, 2)
    assert first.sent == second.sent
    assert first.device_state() == second.device_state()
    assert (first.memory == second.memory).all()
    assert first.disk.contents == second.disk.contents


def test_a_whole_epoch_contradicts_nothing_and_is_verified_while_it_goes_on() -> None:
    host = Host()
    host.run(1.3)
    for client in range(20):
        host.ask(Operation.COUNT_DURABLY, client, 1)
    host.program.pause()
    other = host.successor()
    other.program.activate()
    assert other.program.turn()  # it has more to verify, and works
    other.run(0.2)
    report = other.program.report()
    assert (report.passes, report.verifying, report.contradictions, report.activations) == (1, False, 0, 1)
    assert other.verify().passes == 2
    assert other.program.report().contradictions == 0


def test_another_epochs_device_state_is_found_out() -> None:
    host = Host()
    host.run(0.3)
    earlier = host.device_state()
    host.run(0.1)
    other = host.successor(earlier)
    other.program.activate()
    # 300 pages, 50 blocks, and three counts; the frames' is one of them.
    assert other.verify().contradictions >= 353


def test_another_epochs_disk_is_found_out() -> None:
    host = Host()
    host.run(0.3)
    host.ask(Operation.COUNT_DURABLY, 7, 1)
    host.disk.drain()
    earlier = bytes(host.disk.contents)
    host.run(0.02)
    host.ask(Operation.COUNT_DURABLY, 7, 2)
    host.disk.drain()
    host.disk.contents[:] = earlier
    # Ten blocks and a record.
    assert host.verify().contradictions == 11


@pytest.mark.parametrize("offset", [0, 8, PAGE_BYTES - 1])
def test_a_torn_page_is_found_out_even_if_it_is_written_next(offset: int) -> None:
    host = Host()
    host.run(0.5)
    pages = host.memory[1 << 20 :].reshape(-1, PAGE_BYTES)
    before = pages.copy()
    host.run(0.001)
    (written, *_) = np.flatnonzero((pages != before).any(axis=1))
    host.run(0.168)  # a round less its last few writes: that page is next
    pages[written, offset] ^= 1
    host.ask(Operation.VERIFY)
    host.run(0.05)
    assert host.program.report().contradictions == 1


def test_a_client_that_was_changed_behind_its_back_is_found_out() -> None:
    host = Host()
    host.ask(Operation.COUNT, 3, 1)
    host.memory[PAGE_BYTES + 3 * 32 + 8] = 2
    # The row, and the sum of all.
    assert host.verify().contradictions == 2
