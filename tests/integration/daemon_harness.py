"""Real daemons with real guests on a network of their own, for tests; nothing outlives its `cluster`.

The network is the demo's (`remuslike.demo.topology`): two hosts and a client. A *node* is a daemon's
configuration with its files, kept from one daemon to the next as a host's disk is.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from pydantic import Field

from remuslike.demo import plan
from remuslike.demo.control import ask
from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import Message
from remuslike.demo.plan import Role
from remuslike.demo.processes import Process, Program, processes_in
from remuslike.demo.topology import NAMESPACE_DIRECTORY, topology
from remuslike.image import (
    READY_LINE,
    GuestImage,
    Service,
    build_image,
    host_tsc_khz,
    kernel_command_line,
    make_data_disk,
)

marks = [
    pytest.mark.root,
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 isn't installed"
    ),
]

Found = TypeVar("Found")

COMMAND = str(Path(sys.executable).with_name("remuslike"))
WAIT_LIMIT_S = 150 if os.environ.get("REMUSLIKE_LAB") == "1" else 40
"""Far above what an idle machine needs for anything here; it bounds a hang. In the lab, whose processors are
emulated, a daemon was seen to take 40 s to start beside other load."""

DETECT_MS = 500
"""Silence on a machine that runs two emulated guests and a test is seldom death."""

EPOCH_MS = 25
FIRST_HOST = f"{plan.PEER_ADDRESSES['primary']}:{plan.REPLICATION_PORT}"
END_LIMIT_S = 10.0
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Shape:
    """What the guest of a cluster is like. Its first disk is the data disk, `vdb` in the guest."""

    machine: str = "microvm"
    vcpus: int = 1
    memory_mib: int = 128
    disks: int = 1
    disk_mib: int = 16
    nics: int = 1
    service: Service = "redis"
    extra_arguments: tuple[str, ...] = ()
    on_secondary_loss: str = "solo"
    detect_ms: float = DETECT_MS


class Protection(Message):
    """What a secondary that has taken over tells of its part as a primary."""

    protected: bool


MakeGuest = Callable[[Path], dict[str, Any]]
"""The table `guest` of a node, whose files it makes in the node's directory."""


class Statistics(Message):
    """What the tests read of either daemon's `statistics`."""

    role: Role
    mode: str
    phase: str
    generation: int
    guest_pid: int
    protected: bool = False
    epoch: int = 0
    acknowledged: int | None = None
    applied: int | None = None
    takeover: dict[str, Any] | None = None
    protection: Protection | None = None
    held: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """A daemon's configuration, as a document to change before `Cluster.start` writes it, and its files."""

    role: Role
    namespace: str
    directory: Path
    document: dict[str, Any]

    @property
    def control(self) -> Path:
        return Path(self.document["run_directory"]) / "control.sock"

    @property
    def disks(self) -> list[Path]:
        return [Path(disk["store"]) for disk in self.document["guest"]["disks"] if not disk.get("read_only")]

    @property
    def console_path(self) -> Path:
        return self.directory / "console"

    @property
    def console(self) -> str:
        """What the latest guest has said."""
        return self.console_path.read_text(errors="replace")


@dataclass(slots=True)
class Daemon:
    """A started daemon."""

    node: Node
    process: Process

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    @property
    def log(self) -> str:
        return self.process.program.log.read_text(errors="replace")

    def terminate(self) -> None:
        self.process.popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.popen.kill()

    async def statistics(self) -> Statistics | None:
        """None while it doesn't answer: not yet, or no more."""
        try:
            return await ask(self.node.control, Statistics, "statistics")
        except (OSError, DaemonError):
            return None

    async def wait(self, what: str, reached: Callable[[Statistics], bool]) -> Statistics:
        """Its first statistics that are as wanted; AssertionError if it ends before, or none are in time."""
        with trio.move_on_after(WAIT_LIMIT_S):
            while True:
                status = self.process.status()
                said = await self.statistics()
                if said is not None and reached(said):
                    return said
                assert status is None, f"{self.node.role}: ended with {status}, expected: {what}"
                await trio.sleep(POLL_S)
        raise AssertionError(f"{self.node.role}: not {what} within {WAIT_LIMIT_S} s")

    async def wait_phase(self, phase: str) -> Statistics:
        return await self.wait(f"in phase {phase}", lambda said: said.phase == phase)

    async def wait_protected(self) -> Statistics:
        return await self.wait("protected", lambda said: said.protected)

    async def wait_protected_again(self) -> Statistics:
        """As `wait_protected`, of the guest that a secondary has taken over."""
        return await self.wait(
            "protected again", lambda said: said.protection is not None and said.protection.protected
        )

    async def wait_logged(self, pattern: str) -> str:
        """The first line of its log in which `pattern` is found."""
        return await wait_for(
            f"{self.node.role}: a line with {pattern!r} in its log",
            lambda: next((line for line in self.log.splitlines() if re.search(pattern, line)), None),
        )

    async def wait_over(self, expected: int) -> None:
        """Returns when it has ended with this status."""
        with trio.move_on_after(WAIT_LIMIT_S):
            await self.process.wait()
        status = self.process.status()
        assert status == expected, f"{self.node.role}: ended with {status}, expected {expected}"

    async def wait_ended(self, expected: int) -> None:
        """Returns when it has ended with this status and nothing of a daemon is left on its host, neither a
        process nor an interface. Prerequisite: it was the only one."""
        await self.wait_over(expected)
        await wait_for(f"{self.node.role}: all of it to be gone", lambda: not remains(self.node.namespace))


def remains(namespace: str) -> list[str]:
    """Processes in a host's network namespace, and interfaces that the network didn't come with."""
    found = [f"process {pid}" for pid in processes_in(NAMESPACE_DIRECTORY / namespace)]
    shown = run("ip", "-n", namespace, "-json", "link", "show")
    own = {"lo", plan.BRIDGE, plan.UPLINK, plan.PEER_LINK}
    return found + [link["ifname"] for link in json.loads(shown) if link["ifname"] not in own]


def run(*command: str) -> str:
    """Its output; AssertionError with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_LIMIT_S)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode} {done.stdout} {done.stderr}"
    return done.stdout


async def wait_for(what: str, probe: Callable[[], Found | None]) -> Found:
    """The first result of `probe` that is true."""
    with trio.move_on_after(WAIT_LIMIT_S):
        while True:
            if result := probe():
                return result
            await trio.sleep(POLL_S)
    raise AssertionError(f"{what}: waited {WAIT_LIMIT_S} s in vain")


@dataclass(slots=True)
class Cluster:
    """Two hosts with a node each, and a client."""

    shape: Shape
    directory: Path
    namespaces: plan.Namespaces
    primary: Node
    secondary: Node
    stack: ExitStack
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def witness(self) -> Path:
        return self.directory / "witness"

    @property
    def holder(self) -> str:
        """The name in the witness's record."""
        return str(json.loads(self.witness.read_text())["holder"])

    def start(self, node: Node, kill_at: str | None = None, command: tuple[str, ...] = (COMMAND,)) -> Daemon:
        """Write the node's file and start its daemon; `kill_at`: see `remuslike.daemon.hooks`."""
        path = node.directory / "remuslike.toml"
        path.write_text(to_toml(node.document), "utf-8")
        node.console_path.write_bytes(b"")
        wish = () if kill_at is None else ("env", f"REMUSLIKE_KILL_AT={kill_at}")
        number = len(self.daemons)
        log = node.directory / f"daemon-{number}.log"
        arguments = (*wish, *command, node.role, "--config", str(path))
        program = Program(f"{node.role} {number}", node.namespace, arguments, log)
        daemon = Daemon(node, self.stack.enter_context(Process(program)))
        self.daemons.append(daemon)
        return daemon

    def as_secondary(self) -> Node:
        """The first host again: same name, files and disks, but now it listens, and has a successor."""
        document = copy.deepcopy(self.primary.document)
        document["link"] |= {"address": FIRST_HOST, "successor": self.secondary.document["link"]["address"]}
        return replace(self.primary, role="secondary", document=document)

    async def protect(self) -> tuple[Daemon, Daemon]:
        """A primary whose guest is up, and a secondary that protects it."""
        primary = self.start(self.primary)
        await self.guest_is_up(self.primary)
        secondary = self.start(self.secondary)
        await primary.wait_protected()
        await secondary.wait_phase("standby")
        return primary, secondary

    async def guest_is_up(self, node: Node) -> None:
        await wait_for("guest: ready on its console", lambda: READY_LINE in node.console)

    def kill_daemons(self) -> None:
        """All that still run, and their guests."""
        self.stack.close()
        _wait_nothing_remains(self.namespaces)

    def set_link(self, namespace: str, interface: str, state: str) -> None:
        run("ip", "-n", namespace, "link", "set", interface, state)

    def set_peer_link(self, state: str) -> None:
        """The link between the two hosts."""
        self.set_link(self.secondary.namespace, plan.PEER_LINK, state)

    def disks_differ(self) -> list[str]:
        """Names of the disks that aren't the same on both hosts."""
        pairs = zip(self.primary.disks, self.secondary.disks, strict=True)
        return [a.name for a, b in pairs if a.read_bytes() != b.read_bytes()]

    def logs(self) -> str:
        """The ends of all logs, for a failure."""
        parts = [f"--- {d.process.program.name} {d.process.status()}\n{d.log[-6000:]}" for d in self.daemons]
        for node in (self.primary, self.secondary):
            for name in ("console", "run/qemu.log"):
                path = node.directory / name
                if path.exists():
                    parts.append(f"--- {node.role}: {name}\n{path.read_text(errors='replace')[-1500:]}")
        return "\n".join(parts)


@contextmanager
def cluster(shape: Shape = Shape(), make_guest: MakeGuest | None = None) -> Iterator[Cluster]:
    """Network and files for two daemons, with the image's guest unless `make_guest` makes another; ends all
    daemons and removes all of it whatever happens.

    A log with a traceback in it, and a process that outlives its daemon, are failures of the test.
    """
    guests = make_guest or debian_guests(shape)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="remuslike-test-")))
        network = stack.enter_context(topology(os.getpid()))
        nodes = {role: _make_node(role, shape, guests, directory, network.namespaces) for role in plan.ROLES}
        daemons = stack.enter_context(ExitStack())
        for number in range(1, shape.nics):
            address = f"10.77.{number}.1/24"
            run("ip", "-n", network.namespaces.client, "address", "add", address, "dev", plan.LAN)
        made = Cluster(shape, directory, network.namespaces, nodes["primary"], nodes["secondary"], daemons)
        try:
            yield made
            made.kill_daemons()
            broken = [d.process.program.name for d in made.daemons if "Traceback" in d.log]
            assert not broken, f"tracebacks in the logs of {broken}"
        except BaseException as error:
            error.add_note(made.logs())
            raise


def _wait_nothing_remains(namespaces: plan.Namespaces) -> None:
    limit = time.monotonic() + END_LIMIT_S
    while found := [entry for name in namespaces.hosts.values() for entry in remains(name)]:
        assert time.monotonic() < limit, f"left behind by daemons that are gone: {found}"
        time.sleep(POLL_S)


def debian_guests(shape: Shape) -> MakeGuest:
    """The image's guest, under QEMU."""
    image = build_image()
    # Once for both sides, which must agree: no two measurements are quite the same.
    tsc_khz = host_tsc_khz()

    def make(home: Path) -> dict[str, Any]:
        return _debian_guest(shape, image, tsc_khz, home)

    return make


def _debian_guest(shape: Shape, image: GuestImage, tsc_khz: int | None, home: Path) -> dict[str, Any]:
    disks = [home / f"data{number}" for number in range(shape.disks)]
    for number, disk in enumerate(disks):
        make_data_disk(disk, shape.disk_mib, seed=str(number))
    addresses = [f"10.77.{number}.2/24" for number in range(shape.nics)]
    return {
        "machine": shape.machine,
        "accelerator": "tcg",
        "vcpus": shape.vcpus,
        "memory_mib": shape.memory_mib,
        "kernel": image.kernel,
        "initrd": image.initrd,
        "append": kernel_command_line(
            addresses=addresses,
            data_disk="vdb",
            service=shape.service,
            tsc_khz=tsc_khz,
        ),
        "extra_arguments": list(shape.extra_arguments),
        "local_arguments": ["-serial", f"file:{home / 'console'}"],
        "disks": [
            {"name": "root", "store": str(image.root), "read_only": True},
            *({"name": disk.name, "store": str(disk)} for disk in disks),
        ],
        "nics": [
            {"mac": f"52:54:00:77:00:{number:02x}", "bridge": plan.BRIDGE} for number in range(shape.nics)
        ],
    }


def _make_node(
    role: Role, shape: Shape, make_guest: MakeGuest, directory: Path, namespaces: plan.Namespaces
) -> Node:
    home = directory / role
    home.mkdir()
    document = {
        "name": role,
        "run_directory": home / "run",
        "on_secondary_loss": shape.on_secondary_loss,
        "guest": make_guest(home),
        "epoch": {"epoch_ms": EPOCH_MS},
        "link": {
            "address": f"{plan.PEER_ADDRESSES['secondary']}:{plan.REPLICATION_PORT}",
            "detect_ms": shape.detect_ms,
        },
        "witness": {"kind": "file", "path": directory / "witness"},
    }
    return Node(role, namespaces.hosts[role], home, document)


def to_toml(value: Any) -> str:
    """A document of tables, arrays, strings, numbers and booleans; a table in another is an inline one."""
    return "".join(f"{key} = {_literal(item)}\n" for key, item in value.items())


def _literal(value: Any) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{key} = {_literal(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_literal, value)) + "]"
        case Path():
            return json.dumps(str(value))
        case _:
            # JSON's ASCII strings, numbers and booleans are TOML's as well.
            return json.dumps(value)
