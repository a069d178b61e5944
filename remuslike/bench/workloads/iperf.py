"""Bulk TCP out of the guest and into it, and small UDP datagrams out of it: iperf3."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import trio

from remuslike.bench.errors import MeasurementError
from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import Service

PORT = 5201
DATAGRAM_BYTES = 64
_PATIENCE_S = 60.0
_GIGA = 1e9

# The sockets' buffers may grow to what an epoch of 100 ms takes at a gigabit a second: what is held isn't
# acknowledged, so a sender that may have less under way stands still until the release.
_GROW = (
    "for name in tcp_rmem tcp_wmem; do echo '4096 131072 33554432' >/proc/sys/net/ipv4/$name || exit 1; done"
)

# CUBIC, the usual one, leaves slow start as soon as answers take longer than the quickest did (HyStart, RFC
# 9406). What a protected guest sends just before a seal is answered sooner than what it sends after it: a
# connection stops at some 200 KB and takes tens of seconds for the rest. Reno has no such thing.
_CONGESTION = ["--congestion", "reno"]

# In the hexadecimal of /proc/net/tcp: the port, and the state LISTEN.
_SERVE = f"""{_GROW}
iperf3 --server --one-off --daemon --idle-timeout 60
until cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':{PORT:04X} .* 0A '; do sleep 0.05; done
echo listening"""


@dataclass(frozen=True, slots=True)
class Bulk:
    """`streams` TCP connections at full speed in one direction; Gbit/s as the receiver counts."""

    name: str
    direction: Literal["out", "in"]
    variants: tuple[Mapping[str, int], ...] = ({"streams": 1}, {"streams": 8})
    service: Service = "none"

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"streams": (1, 128)}

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        options = ["--parallel", str(parameters["streams"]), *_CONGESTION]
        end, intervals = await _run(stage, seconds, self.direction, parameters["streams"], options)
        # Of the client's own clock: the guest's stands still in every pause.
        lasted_s = _value(end, "sum_received" if self.direction == "out" else "sum_sent", "seconds")
        return Load(
            unit="Gbit/s",
            rate=_value(end, "sum_received", "bytes") * 8 / _GIGA / lasted_s,
            series=tuple((start, bits / _GIGA) for start, bits in intervals),
            details={"retransmits": _value(end, "sum_sent", "retransmits")},
        )


@dataclass(frozen=True, slots=True)
class Datagrams:
    """The guest sends `datagrams_s` a second of DATAGRAM_BYTES each; what arrives counts."""

    name: str = "udp-out"
    variants: tuple[Mapping[str, int], ...] = ({"datagrams_s": 500}, {"datagrams_s": 5000})
    service: Service = "none"

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"datagrams_s": (1, 1_000_000)}

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        bits_s = parameters["datagrams_s"] * DATAGRAM_BYTES * 8
        options = ["--udp", "--length", str(DATAGRAM_BYTES), "--bitrate", str(bits_s)]
        end, intervals = await _run(stage, seconds, "out", 1, options)
        sent, lost = _value(end, "sum", "packets"), _value(end, "sum", "lost_packets")
        lasted_s = _value(end, "sum", "seconds")
        return Load(
            unit="datagrams/s",
            rate=(sent - lost) / lasted_s,
            series=tuple((start, bits / 8 / DATAGRAM_BYTES) for start, bits in intervals),
            details={"sent": sent, "lost": lost, "jitter_ms": _value(end, "sum", "jitter_ms")},
        )


async def _run(
    stage: Stage, seconds: int, direction: Literal["out", "in"], streams: int, options: Sequence[str]
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """What iperf3's client says: its end, and start and bits a second of its intervals."""
    if (answer := (await stage.shell(_SERVE)).strip()) != "listening":
        raise MeasurementError(f"iperf3 in the guest: {answer[-200:]!r}")
    await stage.tool("sh", "-c", _GROW, limit_s=_PATIENCE_S)
    command = ["iperf3", "--client", stage.address, "--port", str(PORT), "--time", str(seconds), "--json"]
    command += ["--interval", "0.5", *options, *(["--reverse"] if direction == "out" else [])]
    async with stage.tool_session(*command, limit_s=seconds + _PATIENCE_S) as client:
        # It talks with the server before the load, in as many round trips as in some modes take seconds.
        await client.wait_connections(PORT, streams + 1)
        with stage.measured():
            await trio.sleep(seconds)
        printed = await client.finish()
    return _parse(printed)


def _parse(printed: str) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    try:
        document = json.loads(printed)
        if "error" in document:
            raise MeasurementError(f"iperf3 failed: {document['error']}")
        sums = [interval["sum"] for interval in document["intervals"]]
        return document["end"], [(float(each["start"]), float(each["bits_per_second"])) for each in sums]
    except (ValueError, KeyError, TypeError) as error:
        raise MeasurementError(
            f"iperf3's report can't be understood ({error!r}): {printed[-200:]!r}"
        ) from error


def _value(end: Mapping[str, Any], part: str, name: str) -> float:
    try:
        return float(end[part][name])
    except (KeyError, TypeError, ValueError) as error:
        raise MeasurementError(f"iperf3's report has no {part}.{name}") from error


TCP_OUT, TCP_IN, UDP_OUT = Bulk("tcp-out", "out"), Bulk("tcp-in", "in"), Datagrams()
