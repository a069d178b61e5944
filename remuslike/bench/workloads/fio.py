"""The guest's disk: one long sequential write, or small random ones that are each made durable. fio."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from remuslike.bench.errors import MeasurementError
from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import Service

FILE_MIB = 64
_PATIENCE_S = 90.0
_LOG = "/tmp/fio"
_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Fio:
    """Writes past the page cache to a file whose blocks exist already; `options` say how."""

    name: str
    options: tuple[str, ...]
    variants: tuple[Mapping[str, int], ...]
    limits: Mapping[str, tuple[int, int]]
    unit: str
    service: Service = "none"

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        command = [
            *("fio", "--name=load", f"--filename=/data/{self.name}", f"--size={FILE_MIB}M"),
            *("--direct=1", "--ioengine=psync", "--overwrite=1", f"--bs={parameters['block_kib']}k"),
            *("--time_based", f"--runtime={seconds}", "--output-format=json", f"--write_lat_log={_LOG}"),
            *self.options,
        ]
        create = [*command, "--create_only=1"]
        await self._checked(stage, create, "; sync")
        without = await stage.guest_clock_s()
        await self._checked(stage, create, "")  # the file is there: all that fio does beside the load
        before = await stage.guest_clock_s()
        with stage.measured():
            printed = await self._checked(stage, command, "", seconds)
        after = await stage.guest_clock_s()
        logged = await stage.shell(f"cut -d , -f 2 {_LOG}_lat.1.log; rm -f {_LOG}*", limit_s=_PATIENCE_S)
        try:
            written = json.loads(printed)["jobs"][0]["write"]
            amount = written["io_bytes"] / _MEGA if self.unit == "MB/s" else written["total_ios"]
            loaded_s = written["runtime"] / 1e3
            lasted_s = _lasted_s(without, before, after, loaded_s)
            rate = amount / lasted_s
            latencies_ms = tuple(int(line) / _MEGA for line in logged.split())
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            raise MeasurementError(
                f"fio's report can't be understood ({error!r}): {printed[-300:]!r}"
            ) from error
        return Load(
            unit=self.unit,
            rate=rate,
            latencies_ms=latencies_ms,
            details={"guest_clock": round(loaded_s / lasted_s, 4)},
        )

    async def _checked(self, stage: Stage, command: list[str], then: str, seconds: int = 0) -> str:
        printed = await stage.shell(f"{shlex.join(command)}{then}", limit_s=seconds + _PATIENCE_S)
        if not printed.lstrip().startswith("{"):
            raise MeasurementError(f"fio in the guest: {printed[-300:]!r}")
        return printed


def _lasted_s(
    without: tuple[float, float], before: tuple[float, float], after: tuple[float, float], loaded_s: float
) -> float:
    """How long the load took here, which was `loaded_s` by fio's clock: that is the guest's, and stands still
    in every pause. The three are times here and in the guest. What fio does beside the load was paused as it
    was `without` one: a mode may stop a guest that writes far more than one that doesn't."""
    share = (before[1] - without[1]) / (before[0] - without[0])
    beside_s = max(0.0, after[1] - before[1] - loaded_s) / share
    return max(loaded_s, after[0] - before[0] - beside_s)


_BLOCKS = {"block_kib": (4, 1024)}

SEQUENTIAL = Fio("disk-sequential", ("--rw=write",), ({"block_kib": 128},), _BLOCKS, "MB/s")

# O_DSYNC: every write has been flushed when it returns, and its latency is that of both.
RANDOM = Fio(
    "disk-random",
    ("--rw=randwrite", "--sync=dsync", "--randseed=1"),
    ({"block_kib": 4},),
    _BLOCKS,
    "writes/s",
)
