"""The tap hold with real interfaces and real frames.

Each test runs in a forked child with two network namespaces of its own, nameless, so that the kernel removes
them with the child however it ends:

    the test, as the guest --descriptor--> rl0g ... hold ... rl0o --br0-- host0 ===veth=== lan0   (LAN)

That nothing came early is proved by a marker frame that the host sends over the same bridge afterwards: what
the LAN sees before it is all that had left.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import inspect
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
from pyroute2 import IPRoute

from netbuf import (
    BridgeError,
    GuestTap,
    HoldState,
    InterfaceVanishedError,
    NameClashError,
    Pressure,
    PrivilegeError,
    ReleaseError,
    SealError,
    TapHold,
    rarp_frame,
)
from netbuf.redirect import RING_FRAMES
from netbuf.tap import VNET_HEADER_BYTES

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]

# A hang ends here; the lab emulates its processors, and ten thousand epochs take some 15 s there when idle.
TIMEOUT_S = 180 if "REMUSLIKE_LAB" in os.environ else 20
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
PACKET_AUXDATA = 8
SOL_PACKET = 263
TP_STATUS_VLAN_VALID = 0x10

GUEST_MAC = bytes.fromhex("525400000001")
LAN_MAC = bytes.fromhex("525400000002")
HOST_MAC = bytes.fromhex("525400000003")
BROADCAST = b"\xff" * 6
GUEST_IP = socket.inet_aton("10.66.0.9")
LAN_IP = socket.inet_aton("10.66.0.2")
NO_OFFLOAD = bytes(VNET_HEADER_BYTES)
LIMIT_BYTES = 64 << 20


# --- frames -------------------------------------------------------------------------------------


def ethernet(payload: bytes, ethertype: int = 0x88B5, *, to: bytes = LAN_MAC, by: bytes = GUEST_MAC) -> bytes:
    return (to + by + struct.pack(">H", ethertype) + payload).ljust(60, b"\0")


def numbered(first: int, count: int = 1) -> list[bytes]:
    return [ethernet(struct.pack(">I", number)) for number in range(first, first + count)]


def ones_sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(protocol: int, payload: bytes) -> bytes:
    header = (
        struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, protocol, 0) + GUEST_IP + LAN_IP
    )
    checksum = ~ones_sum(header) & 0xFFFF
    return header[:10] + struct.pack(">H", checksum) + header[12:] + payload


def udp(payload: bytes, port: int) -> bytes:
    return ethernet(ipv4(17, struct.pack(">HHHH", 5000, port, 8 + len(payload), 0) + payload), 0x0800)


def icmp_echo(payload: bytes) -> bytes:
    body = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + payload
    return ethernet(ipv4(1, body[:2] + struct.pack(">H", ~ones_sum(body) & 0xFFFF) + body[4:]), 0x0800)


def arp_request() -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + GUEST_IP + bytes(6) + LAN_IP
    return ethernet(body, 0x0806, to=BROADCAST)


def tcp_frame(
    port: int, payload: bytes = b"", *, sequence: int = 1000, flags: int = 2, gso_bytes: int = 0
) -> bytes:
    """A TCP segment as a virtio guest hands it over: vnet header, checksum (and segmentation) left to do."""
    length = 20 + len(payload)
    pseudo = ones_sum(GUEST_IP + LAN_IP + struct.pack(">HH", 6, length))
    header = struct.pack(">HHIIBBHHH", 5000, port, sequence, 0, 0x50, flags, 65535, pseudo, 0)
    frame = ethernet(ipv4(6, header + payload), 0x0800)
    needs_checksum, gso_tcp4 = 1, 1 if gso_bytes else 0
    return struct.pack("<BBHHHHH", needs_checksum, gso_tcp4, 54, gso_bytes, 34, 16, 0) + frame


# --- two namespaces in a child ------------------------------------------------------------------


def unshare_network() -> int:
    """Enter a new network namespace; a descriptor of it, for `setns`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Lab:
    """The host, its bridge, the LAN behind it, and the guest."""

    def __init__(self, *, mtu_bytes: int = 1500) -> None:
        self.lan = unshare_network()
        self.host = unshare_network()
        with IPRoute() as netlink:
            netlink.link("add", ifname="br0", kind="bridge")
            netlink.link(
                "add", ifname="host0", kind="veth", peer={"ifname": "lan0", "net_ns_fd": self.lan_path()}
            )
            for name, what in (
                ("br0", {"mtu": mtu_bytes, "address": HOST_MAC.hex(":")}),
                ("host0", {"mtu": mtu_bytes, "master": netlink.link_lookup(ifname="br0")[0]}),
            ):
                index = netlink.link_lookup(ifname=name)[0]
                netlink.link("set", index=index, **what)
                netlink.link("set", index=index, state="up")
        enter(self.lan)
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname="lan0")[0]
            netlink.link("set", index=index, mtu=mtu_bytes, address=LAN_MAC.hex(":"), state="up")
            netlink.addr("add", index=index, address="10.66.0.2", prefixlen=24)
            netlink.neigh("add", dst="10.66.0.9", lladdr=GUEST_MAC.hex(":"), ifindex=index, state="permanent")
        self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.packets.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.packets.bind(("lan0", ETH_P_ALL))
        self.packets.settimeout(5)
        enter(self.host)
        self.markers = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.markers.bind(("br0", 0))
        self.marked = 0
        self.guest = GuestTap.create("rl0")

    def lan_path(self) -> int:
        return self.lan

    def make_hold(self, *, limit_bytes: int = LIMIT_BYTES, depth: int = 2) -> TapHold:
        return TapHold(guest=self.guest, bridge="br0", limit_bytes=limit_bytes, depth=depth)

    def lan_socket(self, kind: socket.SocketKind, port: int) -> socket.socket:
        enter(self.lan)
        made = socket.socket(socket.AF_INET, kind)
        enter(self.host)
        made.bind(("10.66.0.2", port))
        made.settimeout(5)
        return made

    def emit(self, *frames: bytes) -> None:
        for frame in frames:
            os.write(self.guest.fileno(), NO_OFFLOAD + frame)

    def guest_receives(self, timeout_ms: int = 5000) -> bytes | None:
        """The next frame addressed to the guest itself; None if there is none in time."""
        poll = select.poll()
        poll.register(self.guest.fileno(), select.POLLIN)
        while poll.poll(timeout_ms):
            frame = os.read(self.guest.fileno(), 1 << 17)[VNET_HEADER_BYTES:]
            if frame[:6] == GUEST_MAC:
                return frame
        return None

    def on_lan(self) -> list[bytes]:
        """All frames of the guest that had reached the LAN when this was called."""
        self.marked += 1
        marker = ethernet(struct.pack(">I", self.marked), 0x88B6, to=BROADCAST, by=HOST_MAC)
        self.markers.send(marker)
        frames: list[bytes] = []
        while (frame := self._lan_frame()) != marker:
            if frame[6:12] == GUEST_MAC:
                frames.append(frame)
        return frames

    def _lan_frame(self) -> bytes:
        """One frame with its VLAN tag put back, which the kernel hands over beside it (packet(7))."""
        frame, ancillary, _, _ = self.packets.recvmsg(1 << 17, 256)
        for _, _, data in ancillary:
            status, _, _, _, _, tag, protocol = struct.unpack("=IIIHHHH", data[:20])
            if status & TP_STATUS_VLAN_VALID:
                return frame[:12] + struct.pack(">HH", protocol, tag) + frame[12:]
        return frame


def in_child(scenario: Callable[[], None]) -> None:
    """Run `scenario` in a forked child; a failure there fails the test with the child's traceback."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            signal.alarm(TIMEOUT_S)  # its default action ends the child, whatever it hangs in
            scenario()
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-30_000:])
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        failure = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if failure or status:
        pytest.fail(failure or f"the child ended with wait status {status}", pytrace=False)


def namespaced(**lab_settings: Any) -> Callable[[Callable[[Lab], Any]], Callable[[], None]]:
    """A test of a `Lab`, plain or async, run in a child."""

    def decorate(test: Callable[[Lab], Any]) -> Callable[[], None]:
        @functools.wraps(test)
        def run() -> None:
            def scenario() -> None:
                lab = Lab(**lab_settings)
                if inspect.iscoroutinefunction(test):
                    trio.run(test, lab)
                else:
                    test(lab)

            in_child(scenario)

        del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look through it for fixtures
        return run

    return decorate


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


async def with_run(hold: TapHold, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await scenario()
        hold.close()


# --- nothing early ------------------------------------------------------------------------------


@namespaced()
async def test_whatever_the_protocol_nothing_leaves_before_its_release(lab: Lab) -> None:
    hold = lab.make_hold()
    frames = [
        arp_request(),
        udp(b"a datagram of some length", 7000),
        icmp_echo(b"abcdefghijklmnopqrst"),
        rarp_frame(GUEST_MAC.hex(":")),
    ]
    hold.hold(1)

    async def scenario() -> None:
        lab.emit(*frames)
        os.write(lab.guest.fileno(), tcp_frame(7001))
        await until(lambda: hold.statistics().held_items == 5)
        assert lab.on_lan() == []
        hold.seal(1)
        assert lab.on_lan() == []
        await hold.release(1)
        seen = lab.on_lan()
        assert seen[:4] == frames
        assert seen[4][:50] == tcp_frame(7001)[VNET_HEADER_BYTES:][:50]

    await with_run(hold, scenario)


@namespaced()
async def test_frames_sent_before_a_seal_and_not_yet_read_are_in_it(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, 500))  # nobody runs: they are in the ring when seal comes
    hold.seal(1)
    lab.emit(*numbered(500, 500))
    hold.seal(2)
    assert hold.statistics().held_items == 1000
    assert lab.on_lan() == []
    await hold.release(1)
    assert lab.on_lan() == numbered(0, 500)
    await hold.release(2)
    assert lab.on_lan() == numbered(500, 500)


@namespaced()
def test_frames_sent_on_another_processor_before_a_seal_are_in_it(lab: Lab) -> None:
    here, *others = sorted(os.sched_getaffinity(0))
    hold = lab.make_hold()
    hold.hold(1)
    os.sched_setaffinity(0, {here})
    turns, sent = os.pipe(), os.pipe()
    sender = os.fork()
    if not sender:
        os.sched_setaffinity(0, others or {here})
        for number in range(300):
            os.read(turns[0], 1)
            lab.emit(*numbered(number))
            os.write(sent[1], b"s")
        os._exit(0)
    for epoch in range(1, 301):
        os.write(turns[1], b"t")
        os.read(sent[0], 1)
        hold.seal(epoch)
        assert hold.statistics().held_items == 1, f"epoch {epoch}"
        trio.run(hold.release, epoch)
    os.waitpid(sender, 0)
    assert lab.on_lan() == numbered(0, 300)


@namespaced()
async def test_order_is_kept_through_many_epochs(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)

    async def scenario() -> None:
        seen: list[bytes] = []
        for epoch in range(1, 101):
            lab.emit(*numbered(epoch * 10, epoch % 11))
            hold.seal(epoch)
            if epoch > 1:
                await hold.release(epoch - 1)
            seen += lab.on_lan()
        await hold.release(100)
        seen += lab.on_lan()
        assert seen == [frame for epoch in range(1, 101) for frame in numbered(epoch * 10, epoch % 11)]
        assert hold.statistics().dropped_items == 0

    await with_run(hold, scenario)


@namespaced()
async def test_calls_out_of_order_let_nothing_out(lab: Lab) -> None:
    hold = lab.make_hold(depth=1)
    hold.hold(1)
    lab.emit(*numbered(0))
    hold.seal(1)
    lab.emit(*numbered(1))
    with pytest.raises(SealError):
        hold.seal(2)
    for epoch in (2, 0):
        with pytest.raises(ReleaseError):
            await hold.release(epoch)
    assert lab.on_lan() == []
    await hold.release(1)
    hold.seal(2)
    await hold.release(2)
    assert lab.on_lan() == numbered(0, 2)


@namespaced()
async def test_discarded_frames_never_leave(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)

    async def scenario() -> None:
        lab.emit(*numbered(0, 3))
        hold.seal(1)
        hold.discard()
        lab.emit(*numbered(3, 3))
        await until(lambda: hold.statistics().dropped_items == 6)
        assert lab.on_lan() == []

    await with_run(hold, scenario)


# --- fail closed --------------------------------------------------------------------------------


@namespaced()
def test_a_killed_hold_lets_nothing_out(lab: Lab) -> None:
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            hold = lab.make_hold()
            trio.run(hold.open)
            hold.hold(1)
            os.write(writer, b"h")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 1) == b"h"
        lab.emit(*numbered(0, 5))
        assert lab.on_lan() == []
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    lab.emit(*numbered(5, 5))
    assert lab.on_lan() == []


@namespaced()
async def test_a_closed_hold_leaves_the_guest_without_a_way_out(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    lab.emit(*numbered(0, 2))
    hold.close()
    lab.emit(*numbered(2, 2))
    assert lab.on_lan() == []
    assert hold.statistics().state is HoldState.DISCARDED


@namespaced()
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


@namespaced()
def test_a_host_that_is_a_router_sends_nothing_of_its_own_into_the_hold(lab: Lab) -> None:
    for scope in ("all", "default"):  # of this namespace
        Path(f"/proc/sys/net/ipv6/conf/{scope}/forwarding").write_text("1")
    lab.make_hold()
    joined = {line.split()[1] for line in Path("/proc/thread-self/net/igmp6").read_text().splitlines()}
    assert "br0" in joined
    assert "rl0h" not in joined


@namespaced()
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


# --- both ways ----------------------------------------------------------------------------------


@namespaced()
async def test_closed_lets_nothing_in_and_open_passes_both_ways(lab: Lab) -> None:
    hold = lab.make_hold()
    endpoint = lab.lan_socket(socket.SOCK_DGRAM, 7000)

    async def scenario() -> None:
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

    await with_run(hold, scenario)


@namespaced()
async def test_inbound_passes_while_holding(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    endpoint = lab.lan_socket(socket.SOCK_DGRAM, 7000)
    endpoint.sendto(b"in", ("10.66.0.9", 5000))
    received = lab.guest_receives()
    assert received and received[42:44] == b"in"


@namespaced()
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


@namespaced()
async def test_a_paused_guest_loses_no_inbound_frame(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    endpoint = lab.lan_socket(socket.SOCK_DGRAM, 7000)
    for number in range(3000):
        endpoint.sendto(struct.pack(">I", number), ("10.66.0.9", 5000))
    for number in range(3000):
        received = lab.guest_receives()
        assert received and received[42:46] == struct.pack(">I", number)


@namespaced()
async def test_an_announcement_is_seen_at_once(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    frame = rarp_frame(GUEST_MAC.hex(":"))
    hold.announce([frame])
    assert lab.on_lan() == [frame]


# --- frames of every kind -----------------------------------------------------------------------


@namespaced()
async def test_a_gso_frame_stays_whole_in_the_hold_and_arrives(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    payload = os.urandom(1) * 32768
    os.write(lab.guest.fileno(), tcp_frame(7001, payload, flags=0x18, gso_bytes=1448))
    hold.seal(1)
    assert hold.statistics().held_items == 1
    assert hold.statistics().held_bytes == VNET_HEADER_BYTES + 54 + len(payload)
    await hold.release(1)
    assert b"".join(frame[54:] for frame in lab.on_lan()) == payload


@namespaced(mtu_bytes=9000)
async def test_jumbo_frames_pass(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    frame = ethernet(bytes(range(256)) * 35)
    lab.emit(frame)
    hold.seal(1)
    await hold.release(1)
    assert lab.on_lan() == [frame]


@namespaced()
async def test_vlan_tags_are_kept(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    frame = ethernet(struct.pack(">HH", 42, 0x88B5) + b"tagged", 0x8100)
    lab.emit(frame)
    hold.seal(1)
    await hold.release(1)
    assert lab.on_lan() == [frame]


@namespaced()
async def test_a_frame_too_short_for_a_payload_is_held_too(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(numbered(0)[0][:14])
    hold.seal(1)
    assert hold.statistics().held_items == 1


@namespaced()
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


# --- limits -------------------------------------------------------------------------------------


@namespaced()
async def test_beyond_the_limit_frames_wait_and_what_the_ring_drops_is_counted(lab: Lab) -> None:
    frame_bytes = VNET_HEADER_BYTES + 60
    hold = lab.make_hold(limit_bytes=10 * frame_bytes)
    levels: list[Pressure] = []
    hold.on_pressure(levels.append)
    hold.hold(1)

    async def scenario() -> None:
        lab.emit(*numbered(0, 10))
        await until(lambda: hold.pressure is Pressure.FULL)
        assert levels[-1] is Pressure.FULL
        lab.emit(*numbered(10, RING_FRAMES + 123))
        dropped = hold.statistics().dropped_items
        assert 123 <= dropped < 200  # the ring gives the slots of frames that were read back in batches
        assert hold.statistics().held_items == 10
        hold.seal(1)
        kept = 10 + RING_FRAMES + 123 - dropped
        assert hold.statistics().held_items == kept
        assert lab.on_lan() == []
        await hold.release(1)
        assert lab.on_lan() == numbered(0, kept)
        assert hold.pressure is Pressure.NONE
        assert hold.statistics().dropped_items == dropped

    await with_run(hold, scenario)
    assert hold.statistics().dropped_items >= 123


# --- what can be wrong --------------------------------------------------------------------------


@namespaced()
def test_a_name_clash_is_named(lab: Lab) -> None:
    with pytest.raises(NameClashError, match="'rl0g' exists already"):
        GuestTap.create("rl0")
    with IPRoute() as netlink:
        netlink.link("add", ifname="rl0o", kind="bridge")
    with pytest.raises(NameClashError, match="'rl0o' exists already"):
        lab.make_hold()


@namespaced()
def test_names_of_our_own_are_counted_up(lab: Lab) -> None:
    taps = [GuestTap.create() for _ in range(2)]
    assert [tap.name for tap in taps] == ["rl1g", "rl2g"]
    assert all(not os.get_inheritable(tap.fileno()) for tap in taps)
    assert all(fcntl.fcntl(tap.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK for tap in taps)


@namespaced()
def test_a_guest_tap_serves_one_hold(lab: Lab) -> None:
    lab.make_hold().close()
    with pytest.raises(NameClashError, match="create a new guest tap"):
        lab.make_hold()


@namespaced()
def test_a_wrong_bridge_is_named_and_leaves_nothing(lab: Lab) -> None:
    for bridge in ("br7", "host0"):
        with pytest.raises(BridgeError, match=f"bridge='{bridge}'"):
            TapHold(guest=lab.guest, bridge=bridge, limit_bytes=1)
    lab.make_hold().close()
    with IPRoute() as netlink:
        names = {link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
    assert names == {"lo", "br0", "host0", "rl0g"}


@namespaced()
def test_a_process_without_the_privilege_is_told_so(lab: Lab) -> None:
    os.setresuid(65534, 65534, 65534)
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        GuestTap.create("rl5")
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        lab.make_hold()


@namespaced()
async def test_a_deleted_outlet_keeps_what_is_held_and_is_named(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0))
    hold.seal(1)
    delete("rl0o")
    with pytest.raises(InterfaceVanishedError, match="outlet of rl0g"):
        await hold.release(1)
    assert hold.statistics().sealed_epochs == (1,)
    hold.close()


@namespaced()
async def test_a_deleted_hold_ends_run_by_name_and_seals_nothing(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    caught: list[InterfaceVanishedError] = []

    async def run() -> None:
        with pytest.raises(InterfaceVanishedError, match="hold of rl0g") as failure:
            await hold.run()
        caught.append(failure.value)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            delete("rl0h")
    assert caught
    with pytest.raises(InterfaceVanishedError):
        hold.seal(1)
    lab.emit(*numbered(0))
    assert lab.on_lan() == []
    assert hold.statistics().dropped_items == 1
    hold.close()


def delete(interface: str) -> None:
    with IPRoute() as netlink:
        netlink.link("del", index=netlink.link_lookup(ifname=interface)[0])
