"""Real frames while a hold is open: the kernel passes them by the gate, and none overtakes another.

The tap hold runs on this kernel, the plug in the lab; both need one that has `cls_bpf`.
"""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from integration.netbuf_frames import arp_request, frames_of_every_kind, number_of, numbered, tcp_frame
from integration.netbuf_lab import (
    REQUIREMENTS,
    Lab,
    by_each_hold,
    delete,
    fork,
    kernel_has_gates,
    namespaced,
    stay_on_one_processor,
    until,
)
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netbuf import Backend, Hold, InterfaceVanishedError, PlugHold, PrivilegeError, TapHold
from netbuf.gate import KernelGate, NoGate
from netbuf.leftovers import attach
from netbuf.packets import PacketNotice
from netbuf.plugwiring import PlugWiring
from netbuf.redirect import Hook, Network, Undelivered
from netbuf.tap import VNET_HEADER_BYTES
from netbuf.wiring import TapWiring

pytestmark = REQUIREMENTS

LIMIT_BYTES = 64 << 20
EARLY_FRAMES, LATE_FRAMES = 500, 500
SEED = 7001
NOTICE_MS = 5000
GAPS_MS = (*[0] * 12, 1, 3)


@pytest.fixture(autouse=True)
def a_kernel_with_gates() -> None:
    if not kernel_has_gates():
        pytest.skip("this kernel has no cls_bpf, or may not load it")


def is_passing(hold: Hold) -> Callable[[], bool]:
    """Whether the kernel passes what comes; nothing must be coming."""

    def look() -> bool:
        gate = hold._gate
        assert isinstance(gate, KernelGate)
        return gate.is_open()

    return look


# --- nothing overtakes ----------------------------------------------------------------------------


def send_until_told(lab: Lab, reader: int) -> None:
    """A guest: numbered frames in bursts, with gaps of up to 3 ms, until something comes from `reader`."""
    chance = random.Random(SEED)
    told = select.poll()
    told.register(reader, select.POLLIN)
    sent = 0
    while not told.poll(chance.choice(GAPS_MS)):
        for _ in range(chance.randrange(1, 40)):
            lab.emit(*numbered(sent))
            sent += 1


def status_of(child: int) -> int:
    """How it ends; it is about to."""
    return os.waitpid(child, 0)[1]


@by_each_hold()
async def test_nothing_overtakes_when_a_hold_opens_under_a_sending_guest(lab: Lab) -> None:
    hold = lab.make_hold()
    reader, writer = os.pipe()
    hold.hold(1)
    guest = fork(lambda: send_until_told(lab, reader))
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(hold.run)
            await until(lambda: hold.statistics().held_items > EARLY_FRAMES)
            await hold.open()
            await until(lambda: hold._gate.reading().passed_items > LATE_FRAMES)
        finally:
            os.write(writer, b"e")
            status = status_of(guest)
        assert status == 0
        assert hold._gate.reading().kept_items > EARLY_FRAMES
        figures = hold.statistics()
        assert (figures.dropped_items, figures.held_items) == (0, 0)
        assert [number_of(frame) for frame in lab.on_lan()] == list(range(figures.released_items))
        hold.close()


@by_each_hold()
async def test_over_and_over_nothing_overtakes_and_nothing_passes_a_hold(lab: Lab) -> None:
    hold = lab.make_hold()
    seen: list[bytes] = []

    async def until_released(items: int) -> None:
        await until(lambda: hold.statistics().released_items == items)
        seen.extend(lab.on_lan())
        assert seen == numbered(0, items)

    sent = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        for epoch in range(1, 40):
            hold.hold(epoch)
            lab.emit(*numbered(sent, epoch))
            assert lab.on_lan() == []
            await hold.open()
            lab.emit(*numbered(sent + epoch))
            sent += epoch + 1
            if epoch % 2:
                await until(is_passing(hold))
                lab.emit(*numbered(sent))
                sent += 1
            await until_released(sent)
        hold.close()


# --- what passes ----------------------------------------------------------------------------------


@by_each_hold()
async def test_whatever_the_protocol_it_passes_at_once_and_is_counted(lab: Lab) -> None:
    hold = lab.make_hold()
    frames = [*frames_of_every_kind().values(), numbered(0)[0][:14]]
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        await until(is_passing(hold))
        lab.emit(*frames)
        assert lab.on_lan() == frames
        payload = random.Random(7001).randbytes(32768)
        os.write(lab.guest.fileno(), tcp_frame(7001, payload, flags=0x18, gso_bytes=1448))
        assert b"".join(frame[54:] for frame in lab.on_lan()) == payload
        figures = hold.statistics()
        # What a tap hold holds begins with a vnet header; the kernel takes a VLAN tag out of its frame.
        headers = (len(frames) + 1) * VNET_HEADER_BYTES if lab.backend is Backend.TAP else 0
        size_bytes = sum(map(len, frames)) - 4 + 54 + len(payload) + headers
        assert (figures.released_items, figures.released_bytes) == (len(frames) + 1, size_bytes)
        assert hold._gate.reading().kept_items == figures.dropped_items == 0
        hold.close()


@by_each_hold()
async def test_the_guest_never_reaches_the_hosts_own_stack_through_a_gate(lab: Lab) -> None:
    with IPRoute() as netlink:
        loopback = netlink.link_lookup(ifname="lo")[0]
        netlink.link("set", index=loopback, state="up")
        netlink.addr("add", index=loopback, address="10.66.0.2", prefixlen=32)
    hold = lab.make_hold()
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        await until(is_passing(hold))
        nursery.cancel_scope.cancel()
    lab.emit(arp_request())
    hold.close()
    lab.emit(arp_request())
    assert lab.guest_receives(0) is None


# --- notices --------------------------------------------------------------------------------------


@namespaced()
def test_a_gate_notifies_of_the_one_frame_that_was_asked_for(lab: Lab) -> None:
    hold = lab.make_hold()
    gate = hold._gate
    notices = select.poll()
    notices.register(gate.notice_fileno(), select.POLLIN)
    lab.emit(*numbered(0, 3))
    assert not notices.poll(0)
    for kept_items in (3, 5):
        gate.tell_after(kept_items)
        assert not notices.poll(0)
        assert not gate.take_notice()
        lab.emit(*numbered(kept_items))
        assert notices.poll(NOTICE_MS)
        assert gate.take_notice()
        assert not notices.poll(0)
        lab.emit(*numbered(kept_items + 1))
        assert not notices.poll(0)
    hold.close()
    assert gate.notice_fileno() == -1
    gate.tell_after(0)
    assert not gate.take_notice()


@namespaced()
def test_a_packet_socket_notifies_of_the_next_frame_where_there_is_no_gate(lab: Lab) -> None:
    notice = PacketNotice(lab.guest.name)  # the tap is down
    lab.make_hold()
    notices = select.poll()
    notices.register(notice.fileno(), select.POLLIN)
    for _ in range(2):
        lab.emit(*numbered(0, 3))
        assert not notices.poll(0)
        notice.arm()
        assert not notices.poll(0)
        lab.emit(*numbered(3, 100))
        assert notices.poll(NOTICE_MS)
        assert notice.take()
        assert not notice.take()
    notice.close()
    notice.arm()
    assert (notice.fileno(), notice.take()) == (-1, False)


def assert_first_frames_are_told(lab: Lab, make: Callable[[], Hold]) -> None:
    """Without a look at the kernel's queue: this clock stands still, so nothing that waits for it goes on."""

    async def scenario() -> None:
        hold = make()
        told: list[int] = []
        hold.on_output(told.append)
        async with trio.open_nursery() as nursery:
            await nursery.start(hold.run)
            hold.hold(1)
            await trio.testing.wait_all_tasks_blocked()
            assert told == []
            lab.emit(*numbered(0))
            await until(lambda: told == [1])
            lab.emit(*numbered(1, 10))
            hold.seal(1)
            await trio.testing.wait_all_tasks_blocked()
            assert told == [1]
            lab.emit(*numbered(11, 2))
            await until(lambda: told == [1, 2])
            hold.close()
        assert lab.on_lan() == []

    trio.run(scenario, clock=trio.testing.MockClock())


@by_each_hold()
def test_the_first_frame_of_an_epoch_is_told_of_without_a_look(lab: Lab) -> None:
    assert_first_frames_are_told(lab, lab.make_hold)


@by_each_hold()
def test_the_first_frame_of_an_epoch_is_told_of_without_gates_too(lab: Lab) -> None:
    assert_first_frames_are_told(lab, lambda: hold_without_gate(lab))


# --- the end --------------------------------------------------------------------------------------


def open_and_wait(lab: Lab, opened: int, hold: Hold) -> None:
    """Says so by `opened` when the kernel passes frames, and goes on until it is killed."""

    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(hold.run)
            await hold.open()
            await until(is_passing(hold))
            os.write(opened, b"o")
            await trio.sleep_forever()

    trio.run(scenario)


def killed_while_open(lab: Lab, make: Callable[[], Hold]) -> None:
    """A holder lives in a child until the kernel passes frames, which is shown, and is killed."""
    reader, writer = os.pipe()
    holder = fork(lambda: open_and_wait(lab, writer, make()))
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"o"
        lab.emit(*numbered(0, 5))
        assert lab.on_lan() == numbered(0, 5)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)


@namespaced()
def test_a_tap_hold_that_is_killed_while_open_lets_nothing_out_any_more(lab: Lab) -> None:
    killed_while_open(lab, lab.make_hold)
    lab.emit(*numbered(5, 5))
    assert lab.on_lan() == []
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=lab.guest.name)[0]
    network = Network()
    assert network.undelivered(index, Hook.INGRESS) == Undelivered(passed_items=5)
    network.close()


@by_each_hold()
def test_the_next_holder_after_a_kill_while_open_starts_closed(lab: Lab) -> None:
    killed_while_open(lab, lambda: lab.make_hold(attach(Network(), "rl0g", "br0")))
    network = Network()
    survivor = lab.make_hold(attach(network, "rl0g", "br0"))
    network.close()
    lab.emit(*numbered(5, 3))
    assert lab.on_lan() == []
    survivor.hold(1)
    survivor.seal(1)
    trio.run(survivor.release, 1)
    assert lab.on_lan() == numbered(5, 3)
    survivor.close()


@namespaced()
async def test_an_outlet_that_is_deleted_while_the_kernel_uses_it_is_named(lab: Lab) -> None:
    hold = lab.make_hold()
    with (
        trio.fail_after(10),
        pytest.RaisesGroup(pytest.RaisesExc(InterfaceVanishedError, match="outlet of rl0g")),
    ):
        async with trio.open_nursery() as nursery:
            await nursery.start(hold.run)
            await hold.open()
            delete("rl0o")
    lab.emit(*numbered(0))
    assert lab.on_lan() == []
    figures = hold.statistics()
    assert figures.released_items == 0
    hold.close()


# --- without --------------------------------------------------------------------------------------


class WithoutGates:
    """pyroute2's `IPRoute` on a kernel without `cls_bpf`."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def tc(self, command: str, kind: str, **what: Any) -> Any:
        if kind == "bpf":
            raise NetlinkError(2)
        return self._netlink.tc(command, kind, **what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._netlink, name)


def hold_without_gate(lab: Lab) -> Hold:
    network = Network(WithoutGates())
    if lab.backend is Backend.TAP:
        return TapHold(lab.guest, "br0", LIMIT_BYTES, wire=lambda *names: TapWiring(*names, network))
    stay_on_one_processor()
    return PlugHold(lab.guest, "br0", LIMIT_BYTES, wire=lambda *what: PlugWiring(*what, network))


@by_each_hold()
async def test_without_gates_frames_pass_an_open_hold_all_the_same(lab: Lab) -> None:
    hold = hold_without_gate(lab)
    assert isinstance(hold._gate, NoGate)
    hold.hold(1)
    lab.emit(*numbered(0, 3))
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        lab.emit(*numbered(3, 3))
        await until(lambda: hold.statistics().released_items == 6)
        assert lab.on_lan() == numbered(0, 6)
        hold.hold(2)
        lab.emit(*numbered(6))
        assert lab.on_lan() == []
        hold.close()


@namespaced()
def test_a_process_without_the_privilege_is_told_so(lab: Lab) -> None:
    os.setresuid(65534, 65534, 65534)
    with pytest.raises(PrivilegeError, match="CAP_BPF"):
        KernelGate()


@namespaced()
def test_a_closed_gate_does_nothing_and_tells_its_last_counters(lab: Lab) -> None:
    gate = KernelGate()
    before = gate.reading()
    for _ in range(2):
        gate.close()
    gate.pass_after(0)
    gate.shut()
    assert gate.reading() == before
    assert (gate.program_fileno(), gate.is_open()) == (-1, False)
