"""What fio is told to do, here or in a guest, and what it reports. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from remuslike.bench.errors import MeasurementError

DEPTH = 16
"""Requests that one client keeps in flight."""


@dataclass(frozen=True, slots=True)
class Job:
    """`pattern` is fio's `rw`. `more` are options of its engine. What is done `once` goes through the target
    and takes the time that it takes."""

    pattern: str
    block_bytes: int
    more: Sequence[str] = ()
    once: bool = False

    def command(self, *options: str, seconds: float) -> list[str]:
        """fio's command line: through the target for `seconds`, in the same order each time; or once."""
        timed = [] if self.once else ["--time_based", f"--runtime={seconds:g}"]
        return [
            *("fio", "--name=bench", "--output-format=json"),
            *(f"--rw={self.pattern}", f"--bs={self.block_bytes}"),
            *(*timed, *self.more, *options),
        ]


def nbd_options(uri: str, size_bytes: int, *, clients: int = 1) -> list[str]:
    """Of fio's own NBD client, for each of `clients` DEPTH requests deep. They are threads of one process."""
    options = ["--ioengine=nbd", f"--uri={uri}", f"--iodepth={DEPTH}", f"--size={size_bytes}"]
    return [*options, "--thread", f"--numjobs={clients}", "--group_reporting"]


def read_rate(output: str) -> float:
    """Requests a second, of all clients, from the JSON that fio prints. Raises MeasurementError."""
    try:
        document = json.loads(output[output.index("{") :])  # warnings come before it
        (job,) = document["jobs"]
        if job["error"]:
            raise MeasurementError(f"fio failed with errno {job['error']}: {output[-200:]!r}")
        rate = float(job["read"]["iops"]) + float(job["write"]["iops"])
    except (ValueError, KeyError, TypeError) as error:
        raise MeasurementError(f"fio's report can't be understood ({error!r}): {output[-200:]!r}") from error
    if not rate:
        raise MeasurementError(f"fio did nothing in its time: {output[-200:]!r}")
    return rate
