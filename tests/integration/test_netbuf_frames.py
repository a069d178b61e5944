"""Real frames of every kind through each hold: in order, none early, none lost.

What the conformance suite asks of any output buffer is asked there; here is what frames add to it. The tap
hold runs on this kernel, the plug in the lab.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from pathlib import Path

import pytest
import trio
from integration.netbuf_frames import (
    GUEST_MAC,
    arp_request,
    ethernet,
    frames_of_every_kind,
    number_of,
    numbered,
    tcp_frame,
    udp,
)
from integration.netbuf_lab import REQUIREMENTS, Lab, by_each_hold, fork, run_with_lab, until
from pyroute2 import IPRoute

from netbuf import Backend, GuestTap, HoldState, ReleaseError, SealError, rarp_frame
from netbuf.tap import VNET_HEADER_BYTES
from remuslike.daemon.outputs import Outputs

pytestmark = REQUIREMENTS

EPOCHS = 10_000
BURST = 20


# --- nothing early ------------------------------------------------------------------------------


@by_each_hold()
async def test_whatever_the_protocol_nothing_leaves_before_its_release(lab: Lab) -> None:
    hold = lab.make_hold()
    frames = frames_of_every_kind()
    for protocol, frame in frames.items():
        lab.emit(frame)
        assert lab.on_lan() == [], f"{protocol}, closed"
    hold.hold(1)
    for protocol, frame in frames.items():
        lab.emit(frame)
        assert lab.on_lan() == [], f"{protocol}, holding"
    os.write(lab.guest.fileno(), tcp_frame(7001))
    hold.prepare()
    assert lab.on_lan() == []
    hold.seal(1)
    lab.emit(*frames.values())
    assert lab.on_lan() == []
    await hold.release(1)
    *plain, unfinished = lab.on_lan()
    assert plain == [*frames.values()] * 2
    assert unfinished[:50] == tcp_frame(7001)[VNET_HEADER_BYTES:][:50]  # its checksum is made on the way
    hold.close()
    assert lab.on_lan() == []


@by_each_hold()
async def test_calls_out_of_order_let_nothing_out(lab: Lab) -> None:
    hold = lab.make_hold(depth=1)
    hold.hold(1)
    lab.emit(*numbered(0))
    hold.seal(1)
    lab.emit(*numbered(1))
    with pytest.raises(SealError, match="depth=1"):
        hold.seal(2)
    for epoch in (2, 0):
        with pytest.raises(ReleaseError):
            await hold.release(epoch)
    assert lab.on_lan() == []
    await hold.release(1)
    hold.seal(2)
    await hold.release(2)
    assert lab.on_lan() == numbered(0, 2)


@by_each_hold()
async def test_discarded_frames_never_leave_and_are_counted(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        lab.emit(*numbered(0, 3))
        hold.seal(1)
        hold.discard()
        lab.emit(*numbered(3, 3))
        await until(lambda: hold.statistics().dropped_items == 6)
        assert lab.on_lan() == []
        hold.close()


@by_each_hold()
async def test_a_closed_hold_leaves_the_guest_without_a_way_out(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    hold.close()
    lab.emit(*numbered(0, 2))
    assert lab.on_lan() == []
    assert hold.statistics().state is HoldState.DISCARDED


@by_each_hold()
async def test_cancelling_run_stops_an_open_hold(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        lab.emit(*numbered(0))
        await until(lambda: hold.statistics().released_items == 1)
        nursery.cancel_scope.cancel()
    lab.emit(*numbered(1))
    assert lab.on_lan() == numbered(0)
    hold.close()


@by_each_hold()
async def test_the_guest_never_reaches_the_hosts_own_stack(lab: Lab) -> None:
    with IPRoute() as netlink:
        loopback = netlink.link_lookup(ifname="lo")[0]
        netlink.link("set", index=loopback, state="up")
        netlink.addr("add", index=loopback, address="10.66.0.2", prefixlen=32)
    hold = lab.make_hold()
    lab.emit(arp_request())  # about an address of the host's own, which it would answer
    assert lab.guest_receives(0) is None
    hold.close()
    lab.emit(arp_request())
    assert lab.guest_receives(0) is None

    lab.guest.close()
    lab.guest = GuestTap.create("rl1")  # without a hold it does answer: the test can fail
    with IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="rl1g")[0], state="up")
    lab.emit(arp_request())
    assert lab.guest_receives() is not None


@by_each_hold()
def test_a_host_that_is_a_router_sends_nothing_of_its_own_into_the_hold(lab: Lab) -> None:
    for scope in ("all", "default"):  # of this namespace
        Path(f"/proc/sys/net/ipv6/conf/{scope}/forwarding").write_text("1")
    lab.make_hold()
    joined = {line.split()[1] for line in Path("/proc/thread-self/net/igmp6").read_text().splitlines()}
    assert "br0" in joined
    assert joined.isdisjoint({"rl0h", "rl0i"})


# --- in order, and nothing lost -----------------------------------------------------------------


@by_each_hold()
async def test_ten_thousand_epochs_keep_order_and_lose_nothing(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    sizes = random.Random(EPOCHS)
    emitted = released = looked_at = 0
    in_flight: list[int] = []
    for epoch in range(1, EPOCHS + 1):
        size = sizes.choice((0, 1, 1, 2))
        lab.emit(*numbered(emitted, size))
        emitted += size
        hold.seal(epoch)
        in_flight.append(size)
        if len(in_flight) == hold.depth:
            await hold.release(epoch + 1 - hold.depth)
            released += in_flight.pop(0)
        if epoch % 1000 == 0:
            assert lab.on_lan() == numbered(looked_at, released - looked_at)
            looked_at = released
    for epoch in range(EPOCHS + 1 - len(in_flight), EPOCHS + 1):
        await hold.release(epoch)
    assert lab.on_lan() == numbered(looked_at, emitted - looked_at)
    figures = hold.statistics()
    assert (figures.released_items, figures.held_items, figures.dropped_items) == (emitted, 0, 0)


@by_each_hold()
def test_frames_sent_on_another_processor_before_a_seal_are_in_it(lab: Lab) -> None:
    here, *others = sorted(os.sched_getaffinity(0))
    hold = lab.make_hold()
    hold.hold(1)
    os.sched_setaffinity(0, {here})
    turns, sent = os.pipe(), os.pipe()

    def send() -> None:
        os.sched_setaffinity(0, others or {here})
        for number in range(100):
            os.read(turns[0], 1)
            lab.emit(*numbered(number))
            os.write(sent[1], b"s")

    sender = fork(send)
    for epoch in range(1, 101):
        os.write(turns[1], b"t")
        os.read(sent[0], 1)
        hold.seal(epoch)
        assert hold.statistics().held_items == 1, f"epoch {epoch}"
        trio.run(hold.release, epoch)
    assert os.waitpid(sender, 0)[1] == 0
    assert lab.on_lan() == numbered(0, 100)


@by_each_hold()
def test_frames_that_come_during_a_seal_leave_once_and_with_some_release(lab: Lab) -> None:
    """The guest isn't paused, and begins a burst just before each seal."""
    hold = lab.make_hold()
    hold.hold(1)
    bursts = os.pipe()

    def send() -> None:
        os.close(bursts[1])
        first = 0
        while os.read(bursts[0], 1):
            for number in range(first, first + BURST):
                lab.emit(*numbered(number))
            first += BURST

    sender = fork(send)
    os.close(bursts[0])
    seen: list[bytes] = []
    for epoch in range(1, 101):
        os.write(bursts[1], b"b")
        hold.seal(epoch)
        assert lab.on_lan() == [], f"epoch {epoch}"
        trio.run(hold.release, epoch)
        seen += lab.on_lan()
    os.close(bursts[1])
    assert os.waitpid(sender, 0)[1] == 0
    hold.seal(101)
    assert lab.on_lan() == []
    trio.run(hold.release, 101)
    assert seen + lab.on_lan() == numbered(0, 100 * BURST)
    figures = hold.statistics()
    assert (figures.held_items, figures.released_items, figures.dropped_items) == (0, 100 * BURST, 0)


# --- several NICs -------------------------------------------------------------------------------

NUMBERS_EACH = 1000


def by_nic(frames: list[bytes]) -> dict[int, list[bytes]]:
    """The guest's frames keep their order on each NIC; its place gives the thousand of their numbers."""
    nics: dict[int, list[bytes]] = {}
    for frame in frames:
        nics.setdefault(number_of(frame) // NUMBERS_EACH, []).append(frame)
    return nics


async def seal_several_as_one(lab: Lab, backends: list[Backend]) -> None:
    guests = [lab.guest, *(GuestTap.create(f"rl{place}") for place in range(1, len(backends)))]
    holds = [lab.make_hold(guest, backend=backend) for guest, backend in zip(guests, backends, strict=True)]
    outputs = Outputs(holds, [])
    assert outputs.depth == (1 if Backend.PLUG in backends else 2)
    outputs.hold(1)
    for epoch in range(1, outputs.depth + 1):
        for nic, guest in enumerate(guests):
            lab.emit(*numbered(nic * NUMBERS_EACH + epoch * 10, 5), by=guest)
        outputs.prepare()
        outputs.seal(epoch)
    for nic, guest in enumerate(guests):
        lab.emit(*numbered(nic * NUMBERS_EACH + 900, 2), by=guest)
    with pytest.raises(SealError, match=f"depth={outputs.depth}"):
        outputs.seal(outputs.depth + 1)
    sealed = tuple(range(1, outputs.depth + 1))
    assert [hold.statistics().sealed_epochs for hold in holds] == [sealed] * len(holds)
    assert lab.on_lan() == []
    for epoch in sealed:
        await outputs.release(epoch)
        assert by_nic(lab.on_lan()) == {
            nic: numbered(nic * NUMBERS_EACH + epoch * 10, 5) for nic in range(len(guests))
        }
    outputs.discard()
    assert lab.on_lan() == []


@pytest.mark.parametrize(
    "backends",
    [
        pytest.param([Backend.TAP] * 3, id="taps"),
        pytest.param([Backend.PLUG] * 3, id="plugs", marks=pytest.mark.lab),
        pytest.param([Backend.TAP, Backend.PLUG, Backend.TAP], id="a plug among taps", marks=pytest.mark.lab),
    ],
)
def test_several_nics_are_sealed_as_one(backends: list[Backend]) -> None:
    run_with_lab(seal_several_as_one, backends)


# --- frames of unusual sizes --------------------------------------------------------------------


@by_each_hold()
async def test_a_gso_frame_stays_whole_in_the_hold_and_arrives(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    payload = random.Random(7001).randbytes(32768)
    os.write(lab.guest.fileno(), tcp_frame(7001, payload, flags=0x18, gso_bytes=1448))
    hold.seal(1)
    figures = hold.statistics()
    assert figures.held_items == 1
    # A plug counts what will be on the wire, a header for each of 23 segments.
    headers = 23 * 54 if lab.backend is Backend.PLUG else VNET_HEADER_BYTES + 54
    assert figures.held_bytes == len(payload) + headers
    assert lab.on_lan() == []
    await hold.release(1)
    assert b"".join(frame[54:] for frame in lab.on_lan()) == payload


@by_each_hold(mtu_bytes=9000)
async def test_jumbo_frames_pass(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    frame = ethernet(bytes(range(256)) * 35)
    lab.emit(frame)
    hold.seal(1)
    assert lab.on_lan() == []
    await hold.release(1)
    assert lab.on_lan() == [frame]


@by_each_hold()
async def test_a_frame_too_short_for_a_payload_is_held_too(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(numbered(0)[0][:14])
    hold.seal(1)
    assert hold.statistics().held_items == 1
    assert lab.on_lan() == []


@by_each_hold()
async def test_a_guest_without_vnet_headers_is_held_too(lab: Lab) -> None:
    lab.guest.close()
    lab.guest = GuestTap.create("rl1", vnet_header=False)
    hold = lab.make_hold()
    hold.hold(1)
    (frame,) = numbered(0)
    os.write(lab.guest.fileno(), frame)
    hold.seal(1)
    assert lab.on_lan() == []
    await hold.release(1)
    assert lab.on_lan() == [frame]


# --- both ways ----------------------------------------------------------------------------------


@by_each_hold()
async def test_closed_lets_nothing_in_and_open_passes_both_ways(lab: Lab) -> None:
    hold = lab.make_hold()
    endpoint = lab.lan_socket(socket.SOCK_DGRAM, 7000)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        endpoint.sendto(b"while closed", ("10.66.0.9", 5000))
        lab.on_lan()
        assert lab.guest_receives(0) is None
        await hold.open()
        lab.emit(udp(b"out", 7000))
        await until(lambda: hold.statistics().released_items == 1)
        assert endpoint.recv(100) == b"out"
        endpoint.sendto(b"in", ("10.66.0.9", 5000))
        received = lab.guest_receives()
        assert received and received[42:44] == b"in"
        hold.discard()
        endpoint.sendto(b"after discard", ("10.66.0.9", 5000))
        lab.on_lan()
        assert lab.guest_receives(0) is None
        hold.close()


@by_each_hold()
async def test_a_guest_that_is_held_or_paused_loses_no_inbound_frame(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    endpoint = lab.lan_socket(socket.SOCK_DGRAM, 7000)
    for number in range(3000):
        endpoint.sendto(struct.pack(">I", number), ("10.66.0.9", 5000))
    for number in range(3000):
        received = lab.guest_receives()
        assert received and received[42:46] == struct.pack(">I", number)


@by_each_hold()
async def test_a_tcp_peer_learns_of_a_connection_only_by_the_release(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    listener = lab.lan_socket(socket.SOCK_STREAM, 7001)
    listener.listen()
    os.write(lab.guest.fileno(), tcp_frame(7001, sequence=1000))
    hold.seal(1)
    lab.on_lan()
    assert lab.guest_receives(0) is None
    await hold.release(1)
    answer = lab.guest_receives()
    assert answer
    acknowledged, flags = struct.unpack(">I", answer[42:46])[0], answer[47]
    assert (acknowledged, flags) == (1001, 0x12)  # SYN and ACK


@by_each_hold()
async def test_an_announcement_is_seen_at_once_and_teaches_the_bridge(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    hold.hold(1)
    frame = rarp_frame(GUEST_MAC.hex(":"))
    hold.announce([frame])
    assert lab.on_lan() == [frame]
    port = "rl0o" if lab.backend is Backend.TAP else "rl0g"
    with IPRoute() as netlink:
        ports = {
            entry["ifindex"]
            for entry in netlink.fdb("dump")
            if entry.get_attr("NDA_LLADDR") == GUEST_MAC.hex(":") and entry.get_attr("NDA_MASTER")
        }
        assert ports == set(netlink.link_lookup(ifname=port))
