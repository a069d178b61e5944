"""The guest's disk: one long sequential write, past its page cache or through it, or small random ones that
are each made durable. fio."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

import trio

from remuslike.bench.errors import MeasurementError
from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import Service

FILE_MIB = 64
_PATIENCE_S = 60.0
_FILES = "/tmp/fio"
_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Fio:
    """Writes to a file whose blocks exist already; `options` say how."""

    name: str
    options: tuple[str, ...]
    variants: tuple[Mapping[str, int], ...]
    limits: Mapping[str, tuple[int, int]]
    unit: str
    service: Service = "none"

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        command = [
            *("fio", "--name=load", f"--filename=/data/{self.name}", f"--size={FILE_MIB}M"),
            *("--ioengine=psync", "--overwrite=1", f"--bs={parameters['block_kib']}k"),
            *("--output-format=json", *self.options),
        ]
        create = shlex.join([*command, "--create_only=1"])
        _report_in(await stage.shell(f"{create}; sync", limit_s=_PATIENCE_S))
        # By the guest's clock, which is never ahead of ours: it is we who end it.
        command += ["--time_based", f"--runtime={seconds + 1}", f"--write_lat_log={_FILES}"]
        async with stage.shell_session(_script(command), limit_s=seconds + 2 * _PATIENCE_S) as guest:
            if (said := await guest.line()) != "up":
                raise MeasurementError(f"fio in the guest: {said} {await guest.rest()}"[:300])
            with stage.measured():
                began = monotonic()
                await guest.send(b"go\n")
                await trio.sleep(seconds)
                await guest.send(b"stop\n")
                await guest.expect("done")
            # What it says is held, what it hears isn't.
            asked = monotonic()
            await guest.send(b"clock\n")
            printed = await guest.rest()
        logged = await stage.shell(f"cut -d , -f 2 {_FILES}_lat.1.log; rm -f {_FILES}*", limit_s=_PATIENCE_S)
        return self._load(printed, logged, asked - began)

    def _load(self, printed: str, logged: str, between_s: float) -> Load:
        """`between_s`: from "go" to "clock", here."""
        clock, _, report = printed.partition("\n")
        report = _report_in(report)
        try:
            begun, ended, asked = map(float, clock.split())
            written = json.loads(report)["jobs"][0]["write"]
            amount = written["io_bytes"] / _MEGA if self.unit == "MB/s" else written["total_ios"]
            loaded_s = written["runtime"] / 1e3
            # From its end to the question nothing was written, and the guest hardly paused.
            share = (ended - begun) / (between_s - (asked - ended))
            rate = amount / loaded_s * share
            latencies_ms = tuple(int(line) / _MEGA for line in logged.split())
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
            raise MeasurementError(
                f"fio's report can't be understood ({error!r}): {printed[-300:]!r}"
            ) from error
        return Load(
            unit=self.unit, rate=rate, latencies_ms=latencies_ms, details={"guest_clock": round(share, 4)}
        )


def _report_in(printed: str) -> str:
    """The JSON that fio prints behind its remarks."""
    _, brace, report = printed.partition("{")
    if not brace:
        raise MeasurementError(f"fio in the guest: {printed[-300:]!r}")
    return brace + report


def _script(command: list[str]) -> str:
    """Has fio get ready, says "up", begins the load at a line and ends it at another, says "done" when it has
    ended; at a third, the guest's clock at the first, the end and the third, and fio's report.

    fio runs a command before the load and one after it. What they say comes through a FIFO that the shell
    keeps open, so that nobody waits who says something; when fio fails, "over" is all that comes.
    """
    said, go = f"{_FILES}.said", f"{_FILES}.go"
    hooks = [f"--exec_prerun=echo up >{said}; read line <{go}", f"--exec_postrun=echo down >{said}"]
    run = shlex.quote(f"echo $$ >{_FILES}.pid; exec {shlex.join([*command, *hooks])}")
    return "; ".join(
        (
            f"rm -f {_FILES}.* load.*.txt",
            f"mkfifo {said} {go}",
            f"exec 3<>{said}",
            f"{{ sh -c {run} >{_FILES}.json 2>{_FILES}.err 3>&-; echo over >{said}; }} & read word <&3",
            "echo $word",
            f'if [ up != "$word" ]; then cat {_FILES}.json {_FILES}.err; exit; fi',
            f"read line; read begun idle </proc/uptime; echo >{go}",
            f"read line; kill -INT $(cat {_FILES}.pid)",
            "read word <&3; read ended idle </proc/uptime; echo done",
            "read line; read asked idle </proc/uptime; wait",
            f"echo $begun $ended $asked; cat {_FILES}.json",
        )
    )


_BLOCKS = {"block_kib": (4, 1024)}

_PAST_CACHE = "--direct=1"

SEQUENTIAL = Fio("disk-sequential", ("--rw=write", _PAST_CACHE), ({"block_kib": 128},), _BLOCKS, "MB/s")

# As a program writes that doesn't say how: through the guest's page cache, made durable now and then.
CACHED = Fio("disk-cached", ("--rw=write", "--fsync=128"), ({"block_kib": 128},), _BLOCKS, "MB/s")

# O_DSYNC: every write has been flushed when it returns, and its latency is that of both.
RANDOM = Fio(
    "disk-random",
    ("--rw=randwrite", _PAST_CACHE, "--sync=dsync", "--randseed=1"),
    ({"block_kib": 4},),
    _BLOCKS,
    "writes/s",
)
