"""What a synthetic guest does: sets of rates, and clients that count."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from remuslike.bench.errors import MeasurementError
from remuslike.bench.results import Load
from remuslike.bench.stage import Stage, socket_in
from remuslike.image import Service
from remuslike.synthetic import Rates
from remuslike.synthetic.client import Client, open_client

CLIENTS = "clients"


def rates_of(parameters: Mapping[str, int], address: str) -> Rates:
    """A variant's rates; its clients are none of the guest's."""
    return Rates(address=address, **{name: value for name, value in parameters.items() if name != CLIENTS})


@dataclass(frozen=True, slots=True)
class Synthetic:
    """So many `clients`, each with one request under way, beside the guest's own work. With clients the rate
    is of their answers; without, it is how fast the guest's clock goes, and so its work."""

    name: str
    variants: tuple[Mapping[str, int], ...]
    limits: Mapping[str, tuple[int, int]]
    service: Service = "none"

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        udp = socket_in(stage.client, socket.SOCK_DGRAM)
        async with open_client(udp, stage.address) as client:
            return await measure_load(client, stage, parameters.get(CLIENTS, 0), seconds)


async def measure_load(client: Client, stage: Stage, clients: int, seconds: int) -> Load:
    """What the guest does in `seconds` while so many `clients` count, who are at work before that.

    Raises MeasurementError when the guest or a client found something lost or done twice."""
    async with trio.open_nursery() as nursery:
        work = await client.start_load(nursery, clients)
        began, before = trio.current_time(), await client.report()
        with stage.measured():
            first, counted = len(work.latencies_ms), work.acknowledged
            await trio.sleep(seconds)
            latencies_ms, answers = work.latencies_ms[first:], work.acknowledged - counted
        ended, after = trio.current_time(), await client.report()
        work.stop()
    if contradictions := after.contradictions + len(work.verdict.findings):
        raise MeasurementError(
            f"the guest and its clients found {contradictions} contradictions of what was acknowledged"
        )
    lasted_s = ended - began
    share = (after.clock_ns - before.clock_ns) / 1e9 / lasted_s
    frames_s, blocks_s = (after.frames - before.frames) / lasted_s, (after.blocks - before.blocks) / lasted_s
    details = {
        "guest_clock": round(share, 4),
        "pages_s": (after.pages - before.pages) / lasted_s,
        "frames_s": frames_s,
        "blocks_s": blocks_s,
        "outputs_s": frames_s + blocks_s + answers / seconds,
    }
    if not clients:
        return Load(unit="guest s/s", rate=share, details=details)
    return Load(
        unit="answers/s",
        rate=answers / seconds,
        latencies_ms=tuple(round(latency, 3) for latency in latencies_ms),
        details=details,
    )


async def wait_ready(stage: Stage) -> None:
    """Returns when the guest answers; its client has a limit."""
    async with open_client(socket_in(stage.client, socket.SOCK_DGRAM), stage.address) as client:
        await client.report()
        await trio.lowlevel.checkpoint()


_PAGES = {"dirty_pages_s": (0, 1_000_000), "working_set_mib": (1, 256)}
_WORK = {"dirty_pages_s": 1000, "working_set_mib": 16}

_ALL = (
    Synthetic(
        "requests",
        tuple({CLIENTS: clients, **_WORK} for clients in (1, 16, 64)),
        {CLIENTS: (1, 1024), **_PAGES},
    ),
    Synthetic(
        "pages",
        tuple({"dirty_pages_s": rate, "working_set_mib": 64} for rate in (0, 1000, 10_000, 100_000)),
        _PAGES,
    ),
    # The rate of output at which tapping each frame costs more than an epoch does.
    Synthetic(
        "frames",
        tuple({"frames_s": rate, **_WORK} for rate in (10, 100, 1000, 5000)),
        {"frames_s": (0, 1_000_000), **_PAGES},
    ),
    Synthetic(
        "writes",
        tuple({"disk_writes_s": rate, **_WORK} for rate in (10, 100, 1000)),
        {"disk_writes_s": (0, 1_000_000), **_PAGES},
    ),
)

WORKLOADS: Mapping[str, Synthetic] = {workload.name: workload for workload in _ALL}
"""By name, in the order in which they are measured."""
