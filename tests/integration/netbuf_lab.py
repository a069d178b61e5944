"""A guest's LAN for one test.

Each test runs in a forked child with two network namespaces of its own, nameless, so that the kernel removes
them with the child however it ends:

    the test, as the guest --descriptor--> rl0g ... hold ... --br0-- host0 ===veth=== lan0   (LAN)

That nothing came early is proved by a marker frame that the host sends over the same bridge afterwards: what
the LAN sees before it is all that had left.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.namespace import run_in_namespace
from integration.netbuf_frames import BROADCAST, GUEST_MAC, HOST_MAC, LAN_MAC, NO_OFFLOAD, ethernet
from pyroute2 import IPRoute

from netbuf import Backend, GuestTap, Hold, KernelModuleError, PrivilegeError, make_hold
from netbuf.gate import KernelGate
from netbuf.redirect import Hook, Network
from netbuf.tap import VNET_HEADER_BYTES, Guest

REQUIREMENTS = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]
"""Marks of a module of such tests."""

HOLDS = [pytest.param(Backend.TAP, id="tap"), pytest.param(Backend.PLUG, id="plug", marks=pytest.mark.lab)]
"""Each on a kernel that has what it takes."""

# A hang ends here; the lab emulates its processors, and ten thousand epochs take some 15 s there when idle.
TIMEOUT_S = 180 if "REMUSLIKE_LAB" in os.environ else 30
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
PACKET_AUXDATA = 8
SOL_PACKET = 263
TP_STATUS_VLAN_VALID = 0x10

LIMIT_BYTES = 64 << 20

LACKS_GATES = 77


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


def stay_on_one_processor() -> None:
    """With a plug: a marker would not come behind frames of another processor's softirqs."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Lab:
    """The host, its bridge, the LAN behind it, and the guest, whose frames `backend` holds."""

    def __init__(self, backend: Backend = Backend.TAP, *, mtu_bytes: int = 1500) -> None:
        self.backend = backend
        self.lan = unshare_network()
        self.host = unshare_network()
        with IPRoute() as netlink:
            netlink.link("add", ifname="br0", kind="bridge")
            netlink.link("add", ifname="host0", kind="veth", peer={"ifname": "lan0", "net_ns_fd": self.lan})
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

    def make_hold(
        self,
        guest: Guest | None = None,
        *,
        backend: Backend | None = None,
        bridge: str = "br0",
        limit_bytes: int = LIMIT_BYTES,
        depth: int = 2,
        keep_frames: bool = False,
    ) -> Hold:
        """Of the guest's own tap and the lab's backend, unless others are given."""
        backend = backend or self.backend
        if backend is Backend.PLUG:
            stay_on_one_processor()
        return make_hold(backend, guest or self.guest, bridge, limit_bytes, depth, keep_frames=keep_frames)

    def interfaces(self) -> set[str]:
        """The names of those that the host has."""
        with IPRoute() as netlink:
            return {link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}

    def lan_socket(self, kind: socket.SocketKind, port: int) -> socket.socket:
        enter(self.lan)
        made = socket.socket(socket.AF_INET, kind)
        enter(self.host)
        made.bind(("10.66.0.2", port))
        made.settimeout(5)
        return made

    def emit(self, *frames: bytes, by: GuestTap | None = None) -> None:
        guest = by or self.guest
        for frame in frames:
            os.write(guest.fileno(), NO_OFFLOAD + frame)

    def try_to_emit(self, *frames: bytes) -> None:
        """What a guest does; a tap that is down refuses."""
        with suppress(OSError):
            self.emit(*frames)

    def guest_receives(self, timeout_ms: int = 5000) -> bytes | None:
        """The next frame addressed to the guest itself; None if there is none in time."""
        poll = select.poll()
        poll.register(self.guest.fileno(), select.POLLIN)
        while poll.poll(timeout_ms):
            frame = os.read(self.guest.fileno(), 1 << 17)[VNET_HEADER_BYTES:]
            if frame[:6] == GUEST_MAC:
                return frame
        return None

    def guest_hears(self) -> bytes:
        """The next frame of whatever destination."""
        poll = select.poll()
        poll.register(self.guest.fileno(), select.POLLIN)
        assert poll.poll(5000), "the guest hears nothing"
        return os.read(self.guest.fileno(), 1 << 17)[VNET_HEADER_BYTES:]

    def on_lan(self) -> list[bytes]:
        """The guest's frames that have reached the LAN since the last call."""
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


def run_with_lab(test: Callable[..., Any], *arguments: Any, **lab_settings: Any) -> None:
    """Call `test(lab, *arguments)`, plain or async, in a child; what fails there fails here."""

    def scenario() -> None:
        lab = Lab(**lab_settings)
        if inspect.iscoroutinefunction(test):
            trio.run(test, lab, *arguments)
        else:
            test(lab, *arguments)

    run_in_namespace(scenario, TIMEOUT_S)


def namespaced(**lab_settings: Any) -> Callable[[Callable[[Lab], Any]], Callable[[], None]]:
    """A test of a `Lab`, plain or async, run in a child."""

    def decorate(test: Callable[[Lab], Any]) -> Callable[[], None]:
        @functools.wraps(test)
        def run() -> None:
            run_with_lab(test, **lab_settings)

        del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look through it for fixtures
        return run

    return decorate


def by_each_hold(**lab_settings: Any) -> Callable[[Callable[[Lab], Any]], Callable[[Backend], None]]:
    """As `namespaced`, once for each backend: it is `lab.backend`."""

    def decorate(test: Callable[[Lab], Any]) -> Callable[[Backend], None]:
        @functools.wraps(test)
        def run(backend: Backend) -> None:
            run_with_lab(test, backend=backend, **lab_settings)

        del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look through it for fixtures
        return pytest.mark.parametrize("backend", HOLDS)(run)

    return decorate


@functools.cache
def kernel_has_gates() -> bool:
    """Whether a guest tap can be given one. Asked in a child, for it needs a namespace.

    A program that the kernel refuses is a defect, and no lack.
    """

    def ask() -> None:
        os.close(unshare_network())
        network = Network()
        guest = GuestTap.create("rl0")
        network.redirect(guest.name, Hook.INGRESS, "lo")
        try:
            network.attach_gate(guest.name, KernelGate().program_fileno(), "lo")
        except (KernelModuleError, PrivilegeError):
            os._exit(LACKS_GATES)

    status = os.waitstatus_to_exitcode(os.waitpid(fork(ask), 0)[1])
    assert status in (0, LACKS_GATES), "the kernel refuses the gate's program"
    return not status


def fork(act: Callable[[], None]) -> int:
    """A child that does `act` and ends with status 0, or 1 if that failed; its process id."""
    child = os.fork()
    if not child:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return child


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.lowlevel.checkpoint()


def delete(*interfaces: str) -> None:
    with IPRoute() as netlink:
        for interface in interfaces:
            netlink.link("del", index=netlink.link_lookup(ifname=interface)[0])
