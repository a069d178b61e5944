"""The plug hold with the kernel's plug and real frames: what the conformance suite does not show.

The topology and the frames are those of the tap hold's tests.
"""

from __future__ import annotations

import os
import socket
import struct

import pytest
import trio
from integration.test_netbuf_namespaces import (
    GUEST_MAC,
    VNET_HEADER_BYTES,
    Lab,
    arp_request,
    delete,
    ethernet,
    icmp_echo,
    ipv4,
    namespaced,
    numbered,
    tcp_frame,
    udp,
)
from pyroute2 import IPRoute

from netbuf import (
    Backend,
    GuestTap,
    HoldBrokenError,
    HoldState,
    InterfaceVanishedError,
    NameClashError,
    PlugHold,
    choose,
    make_hold,
    rarp_frame,
)
from netbuf.leftovers import clean
from netbuf.redirect import Network

pytestmark = [
    pytest.mark.lab,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
]

LIMIT_BYTES = 64 << 20


def plugged(lab: Lab, guest: GuestTap | None = None, limit_bytes: int = LIMIT_BYTES) -> PlugHold:
    """A hold, and the test from now on on one processor: a marker would not come behind frames of another's
    softirqs."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return PlugHold(guest or lab.guest, "br0", limit_bytes)


def dhcp_discover() -> bytes:
    body = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000).ljust(240, b"\0")
    header = struct.pack(">HHHH", 68, 67, 8 + len(body), 0)
    return ethernet(ipv4(17, header + body), 0x0800, to=b"\xff" * 6)


def neighbour_solicitation() -> bytes:
    """IPv6, ICMPv6 type 135; nobody on the LAN has the address."""
    body = struct.pack(">BBHI", 135, 0, 0, 0) + bytes(15) + b"\x09"
    source, target = bytes.fromhex("fe80") + bytes(13) + b"\x09", bytes.fromhex("ff02") + bytes(13) + b"\x01"
    return ethernet(struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source + target + body, 0x86DD)


def frames_of_every_kind() -> list[bytes]:
    return [
        arp_request(),
        icmp_echo(b"abcdefghijklmnopqrst"),
        udp(b"a datagram of some length", 7000),
        dhcp_discover(),
        neighbour_solicitation(),
        ethernet(struct.pack(">HH", 42, 0x88B5) + b"tagged", 0x8100),
        rarp_frame(GUEST_MAC.hex(":")),
        numbered(7)[0],
    ]


@namespaced()
async def test_whatever_the_protocol_nothing_leaves_before_its_release(lab: Lab) -> None:
    hold = plugged(lab)
    frames = frames_of_every_kind()
    lab.emit(*frames)
    assert lab.on_lan() == []  # closed
    hold.hold(1)
    os.write(lab.guest.fileno(), tcp_frame(7001))
    assert lab.on_lan() == []
    hold.seal(1)
    lab.emit(*numbered(0, 3))
    assert lab.on_lan() == []
    assert hold.statistics().held_items == len(frames) + 4
    await hold.release(1)
    seen = lab.on_lan()
    assert seen[:-1] == frames
    assert seen[-1][:50] == tcp_frame(7001)[VNET_HEADER_BYTES:][:50]
    hold.close()
    assert lab.on_lan() == []


@namespaced()
async def test_ten_thousand_epochs_keep_order_and_lose_nothing(lab: Lab) -> None:
    hold = plugged(lab)
    hold.hold(1)
    for epoch in range(1, 10_001):
        lab.emit(*numbered(epoch))
        hold.seal(epoch)
        await hold.release(epoch)
        if epoch % 1000 == 0:
            assert lab.on_lan() == numbered(epoch - 999, 1000)
    figures = hold.statistics()
    assert (figures.released_items, figures.held_items, figures.dropped_items) == (10_000, 0, 0)


@namespaced()
def test_frames_sent_on_another_processor_before_a_seal_are_in_it(lab: Lab) -> None:
    _, *others = sorted(os.sched_getaffinity(0))
    hold = plugged(lab)
    hold.hold(1)
    turns, sent = os.pipe(), os.pipe()
    sender = os.fork()
    if not sender:
        os.sched_setaffinity(0, others or os.sched_getaffinity(0))
        for number in range(100):
            os.read(turns[0], 1)
            lab.emit(*numbered(number))
            os.write(sent[1], b"s")
        os._exit(0)
    for epoch in range(1, 101):
        os.write(turns[1], b"t")
        os.read(sent[0], 1)
        hold.seal(epoch)
        assert hold.statistics().held_items == 1, f"epoch {epoch}"
        trio.run(hold.release, epoch)
    os.waitpid(sender, 0)
    assert lab.on_lan() == numbered(0, 100)


@namespaced()
def test_a_guest_that_is_not_paused_loses_nothing_and_nothing_is_early(lab: Lab) -> None:
    """Frames come while the seal is done: each leaves once, in order, by some release."""
    hold = plugged(lab)
    hold.hold(1)
    sender = os.fork()
    if not sender:
        for number in range(2000):
            lab.emit(*numbered(number))
        os._exit(0)

    async def release_until_the_sender_ends() -> int:
        for epoch in range(1, 10_000):
            hold.seal(epoch)
            await hold.release(epoch)
            if os.waitpid(sender, os.WNOHANG)[0]:  # noqa: ASYNC222  it doesn't wait
                return epoch
        raise AssertionError("the sender never ended")

    last = trio.run(release_until_the_sender_ends)
    hold.seal(last + 1)
    trio.run(hold.release, last + 1)
    assert lab.on_lan() == numbered(0, 2000)
    figures = hold.statistics()
    assert (figures.held_items, figures.released_items, figures.dropped_items) == (0, 2000, 0)


@namespaced()
async def test_several_nics_are_sealed_as_one(lab: Lab) -> None:
    others = [GuestTap.create(f"rl{number}") for number in (1, 2)]
    guests = [lab.guest, *others]
    holds = [plugged(lab, guest) for guest in guests]
    for number, (guest, hold) in enumerate(zip(guests, holds, strict=True)):
        hold.hold(1)
        os.write(guest.fileno(), bytes(VNET_HEADER_BYTES) + numbered(number)[0])
    for hold in holds:
        hold.seal(1)
    for number, guest in enumerate(guests):
        os.write(guest.fileno(), bytes(VNET_HEADER_BYTES) + numbered(10 + number)[0])
    assert lab.on_lan() == []
    for hold in holds:
        await hold.release(1)
    assert sorted(lab.on_lan()) == numbered(0, 3)
    for hold in holds:
        hold.close()
    assert lab.on_lan() == []


# --- frames of unusual sizes --------------------------------------------------------------------


@namespaced()
async def test_a_gso_frame_stays_whole_and_arrives(lab: Lab) -> None:
    hold = plugged(lab)
    hold.hold(1)
    payload = os.urandom(1) * 32768
    os.write(lab.guest.fileno(), tcp_frame(7001, payload, flags=0x18, gso_bytes=1448))
    hold.seal(1)
    figures = hold.statistics()
    assert figures.held_items == 1
    assert figures.held_bytes == len(payload) + 23 * 54  # as on the wire: a header for each segment
    await hold.release(1)
    assert b"".join(frame[54:] for frame in lab.on_lan()) == payload


@namespaced(mtu_bytes=9000)
async def test_jumbo_frames_pass(lab: Lab) -> None:
    hold = plugged(lab)
    hold.hold(1)
    frame = ethernet(bytes(range(256)) * 35)
    lab.emit(frame)
    hold.seal(1)
    await hold.release(1)
    assert lab.on_lan() == [frame]


# --- both ways ----------------------------------------------------------------------------------


@namespaced()
async def test_closed_lets_nothing_in_and_holding_passes_what_is_for_the_guest(lab: Lab) -> None:
    hold = plugged(lab)
    endpoint = lab.lan_socket(socket.SOCK_DGRAM, 7000)
    endpoint.sendto(b"while closed", ("10.66.0.9", 5000))
    lab.on_lan()
    assert lab.guest_receives(0) is None
    hold.hold(1)
    endpoint.sendto(b"in", ("10.66.0.9", 5000))
    received = lab.guest_receives()
    assert received and received[42:44] == b"in"
    hold.discard()
    endpoint.sendto(b"after discard", ("10.66.0.9", 5000))
    lab.on_lan()
    assert lab.guest_receives(0) is None


@namespaced()
async def test_a_tcp_peer_learns_of_a_connection_only_by_the_release(lab: Lab) -> None:
    hold = plugged(lab)
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


@namespaced()
async def test_an_announcement_is_seen_at_once_and_teaches_the_bridge(lab: Lab) -> None:
    hold = plugged(lab)
    await hold.open()
    hold.hold(1)
    frame = rarp_frame(GUEST_MAC.hex(":"))
    hold.announce([frame])
    assert lab.on_lan() == [frame]
    with IPRoute() as netlink:
        ports = {
            entry["ifindex"]
            for entry in netlink.fdb("dump")
            if entry.get_attr("NDA_LLADDR") == GUEST_MAC.hex(":") and entry.get_attr("NDA_MASTER")
        }
        assert ports == set(netlink.link_lookup(ifname=lab.guest.name))


# --- limits and tampering -----------------------------------------------------------------------


@namespaced()
async def test_what_exceeds_the_kernels_limit_is_counted_once(lab: Lab) -> None:
    hold = plugged(lab, limit_bytes=600)
    hold.hold(1)
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname="rl0i")[0]
        netlink.tc("change", "plug", index=index, handle=0x9B0F0000, action="TCQ_PLUG_LIMIT", limit=600)
    lab.emit(*numbered(0, 13))
    hold.seal(1)
    figures = hold.statistics()
    assert (figures.held_items, figures.held_bytes, figures.dropped_items) == (10, 600, 3)
    assert hold.pressure.value == "full"
    await hold.release(1)
    assert lab.on_lan() == numbered(0, 10)


@namespaced()
async def test_a_hold_that_somebody_deletes_is_named_and_lets_nothing_out(lab: Lab) -> None:
    hold = plugged(lab)
    hold.hold(1)
    lab.emit(*numbered(0, 3))
    hold.seal(1)
    delete("rl0i")
    with pytest.raises(InterfaceVanishedError, match="'rl0i' is gone"):
        await hold.release(1)
    lab.emit(*numbered(3, 2))
    assert lab.on_lan() == []
    assert hold.statistics().state is HoldState.DISCARDED
    assert hold.statistics().dropped_items >= 2


@namespaced()
async def test_a_guest_tap_that_vanishes_takes_what_is_held_with_it(lab: Lab) -> None:
    hold = plugged(lab)
    hold.hold(1)
    lab.emit(*numbered(0, 3))
    lab.guest.close()
    with pytest.raises(InterfaceVanishedError, match="guest tap 'rl0g' is gone"):
        await hold.run()
    assert lab.on_lan() == []


@pytest.mark.parametrize("act", ["down", "unplug", "replace"])
def test_a_plug_that_somebody_changes_is_cut(act: str) -> None:
    @namespaced()
    async def scenario(lab: Lab) -> None:
        hold = plugged(lab)
        hold.hold(1)
        lab.emit(*numbered(0, 3))
        hold.prepare()
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname="rl0i")[0]
            if act == "down":
                netlink.link("set", index=index, state="down")
                netlink.link("set", index=index, state="up")
            elif act == "unplug":
                netlink.tc("del", index=index, parent=0xFFFFFFFF)
            else:
                netlink.tc("replace", "pfifo_fast", index=index, parent=0xFFFFFFFF, handle=0x10000)
        with pytest.raises(HoldBrokenError):
            hold.seal(1)
        lab.on_lan()
        lab.emit(*numbered(9, 3))
        assert lab.on_lan() == []

    scenario()


# --- leftovers ----------------------------------------------------------------------------------


@namespaced()
def test_a_living_hold_and_a_foreign_interface_are_refused(lab: Lab) -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname="rl0i", kind="ifb")
    with pytest.raises(NameClashError, match="'rl0i' exists already and is no hold"):
        plugged(lab)
    delete("rl0i")
    hold = plugged(lab)
    with pytest.raises(NameClashError, match="belongs to a running process"):
        plugged(lab)
    hold.close()
    plugged(lab).close()


@namespaced()
async def test_an_end_in_order_leaves_no_interface(lab: Lab) -> None:
    hold = plugged(lab)
    await hold.open()
    hold.close()
    with IPRoute() as netlink:
        assert netlink.link_lookup(ifname="rl0i") == []


@namespaced()
def test_clean_leaves_a_living_hold_alone(lab: Lab) -> None:
    hold = plugged(lab)
    hold.hold(1)
    network = Network()
    assert clean(network) == ["rl0i: in use, left alone"]
    network.close()
    lab.emit(*numbered(0))
    hold.seal(1)


# --- choice -------------------------------------------------------------------------------------


@namespaced()
def test_auto_takes_the_plug_here(lab: Lab) -> None:
    choice = choose("auto", LIMIT_BYTES)
    assert choice.backend is Backend.PLUG
    with IPRoute() as netlink:
        assert netlink.link_lookup(ifname="probe") == []
    made = make_hold(choice.backend, lab.guest, "br0", LIMIT_BYTES, depth=2)
    assert isinstance(made, PlugHold)
    made.close()
