"""The NBD servers that `remuslike bench disk` compares, and fio as their client."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import trio

from remuslike.bench.errors import MeasurementError
from remuslike.bench.fio import Job, nbd_options, read_rate
from remuslike.bench.lan import wait_until
from remuslike.bench.processes import start_process
from remuslike.bench.traffic import usage

_FILL = Job("write", 1 << 20, once=True)
_GREETING = b"NBDMAGIC"
_PATIENCE_S = 60.0  # on top of what was asked for


@dataclass(frozen=True, slots=True)
class Server:
    """An NBD server on a unix socket; `name` is its setting's."""

    name: str
    path: Path
    process: int

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={quote(str(self.path))}"


@dataclass(frozen=True, slots=True)
class Served:
    """What clients got of a server: requests a second in all, and what processor time each took of it."""

    per_s: float
    server_us: float
    cores: dict[str, float]


def start_nbdkit(stack: ExitStack, name: str, path: Path, size_bytes: int) -> Server:
    """nbdkit's memory plugin. Raises MeasurementError."""
    command = ["nbdkit", "--foreground", "--unix", str(path), "memory", str(size_bytes)]
    return _start(stack, name, path, command)


def start_diskbuf(
    stack: ExitStack, name: str, path: Path, store: str, *, every_ms: float, journal: Path | None = None
) -> Server:
    """`python -m diskbuf serve`; with `every_ms` 0 there are no epochs. Raises MeasurementError."""
    command = [sys.executable, "-m", "diskbuf", "serve", "--store", store, "--socket", str(path)]
    command += ["--release-every", f"{every_ms:g}"]
    command += [] if journal is None else ["--journal", str(journal)]
    return _start(stack, name, path, command)


def _start(stack: ExitStack, name: str, path: Path, command: Sequence[str]) -> Server:
    process = start_process(stack, command)

    def listens() -> bool:
        if process.poll() is not None:
            raise MeasurementError(f"{name}: status {process.returncode} of: {' '.join(command)}")
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0 and probe.recv(len(_GREETING)) == _GREETING

    wait_until(listens, f"{name} serves at {path}")
    return Server(name, path, process.pid)


async def fill(server: Server, size_bytes: int) -> None:
    """Write all of the disk once, so that nobody is measured looking for memory. Raises MeasurementError."""
    await _fio(_FILL.command(*nbd_options(server.uri, size_bytes), seconds=0), _PATIENCE_S)


async def measure_nbd(server: Server, job: Job, size_bytes: int, seconds: float, clients: int) -> Served:
    """fio's NBD engine at work. Raises MeasurementError."""
    command = job.command(*nbd_options(server.uri, size_bytes, clients=clients), seconds=seconds)
    with usage(server=server.process) as used:
        per_s = await _fio(command, seconds + _PATIENCE_S)
    server_s = used.cores["server"] * used.lasted_s
    return Served(per_s, server_s / (per_s * seconds) * 1e6, used.cores)


async def _fio(command: list[str], limit_s: float) -> float:
    run = partial(trio.run_process, capture_stdout=True, capture_stderr=True, check=False)
    with trio.move_on_after(limit_s):
        finished: subprocess.CompletedProcess[bytes] = await run(command, stdin=subprocess.DEVNULL)
        if finished.returncode:
            said = finished.stderr.decode(errors="replace").strip()[-400:]
            raise MeasurementError(f"fio ended with status {finished.returncode}: {said}")
        return read_rate(finished.stdout.decode(errors="replace"))
    raise MeasurementError(f"fio isn't done after {limit_s:g} s: {' '.join(command)}")
