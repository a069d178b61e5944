"""What goes through a guest's tap while it is measured, and how much of the processors that takes."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from netbuf.tap import VNET_HEADER_BYTES
from remuslike.bench.errors import MeasurementError
from remuslike.bench.lan import BRIDGE, HOST_ADDRESS, HOST_MAC, Guest, counters

TCP_PORT = 5201
UDP_PORT = 9  # discard (RFC 863)
UDP_PAYLOAD_BYTES = 18  # fills the shortest Ethernet frame: 64 bytes with its frame check sequence

# On top of what was asked for: two processes that start, connect, and tell each other their results.
_PATIENCE_S = 60.0
_FLOOD_SETTLES_S = 0.3  # rings full, caches warm
_FLOOD_OUTLIVES_S = 10.0  # its measurement, if we are killed; else it is ended
_POLL_S = 0.01
_GIGA = 1e9


@dataclass(slots=True)
class Usage:
    """Processor time of some processes, while it is measured and as shares of one processor after it."""

    processes: dict[str, int]
    cores: dict[str, float] = field(default_factory=dict)
    lasted_s: float = 0.0


@contextmanager
def usage(**processes: int) -> Iterator[Usage]:
    """How much of a processor each of `processes` (name and id; 0 is this one) takes within the block."""
    measured = Usage(processes)
    began, before = time.monotonic(), {name: cpu_s(number) for name, number in processes.items()}
    yield measured
    measured.lasted_s = time.monotonic() - began
    for name, number in processes.items():
        measured.cores[name] = round((cpu_s(number) - before[name]) / measured.lasted_s, 3)


def cpu_s(process: int) -> float:
    """Processor time of a process until now; 0 is this one. Raises OSError when it is gone."""
    # MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED), clock_getcpuclockid(3)
    seconds: float = time.clock_gettime((~process << 3) | 2)
    return seconds


# --- TCP ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of one TCP connection, as its receiver counted; `cores` of the two ends and of what is between them."""

    gbit_per_s: float
    cores: dict[str, float]


async def measure_tcp(guest: Guest, seconds: int, *, to_guest: bool, settle_s: int = 0) -> Throughput:
    """One connection at full speed, from the guest or `to_guest`; its first `settle_s`, in which it starts
    slowly, don't count. Raises MeasurementError."""
    to_host = ["--port", str(TCP_PORT), "--interval", "0"]
    # A server for each connection: one for all may still be ending the last when the next comes.
    server = ["iperf3", "--server", "--one-off", "--bind", HOST_ADDRESS, *to_host]
    server += ["--idle-timeout", str(round(_PATIENCE_S))]
    client = ["iperf3", "--client", HOST_ADDRESS, *to_host, "--time", str(seconds), "--json"]
    client += [*(["--reverse"] if to_guest else []), *(["--omit", str(settle_s)] if settle_s else [])]
    with trio.move_on_after(settle_s + seconds + _PATIENCE_S) as patience:
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, check=False, stdin=subprocess.DEVNULL)
            nursery.start_soon(partial(start, server, stdout=subprocess.DEVNULL))
            await _until(_listening)
            with usage(hold=0, **{guest.part: guest.process}) as used:
                found = read_iperf3(await guest.run(*client))
    if patience.cancelled_caught:
        limit_s = settle_s + seconds + _PATIENCE_S
        raise MeasurementError(f"iperf3 isn't done after {limit_s:g} s: does anything get through?")
    inside, outside = ("receiver", "sender") if to_guest else ("sender", "receiver")
    ends = {outside: found.cores["server"]}
    if guest.shares_kernel:
        ends[inside] = found.cores["client"]
    return Throughput(found.gbit_per_s, used.cores | ends)


def _listening() -> bool:
    # proc(5): local_address is the address's bytes as a number of this machine, and the port, in hexadecimal.
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{TCP_PORT:04X}") and row[3] == "0A" for row in rows)


def read_iperf3(output: str) -> Throughput:
    """From the JSON of an iperf3 client; `cores` are `client` and `server`. Raises MeasurementError."""
    try:
        document = json.loads(output)
        if "error" in document:
            raise MeasurementError(f"iperf3 failed: {document['error']}")
        end = document["end"]
        percent = end["cpu_utilization_percent"]
        return Throughput(
            end["sum_received"]["bits_per_second"] / _GIGA,
            {
                "client": round(percent["host_total"] / 100, 3),
                "server": round(percent["remote_total"] / 100, 3),
            },
        )
    except (ValueError, KeyError, TypeError) as error:
        raise MeasurementError(
            f"iperf3's report can't be understood ({error!r}): {output[-200:]!r}"
        ) from error


# --- UDP ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FrameRate:
    """Frames a second that came out at the bridge, and that the guest sent: the rest was dropped."""

    arrived_per_s: float
    sent_per_s: float
    cores: dict[str, float]


def udp_frame(guest: Guest, to_mac: str = HOST_MAC) -> bytes:
    """A UDP datagram of UDP_PAYLOAD_BYTES to the host, in an Ethernet frame behind an empty vnet header."""
    udp = struct.pack(">HHHH", UDP_PORT, UDP_PORT, 8 + UDP_PAYLOAD_BYTES, 0) + bytes(UDP_PAYLOAD_BYTES)
    ip = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0),
        *(_address(guest.address), _address(HOST_ADDRESS)),
    )
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    ethernet = bytes.fromhex(f"{to_mac}{guest.mac}0800".replace(":", ""))
    return bytes(VNET_HEADER_BYTES) + ethernet + ip + udp


def checksum(header: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _address(dotted: str) -> bytes:
    return bytes(int(octet) for octet in dotted.split("."))


async def measure_udp(guest: Guest, seconds: float) -> FrameRate:
    """The guest's tap is written as fast as can be; frames count where the bridge gives them to the host.

    Nobody reads the host's socket, so that the measurement ends at the bridge. Raises MeasurementError.
    """
    descriptor, frame = guest.tap.fileno(), udp_frame(guest)
    limit = str(seconds + _FLOOD_OUTLIVES_S)
    command = [sys.executable, "-m", "remuslike.bench.flood", str(descriptor), limit, frame.hex()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind((HOST_ADDRESS, UDP_PORT))
        async with trio.open_nursery() as nursery:
            start = partial(trio.run_process, command, pass_fds=(descriptor,), check=False)
            flood: trio.Process = await nursery.start(start)
            await _wait_for_flood(guest)
            sent, arrived = counters(guest.tap.name), counters(BRIDGE)
            began = time.monotonic()
            with usage(hold=0, sender=flood.pid) as used:
                await trio.sleep(seconds)
                sent_after, arrived_after = counters(guest.tap.name), counters(BRIDGE)
                lasted_s = time.monotonic() - began
            if flood.returncode is not None:
                raise MeasurementError(f"the guest's flood ended early, with status {flood.returncode}")
            nursery.cancel_scope.cancel()
    return FrameRate(
        (arrived_after.received_frames - arrived.received_frames) / lasted_s,
        (sent_after.received_frames - sent.received_frames) / lasted_s,
        used.cores,
    )


async def _wait_for_flood(guest: Guest) -> None:
    """Until it goes through: on a busy machine what is between both ends may not have been scheduled yet."""
    for end, what in ((guest.tap.name, "sends nothing"), (BRIDGE, "doesn't reach the bridge")):
        with trio.move_on_after(_PATIENCE_S) as patience:
            await _until(partial(_more_frames, end, counters(end).received_frames))
        if patience.cancelled_caught:
            raise MeasurementError(f"the guest's flood {what} for {_PATIENCE_S:g} s; is its tap up?")
    await trio.sleep(_FLOOD_SETTLES_S)


def _more_frames(interface: str, frames: int) -> bool:
    return counters(interface).received_frames > frames


async def _until(reached: Callable[[], bool]) -> None:
    """Look until `reached()`: the kernel tells nobody of what is looked at here."""
    while not reached():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(_POLL_S)
