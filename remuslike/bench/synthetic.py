"""`bench run --guest synthetic`: the same daemons around a guest that isn't QEMU's and starts at once.

Its baseline is a primary that has no secondary, so it holds nothing and takes no checkpoints.
"""

from __future__ import annotations

import socket
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import trio

from remuslike.bench.hosts import PATIENT_DETECT_MS, Hosts, Protection, Scene, definition, hosts
from remuslike.bench.options import RunOptions
from remuslike.bench.plan import TAKEOVER, Visit, parameters_of
from remuslike.bench.results import Load
from remuslike.bench.stage import socket_in
from remuslike.bench.takeover import AFTERWARDS_S, Takeover, kill, parts_of, taken_over
from remuslike.bench.workloads.synthetic import rates_of, wait_ready
from remuslike.demo import plan
from remuslike.demo.plan import GuestFiles
from remuslike.synthetic import program_path
from remuslike.synthetic.client import open_client

_DISK_BYTES = 64 << 20
_CLIENTS = 16
_UNDER_KILL = {"dirty_pages_s": 1000, "working_set_mib": 16, "frames_s": 100, "disk_writes_s": 50}


@dataclass(frozen=True, slots=True)
class SyntheticGuests:
    """Processes of ours, each with a variant's rates."""

    options: RunOptions

    def __call__(self, visit: Visit, root: Path) -> AbstractAsyncContextManager[Hosts]:
        """A guest for `visit`: see `remuslike.bench.hosts.hosts`."""
        return hosts(self.scene(visit), root)

    def scene(self, visit: Visit) -> Scene:
        """What the one variant of `visit` asks for."""
        kills = visit.workload == TAKEOVER
        detect_ms = self.options.detect_ms if kills else PATIENT_DETECT_MS
        machine = definition(self.options, visit.setting, detect_ms=detect_ms)
        (variant,) = visit.variants
        parameters = _UNDER_KILL if kills else parameters_of(variant)
        rates = rates_of(parameters, f"{plan.GUEST_ADDRESS}/{plan.PREFIX_LENGTH_LAN}")
        guest = GuestFiles(None, None, None, rates.append(), "tcg", str(program_path()))
        protection: Protection = "pair" if visit.setting.protected else "solo"
        return Scene(machine, guest, protection, _empty_disk, wait_ready)


def _empty_disk(path: Path) -> None:
    with path.open("xb") as disk:
        disk.truncate(_DISK_BYTES)


async def measure_takeover(running: Hosts, options: RunOptions, seed: int) -> tuple[Load, Takeover]:
    """As `remuslike.bench.takeover.measure_takeover`; the survivor also verifies all that it consists of."""
    udp = socket_in(running.stage.client, socket.SOCK_DGRAM)
    async with open_client(udp, running.stage.address) as client:
        ahead_s = monotonic() - trio.current_time()
        async with trio.open_nursery() as nursery:
            load = await client.start_load(nursery, _CLIENTS, durable=True)
            with running.stage.measured():
                await trio.sleep(options.seconds)
                acknowledged = load.acknowledged
            killed_at = kill(running)
            takeover = await taken_over(running, killed_at)
            await trio.sleep(AFTERWARDS_S)
            load.stop()
        await client.read_back(load)
        report = await client.verify()
    replies = [at + ahead_s for at in load.answered_at_s]
    lost = len(load.verdict.findings) + report.contradictions
    found = Load(unit="answers/s", rate=acknowledged / options.seconds)
    return found, Takeover(parts_of(takeover, killed_at, replies), lost)
