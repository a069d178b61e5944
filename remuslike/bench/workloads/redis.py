"""Request and response: redis, with a few and with many clients, most of which wait for each answer."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from remuslike.bench.errors import MeasurementError
from remuslike.bench.requests import CONNECT_LIMIT_S
from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import SERVICE_PORT, Service

_INTERVAL_S = 0.25
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Redis:
    """`clients` connections, each with one request under way, or with `pipeline` of them, sent together.

    `kind` is of `remuslike.bench.requests`, `fsync` is redis's appendfsync: when a write that is acknowledged
    is on the disk. With `steps` only one of them asks in the first and in the last third of the time.
    """

    name: str
    kind: str
    fsync: str
    unit: str
    variants: tuple[Mapping[str, int], ...]
    steps: bool = False
    service: Service = "redis"

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        limits = {"clients": (1, 1000), "pipeline": (1, 100)}
        return {parameter: limits[parameter] for parameter in self.variants[0]}

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        set_fsync = f"redis-cli config set appendfsync {self.fsync}"
        if (answer := (await stage.shell(set_fsync)).strip()) != "OK":
            raise MeasurementError(f"{set_fsync}: {answer!r}")
        clients_asking = f"1,{parameters['clients']},1" if self.steps else parameters["clients"]
        kind = f"{self.kind}*{parameters['pipeline']}" if "pipeline" in parameters else self.kind
        arguments = [stage.address, SERVICE_PORT, clients_asking, seconds, kind]
        command = [sys.executable, "-m", "remuslike.bench.requests", *map(str, arguments)]
        async with stage.tool_session(*command, limit_s=seconds + CONNECT_LIMIT_S + _PATIENCE_S) as clients:
            await clients.expect("ready")
            with stage.measured():
                await clients.send(b"go\n")
                printed = await clients.finish()
        try:
            found = json.loads(printed)
            latencies_ms, at_s = tuple(found["latencies_ms"]), found["at_s"]
        except (ValueError, KeyError, TypeError) as error:
            raise MeasurementError(f"the clients' report can't be understood: {printed[-200:]!r}") from error
        return Load(
            unit=self.unit,
            rate=len(at_s) / seconds,
            latencies_ms=latencies_ms,
            series=series_of(at_s, seconds),
            details={"late": len(latencies_ms) - len(at_s)},
        )


def series_of(at_s: list[float], seconds: float) -> tuple[tuple[float, float], ...]:
    """The rate in each interval of _INTERVAL_S."""
    counts = Counter(int(at // _INTERVAL_S) for at in at_s)
    slots = range(round(seconds / _INTERVAL_S))
    return tuple((slot * _INTERVAL_S, counts[slot] / _INTERVAL_S) for slot in slots)


# "everysec" is redis's own default: the load is of the network and of memory.
REQUESTS = Redis(
    "redis", "write", "everysec", "requests/s", ({"clients": 1}, {"clients": 16}, {"clients": 256})
)

# Clients that don't wait for each answer, as redis-benchmark's with -P: an epoch keeps back several for each.
PIPELINED = Redis("redis-pipeline", "write", "everysec", "requests/s", ({"clients": 256, "pipeline": 8},))

# A load that comes and goes, to see what the modes make of it.
STEPS = Redis("redis-steps", "write", "everysec", "requests/s", ({"clients": 64},), steps=True)

# A bank's setting: what was acknowledged is on the disk.
TRANSACTIONS = Redis("oltp", "transaction", "always", "transactions/s", ({"clients": 16},))
