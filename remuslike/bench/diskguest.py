"""Real guests whose disk is a raw file: QEMU's own driver, and a disk buffer in between."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from remuslike.bench.diskservers import start_diskbuf
from remuslike.bench.errors import MeasurementError
from remuslike.bench.fio import DEPTH, Job, read_rate
from remuslike.bench.machine import Agent, quote, start_disk_guest
from remuslike.bench.traffic import usage
from remuslike.image import Accelerator, GuestImage

_TARGET = "--filename=/dev/vdb"
_CACHED_HERE = (_TARGET, "--size=256M")
"""So small a part of the disk that it stays in this host's page cache, whose speed is then what counts."""

_LONE = (*_CACHED_HERE, "--direct=1", "--ioengine=psync")
_DEEP = ("--direct=1", "--ioengine=libaio", f"--iodepth={DEPTH}")
_BLOCK_BYTES = 256 << 10
SEQUENTIAL = Job("write", _BLOCK_BYTES, (*_CACHED_HERE, *_DEEP))
LONE = Job("write", _BLOCK_BYTES, _LONE)
WHOLE = Job("write", _BLOCK_BYTES, (_TARGET, *_DEEP, "--end_fsync=1"), once=True)
# As a program writes that doesn't say how.
ORDINARY = Job("write", _BLOCK_BYTES, (*_CACHED_HERE, "--ioengine=psync", "--fsync=64"))
SYNCED = Job("randwrite", 4 << 10, (*_LONE, "--fsync=1"))
_WHOLE_DISK_S = 300.0
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class DiskGuest:
    """A guest, and the processes that its disk takes."""

    name: str
    agent: Agent
    processes: dict[str, int]

    async def fill(self) -> None:
        """Write all of the disk once, so that the file has its blocks. Raises MeasurementError."""
        await self._fio(WHOLE, 0.0)

    async def measure(self, job: Job, seconds: float) -> tuple[float, dict[str, float]]:
        """Requests a second, and the processors taken. Raises MeasurementError."""
        with usage(**self.processes) as used:
            per_s = await self._fio(job, seconds)
        return per_s, used.cores

    async def _fio(self, job: Job, seconds: float) -> float:
        limit_s = _WHOLE_DISK_S if job.once else seconds + _PATIENCE_S
        with trio.move_on_after(limit_s):
            return read_rate(await self.agent.run(*job.command(seconds=seconds)))
        raise MeasurementError(f"{self.name}: fio in the guest isn't done after {limit_s:g} s")


def start_raw_guest(
    stack: ExitStack,
    name: str,
    directory: Path,
    image: GuestImage,
    accelerator: Accelerator,
    *,
    disk_mib: int,
    direct: bool,
) -> DiskGuest:
    """QEMU's own raw and file drivers: through this host's page cache, or `direct`, past it."""
    disk = _new_disk(directory / ("direct.img" if direct else "raw.img"), disk_mib)
    blockdev = f"driver=raw,file.driver=file,file.filename={quote(disk)}"
    if direct:
        blockdev += ",cache.direct=on,file.cache.direct=on"
    agent, process = start_disk_guest(stack, image, accelerator, blockdev)
    return DiskGuest(name, agent, {"qemu": process})


def start_buffered_guest(
    stack: ExitStack,
    name: str,
    directory: Path,
    image: GuestImage,
    accelerator: Accelerator,
    *,
    disk_mib: int,
    every_ms: float,
    journal: bool,
) -> DiskGuest:
    """The same in front of `python -m diskbuf serve`, over a file of its own. Raises MeasurementError."""
    stem = "journalled" if journal else "buffered"
    disk, socket = _new_disk(directory / f"{stem}.img", disk_mib), directory / f"{stem}.sock"
    kept = directory / f"{stem}.journal" if journal else None
    server = start_diskbuf(stack, name, socket, str(disk), every_ms=every_ms, journal=kept)
    blockdev = f"driver=nbd,server.type=unix,server.path={quote(socket)}"
    agent, process = start_disk_guest(stack, image, accelerator, blockdev)
    return DiskGuest(name, agent, {"qemu": process, "server": server.process})


def _new_disk(path: Path, size_mib: int) -> Path:
    with path.open("wb") as disk:
        disk.truncate(size_mib << 20)
    return path
