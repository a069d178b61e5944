"""The network of a benchmark: one host's bridge and, behind taps, guests that the kernel's own TCP plays.

    [private namespace: br0, the holds, the TCP peer]      [a namespace for each guest]
    br0 -- guest tap or what holds it -- relay process --------- eth0, TCP endpoint

The namespaces have no names: they go with their processes, however these end, and so do the taps.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import trio
from pyroute2 import IPRoute

from netbuf import GuestTap
from netbuf.redirect import Network
from netbuf.tap import FRAME_BYTES_MAX, Tap
from remuslike.bench.errors import BenchEnvironmentError, MeasurementError
from remuslike.bench.processes import start_process

BRIDGE = "br0"
HOST_ADDRESS = "10.111.0.1"
HOST_MAC = "52:54:00:6f:01:01"  # given, or else the bridge would take one of its ports'
PREFIX_LENGTH = 24
MTU_BYTES = 1500

_CLONE_NEWNET = 0x4000_0000  # linux/sched.h
_START_LIMIT_S = 60.0  # for a Python process to start, on an emulated processor
_POLL_S = 0.01
_GUEST_MAC = "52:54:00:6f:00:{:02x}"


def enter_private_network() -> None:
    """Put this process, for the rest of its life, into an empty network namespace of its own.

    Prerequisite: its only thread calls. Raises BenchEnvironmentError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise BenchEnvironmentError(
            f"no network namespace to measure in: {reason}; run as root, outside of confined containers"
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """An interface's frames since it was made: what it has received from its outside."""

    received_frames: int
    received_bytes: int


class Guest(Protocol):
    """A guest on the LAN; `tap` is where a bare port or a hold begins.

    `process` moves its frames, and reports call it `part`. Of one that `shares_kernel` the programs are
    processes of this machine; of another they are within `process`.
    """

    @property
    def tap(self) -> GuestTap: ...
    @property
    def process(self) -> int: ...
    @property
    def part(self) -> str: ...
    @property
    def shares_kernel(self) -> bool: ...
    @property
    def address(self) -> str: ...
    @property
    def mac(self) -> str: ...

    async def ready(self) -> None:
        """Return when it can run commands; its tap must be up. Raises MeasurementError."""
        ...

    async def run(self, *arguments: str) -> str:
        """What a command prints inside. Raises MeasurementError."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """What a guest to come finds on the LAN: a tap, down and in no bridge, and its addresses."""

    tap: GuestTap
    address: str
    mac: str


@dataclass(frozen=True, slots=True)
class SyntheticGuest:
    """A guest whose kernel is this machine's."""

    tap: GuestTap
    process: int
    address: str
    mac: str
    part: str = "relay"
    shares_kernel: bool = True

    async def ready(self) -> None:
        """It is from the beginning."""

    async def run(self, *arguments: str) -> str:
        """What a command prints, whatever its exit status."""
        finished = await trio.run_process(
            self.inside(*arguments), capture_stdout=True, check=False, stdin=subprocess.DEVNULL
        )
        return finished.stdout.decode(errors="replace")

    def inside(self, *arguments: str) -> list[str]:
        """`arguments` as a command line that runs in the guest's namespace."""
        return ["nsenter", f"--net=/proc/{self.process}/ns/net", "--", *arguments]


class Lan:
    """The bridge and its guests; leaving the context ends them. Prerequisite: `enter_private_network`."""

    def __init__(self) -> None:
        """Raises BenchEnvironmentError, `netbuf.NetbufError`."""
        self._stack = ExitStack()
        self._guests = 0
        try:
            self.network = self._stack.enter_context(closing(Network()))
            self._netlink = self._stack.enter_context(IPRoute())
            # Nobody but us sends here: no spanning tree, no multicast queries among the frames counted.
            options = {"br_stp_state": 0, "br_mcast_snooping": 0}
            self._netlink.link("add", ifname=BRIDGE, kind="bridge", address=HOST_MAC, **options)
            self.network.quieten(BRIDGE, mtu_bytes=MTU_BYTES)
            index = self.network.index(BRIDGE)
            self._netlink.addr("add", index=index, address=HOST_ADDRESS, prefixlen=PREFIX_LENGTH)
            self.network.up("lo")
            self.network.up(BRIDGE)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Lan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def new_place(self) -> Place:
        """For one more guest. Raises `netbuf.NetbufError`."""
        self._guests += 1
        tap = GuestTap.create(f"rl{self._guests}")
        self._stack.callback(tap.close)
        return Place(tap, f"10.111.0.{1 + self._guests}", _GUEST_MAC.format(self._guests))

    def add_synthetic_guest(self) -> SyntheticGuest:
        """Another guest, up inside; its tap is down and in no bridge.

        Raises MeasurementError, `netbuf.NetbufError`.
        """
        place = self.new_place()
        nic = Tap(f"eth{self._guests}", vnet_header=True)
        try:
            relay = self._start_relay(place.tap.fileno(), nic.fileno())
            guest = SyntheticGuest(place.tap, relay, place.address, place.mac)
            self._netlink.link("set", index=self.network.index(nic.name), net_ns_pid=relay)
            for line in (
                f"ip link set {nic.name} addrgenmode none address {place.mac} mtu {MTU_BYTES} up",
                f"ip address add {place.address}/{PREFIX_LENGTH} dev {nic.name}",
            ):
                run_briefly(guest.inside(*line.split()))
        finally:
            nic.close()  # the relay has the descriptor
        return guest

    def join_bare(self, guest: Guest) -> None:
        """Make the guest's tap a port of the bridge with nothing in between: the baseline."""
        self.network.quieten(guest.tap.name, mtu_bytes=MTU_BYTES)
        self.network.enslave(guest.tap.name, self.network.bridge(BRIDGE))
        self.network.up(guest.tap.name)

    def start(self, command: list[str], *, descriptors: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        """A process that lives as long as this LAN, with a pipe as its standard input."""
        return start_process(self._stack, command, descriptors=descriptors)

    def _start_relay(self, tap: int, inside: int) -> int:
        module = [sys.executable, "-m", "remuslike.bench.relay", str(tap), str(inside), str(FRAME_BYTES_MAX)]
        process = self.start(["unshare", "--net", "--", *module], descriptors=(tap, inside))
        ours = Path("/proc/self/ns/net").readlink()
        wait_until(
            lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != ours, "the relay enters its namespace"
        )
        return process.pid


def counters(interface: str) -> Counters:
    """Of an interface in this process's namespace. Raises MeasurementError."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            size, frames, *_ = (int(number) for number in numbers.split())
            return Counters(frames, size)
    raise MeasurementError(f"interface {interface!r} is gone; find out who deletes it")


def run_briefly(command: list[str]) -> None:
    """Run a command that sets something up. Raises MeasurementError with what it said."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_START_LIMIT_S)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"status {error.returncode}"
        raise MeasurementError(f"{' '.join(command)} failed: {said}") from error
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{' '.join(command)} isn't done after {_START_LIMIT_S:g} s") from error


def wait_until(reached: Callable[[], bool], what: str) -> None:
    """Look until `reached()`. Raises MeasurementError, which says that `what` never did, after a minute."""
    limit = time.monotonic() + _START_LIMIT_S
    while not reached():
        if time.monotonic() > limit:
            raise MeasurementError(f"{what}: not within {_START_LIMIT_S:g} s; is this machine overloaded?")
        time.sleep(_POLL_S)
