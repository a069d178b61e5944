"""A guest under one setting: protected by the real daemons, or plain QEMU in the same place on the same LAN.

The network, the daemons' configuration and their observation are the demo's (`remuslike.demo`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import trio
from pyroute2 import IPRoute

from remuslike.bench.errors import MeasurementError
from remuslike.bench.options import RunOptions
from remuslike.bench.plain import plain_command
from remuslike.bench.plan import TAKEOVER, Setting, Visit
from remuslike.bench.roundtrip import link_round_trip_ms
from remuslike.bench.stage import Stage
from remuslike.bench.workloads.contract import Workload
from remuslike.config import Settings, parse_settings
from remuslike.demo import plan
from remuslike.demo.observer import Daemon, Observer
from remuslike.demo.plan import Directories, GuestFiles, Role
from remuslike.demo.processes import Process, Program
from remuslike.demo.topology import Topology, topology
from remuslike.image import GuestImage, Service, host_tsc_khz, kernel_command_line, make_data_disk

DATA_DISK_MIB = 512
"""Sparse. redis's append-only file of a minute, and fio's files."""

PATIENT_DETECT_MS = 2_000.0
"""Of hosts that nobody kills: so late that only a real death is taken for one."""

_PLAIN_TAP = "tap0"
_START_LIMIT_S = 30.0
_PROTECTED_LIMIT_S = 120.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Definition:
    """What `remuslike.demo.plan.configuration` asks for."""

    machine: str
    vcpus: int
    memory_mib: int
    detect_ms: float
    epoch: dict[str, object]


def definition(options: RunOptions, setting: Setting, *, detect_ms: float) -> Definition:
    """The machine and its protection under `setting`. What a setting leaves open is the daemons' default."""
    epoch: dict[str, object] = {}
    if setting.protected and setting.mode != "epoch":
        epoch["mode"] = setting.mode
    if setting.epoch_ms is not None:
        epoch["epoch_ms"] = setting.epoch_ms
    machine = "q35" if options.guest == "synthetic" else options.guest
    return Definition(machine, options.vcpus, options.memory_mib, detect_ms, epoch)


Protection = Literal["pair", "solo", "none"]
"""Both daemons; a primary alone, which holds nothing; or nobody beside QEMU."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A guest and how it is protected. `make_disk` makes each host's data disk, the same on both; `ready`
    returns when the guest can be measured."""

    machine: Definition
    guest: GuestFiles
    protection: Protection
    make_disk: Callable[[Path], None]
    ready: Callable[[Stage], Awaitable[None]]


@dataclass(slots=True)
class Hosts:
    """A guest that runs. `observer` watches the daemons, None of them where nothing is protected."""

    network: Topology
    directories: Directories
    stage: Stage
    observer: Observer = field(default_factory=Observer)

    def link_round_trip_ms(self) -> float:
        """Of the link between the two hosts, now. Raises MeasurementError."""
        return round(link_round_trip_ms(self.network.namespaces), 4)


@dataclass(frozen=True, slots=True)
class RealGuests:
    """QEMU's, of one image."""

    options: RunOptions
    image: GuestImage
    accelerator: str
    workloads: Mapping[str, Workload]

    def __call__(self, visit: Visit, root: Path) -> AbstractAsyncContextManager[Hosts]:
        """A guest for `visit`: see `hosts`."""
        return hosts(self.scene(visit), root)

    def scene(self, visit: Visit) -> Scene:
        """What `visit` asks for."""
        kills = visit.workload == TAKEOVER
        detect_ms = self.options.detect_ms if kills else PATIENT_DETECT_MS
        machine = definition(self.options, visit.setting, detect_ms=detect_ms)
        service = "redis" if kills else self.workloads[visit.workload].service
        protection: Protection = "pair" if visit.setting.protected else "none"
        return Scene(machine, self._files(service), protection, _data_disk, Stage.wait_ready)

    def _files(self, service: Service) -> GuestFiles:
        append = kernel_command_line(
            addresses=[f"{plan.GUEST_ADDRESS}/{plan.PREFIX_LENGTH_LAN}"],
            data_disk=plan.DATA_DEVICE,
            service=service,
            tsc_khz=host_tsc_khz(),
        )
        return GuestFiles(self.image.kernel, self.image.initrd, self.image.root, append, self.accelerator)


def _data_disk(path: Path) -> None:
    make_data_disk(path, DATA_DISK_MIB)


@asynccontextmanager
async def hosts(scene: Scene, root: Path) -> AsyncIterator[Hosts]:
    """A network with a guest that runs, and is ready. All goes with the block, but for the files in the
    existing directory `root`.

    Raises MeasurementError, `remuslike.demo.errors.DemoError`, also within the block when a daemon ends.
    """
    directories = Directories(root)
    with topology(os.getpid()) as network, ExitStack() as processes:
        start = _Start(network, directories, scene, processes)
        stage = Stage(network.namespaces.client, directories.client_log, {})
        running = Hosts(network, directories, stage)
        async with trio.open_nursery() as nursery:
            if scene.protection == "none":
                process = await start.plain()
                nursery.start_soon(_notice_end, process)
                stage.processes = {"qemu": process.popen.pid}
            else:
                nursery.start_soon(running.observer.run)
                await (start.pair if scene.protection == "pair" else start.solo)(running.observer)
                stage.processes = _processes(running.observer)
            await scene.ready(stage)
            yield running
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class _Start:
    """Starts what a setting needs on the two hosts."""

    network: Topology
    directories: Directories
    scene: Scene
    processes: ExitStack

    async def pair(self, observer: Observer) -> None:
        """Both daemons; returns when the guest is protected."""
        observer.secondary = self._daemon("secondary")
        await observer.wait_until(
            lambda: observer.secondary_said is not None, "the secondary's control socket", _START_LIMIT_S
        )
        observer.primary = self._daemon("primary")

        def is_protected() -> bool:
            primary, secondary = observer.primary_said, observer.secondary_said
            return bool(primary and primary.protected and secondary and secondary.phase == "standby")

        await observer.wait_until(is_protected, "a protected guest", _PROTECTED_LIMIT_S)

    async def solo(self, observer: Observer) -> None:
        """A primary without a secondary; returns when it lets all of the guest's output out at once."""
        observer.primary = self._daemon("primary")

        def is_open() -> bool:
            return observer.primary_said is not None and observer.primary_said.phase == "solo"

        await observer.wait_until(is_open, "a guest whose output is open", _START_LIMIT_S)

    async def plain(self) -> Process:
        """QEMU by itself on the primary's host; returns when its tap is a port of the bridge."""
        settings = self._configured("primary")
        command = plain_command(settings.guest, [_PLAIN_TAP])
        process = self._process("the guest", "primary", command)
        with trio.move_on_after(_START_LIMIT_S), IPRoute(netns=self._namespace("primary")) as socket:
            while not (taps := socket.link_lookup(ifname=_PLAIN_TAP)):
                process.check_alive()
                await trio.sleep(_POLL_S)
            (bridge,) = socket.link_lookup(ifname=plan.BRIDGE)
            socket.link("set", index=taps[0], master=bridge, state="up")
            return process
        raise MeasurementError(f"QEMU makes no tap within {_START_LIMIT_S:g} s. {process.log_tail()}")

    def _configured(self, role: Role) -> Settings:
        files = self.directories
        text = plan.configuration(role, self.scene.machine, self.scene.guest, files)
        settings = parse_settings(text, f"the benchmark's configuration of the {role}")
        files.daemon(role).mkdir()
        files.run_directory(role).mkdir()
        files.configuration(role).write_text(text, "utf-8")
        self.scene.make_disk(files.data_disk(role))
        return settings

    def _daemon(self, role: Role) -> Daemon:
        settings = self._configured(role)
        command = [*plan.DAEMON, role, "--config", str(self.directories.configuration(role))]
        return Daemon(self._process(f"the {role}", role, command), settings.control_path)

    def _process(self, name: str, role: Role, command: list[str]) -> Process:
        program = Program(name, self._namespace(role), tuple(command), self.directories.log(role))
        return self.processes.enter_context(Process(program))

    def _namespace(self, role: Role) -> str:
        return self.network.namespaces.hosts[role]


async def _notice_end(process: Process) -> None:
    await process.wait()
    process.check_alive()


_PARTS: dict[Role, tuple[str, str]] = {"primary": ("primary", "qemu"), "secondary": ("secondary", "standby")}


def _processes(observer: Observer) -> dict[str, int]:
    """The daemons, and the QEMUs that are their children."""
    daemons = {"primary": observer.primary, "secondary": observer.secondary}
    found: dict[str, int] = {}
    for role, (daemon_part, qemu_part) in _PARTS.items():
        daemon = daemons[role]
        if daemon is not None:
            found[daemon_part] = process = daemon.process.popen.pid
            found.update((qemu_part, child) for child in _children(process))
    return found


def _children(process: int) -> list[int]:
    try:
        # Those of its first thread, which is the one that starts QEMU.
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError as error:
        raise MeasurementError(f"a daemon ended before it was measured: {error}") from error
