"""A network namespace of a test's own, in a forked child: the kernel removes it with the child, however that
ends.

    the test, as the guest --descriptor--> rl0g ... a TapHold ... rl0o --br0-- host0 ===veth=== lan0
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

import pytest
from pyroute2 import IPRoute

from netbuf import GuestTap
from netbuf.tap import VNET_HEADER_BYTES

GUEST_MAC = bytes.fromhex("525400000001")

RECEIVE_LIMIT_S = 5.0
PROBE_S, PROBES_MAX = 0.05, 100

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_ETH_P_ALL = 3  # linux/if_ether.h
_SO_RCVBUFFORCE = 33  # Linux asm-generic/socket.h
_MARKER_TYPE = b"\x88\xb6"  # IEEE 802 local experimental ethertype 2
_MARKER_SOURCE = bytes.fromhex("525400000003")


def run_in_namespace(scenario: Callable[[], None], timeout_s: int = 60) -> None:
    """Run `scenario` in a child; what fails there fails the test, with the child's traceback."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            signal.alarm(timeout_s)  # its default action ends the child, whatever it hangs in
            _unshare_network()
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


def _unshare_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


class BridgedLan:
    """The bridge, what is on the LAN behind it, and the guest's TAP, in the current namespace."""

    def __init__(self) -> None:
        with IPRoute() as netlink:
            netlink.link("add", ifname="br0", kind="bridge")
            netlink.link("add", ifname="host0", kind="veth", peer={"ifname": "lan0"})
            bridge = netlink.link_lookup(ifname="br0")[0]
            netlink.link("set", index=netlink.link_lookup(ifname="host0")[0], master=bridge)
            for name in ("br0", "host0", "lan0"):
                netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")
        self._lan = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._lan.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._lan.bind(("lan0", _ETH_P_ALL))
        self._host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._host.bind(("br0", 0))
        self._marked = 0
        self._await_bridge()
        self.guest = GuestTap.create("rl0")

    def _await_bridge(self) -> None:
        """That a link came up the bridge hears from a task of the kernel; until then it drops frames."""
        self._lan.settimeout(PROBE_S)
        for _ in range(PROBES_MAX):
            with suppress(TimeoutError):
                self.received()
                break
        self._lan.settimeout(RECEIVE_LIMIT_S)

    def send(self, frame: bytes) -> None:
        """The guest sends a frame, vnet header included."""
        os.write(self.guest.fileno(), frame)

    def received(self) -> list[bytes]:
        """The guest's frames that have reached the LAN since the last call, each behind an empty vnet header.

        A marker sent over the same bridge comes after them: what is seen before it is all there was.
        """
        self._marked += 1
        marker = (
            b"\xff" * 6 + _MARKER_SOURCE + _MARKER_TYPE + struct.pack(">I", self._marked).ljust(46, b"\0")
        )
        self._host.send(marker)
        frames: list[bytes] = []
        while (frame := self._lan.recv(1 << 17)) != marker:
            if frame[6:12] == GUEST_MAC:
                frames.append(bytes(VNET_HEADER_BYTES) + frame)
        return frames

    def close_ends(self) -> None:
        """Remove all of it, so that another can be made."""
        self.guest.close()
        self._lan.close()
        self._host.close()
        with IPRoute() as netlink:
            for name in ("host0", "br0"):
                netlink.link("del", index=netlink.link_lookup(ifname=name)[0])
