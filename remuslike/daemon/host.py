"""What both daemons need of their host: run directory, disks, taps, holds, NBD servers."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from diskbuf import serve_nbd_unix
from netbuf import GuestTap, Hold, choose, limit_bytes, make_hold
from netbuf.errors import LimitError
from remuslike.config import GuestSettings, NicSettings, Settings
from remuslike.daemon.disks import open_disks
from remuslike.daemon.mode import sends_frames
from remuslike.daemon.outputs import Outputs
from remuslike.engine.handshake import PROTOCOL_VERSION, Hello
from remuslike.engine.ports import PAGE_BYTES, StepHook, Witness
from remuslike.errors import ConfigurationError
from remuslike.witness import FileWitness, NoWitness

# The sealed epochs a buffer holds at most: the window, and one whose release is still under way.
_EXTRA_DEPTH = 1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """This host's side of a guest, ready for a QEMU to be started on it."""

    outputs: Outputs
    taps: list[GuestTap]
    disk_sockets: list[Path]
    qemu_log: Path

    @property
    def tap_descriptors(self) -> list[int]:
        return [tap.fileno() for tap in self.taps]


@asynccontextmanager
async def open_host(settings: Settings, hook: StepHook, *, owns_shared: bool) -> AsyncIterator[Host]:
    """Set up, run the holds and NBD servers for as long as the body runs, and take down in the order that
    lets nothing out: holds are closed (which discards) before the taps. `owns_shared`: whether shared disks
    are this host's from the start."""
    guest = settings.guest
    depth = settings.epoch.window + _EXTRA_DEPTH
    with ExitStack() as stack:
        stack.enter_context(_run_directory(settings.run_directory))
        names = [disk.name for disk in guest.disks if not disk.read_only]
        disks, shared = await open_disks(stack, settings, depth, hook, owns_shared=owns_shared)
        nics = [
            (_make_tap(stack, f"{settings.name[:10]}{number}"), nic) for number, nic in enumerate(guest.nics)
        ]
        holds = await _make_holds(stack, settings, nics, depth)
        sockets = [settings.run_directory / f"disk-{name}.sock" for name in names]
        async with trio.open_nursery() as nursery:
            for hold in holds:
                await nursery.start(hold.run)
            for socket, name, disk in zip(sockets, names, disks, strict=True):
                await nursery.start(serve_nbd_unix, socket, {name: disk})
            log = settings.run_directory / "qemu.log"
            yield Host(Outputs(holds, disks, shared), [tap for tap, _ in nics], sockets, log)
            nursery.cancel_scope.cancel()


def _make_tap(stack: ExitStack, name: str) -> GuestTap:
    tap = GuestTap.create(name)
    stack.callback(tap.close)
    return tap


async def _make_holds(
    stack: ExitStack, settings: Settings, nics: list[tuple[GuestTap, NicSettings]], depth: int
) -> list[Hold]:
    """One for each of the interfaces, all of the kind that the configuration and this kernel allow."""
    if not nics:
        return []
    buffers = settings.buffers
    if buffers.network_limit_mib is None:
        most_bytes = limit_bytes(buffers.link_mbit, settings.epoch.epoch_ms)
    else:
        most_bytes = buffers.network_limit_mib << 20
    try:
        choice = await trio.to_thread.run_sync(choose, buffers.hold, most_bytes)
    except LimitError as error:
        raise ConfigurationError(
            f"buffers.network_limit_mib = {buffers.network_limit_mib}: {error}"
        ) from error
    _log.info("hold.chosen", backend=choice.backend.value, reason=choice.reason, limit_bytes=most_bytes)
    holds = []
    for tap, nic in nics:
        keep_frames = sends_frames(settings.epoch)
        hold = make_hold(choice.backend, tap, nic.bridge, most_bytes, depth, keep_frames=keep_frames)
        stack.callback(hold.close)
        holds.append(hold)
    return holds


@contextmanager
def _run_directory(path: Path) -> Iterator[None]:
    """Make it, and lock it against a second daemon of the same configuration."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"run_directory = '{path}': can't be used: {error}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"run_directory = '{path}': another daemon uses it; stop that one or choose another"
            raise ConfigurationError(message) from error
        yield
    finally:
        os.close(lock)


def make_witness(settings: Settings) -> Witness:
    """The configured one."""
    if settings.witness.kind == "none":
        return NoWitness()
    return FileWitness(settings.witness.path)


async def introduce(settings: Settings, host: Host, qemu_version: str) -> Hello:
    """This side's hello, still without a generation: all that must agree, read-only files by contents."""
    definition = await trio.to_thread.run_sync(_define, settings.guest, host)
    definition["qemu version"] = qemu_version
    definition["link.detect_ms"] = f"{settings.link.detect_ms:g}"
    definition["witness.kind"] = settings.witness.kind
    return Hello(protocol=PROTOCOL_VERSION, name=settings.name, generation=0, definition=definition)


def _define(guest: GuestSettings, host: Host) -> dict[str, str]:
    sizes = iter(disk.size_bytes for disk in host.outputs.disks)
    definition = {
        "page size": str(PAGE_BYTES),
        "guest.machine": guest.machine,
        "guest.accelerator": guest.accelerator,
        "guest.cpu": guest.cpu,
        "guest.vcpus": str(guest.vcpus),
        "guest.memory_mib": str(guest.memory_mib),
        "guest.append": guest.append,
        "guest.extra_arguments": shlex.join(guest.extra_arguments),
        "guest.kernel": _digest(guest.kernel, "guest.kernel"),
        "guest.initrd": _digest(guest.initrd, "guest.initrd"),
    }
    for number, disk in enumerate(guest.disks):
        key = f"guest.disks[{number}]"
        if disk.read_only:
            definition[key] = f"{disk.name}, read-only, contents {_digest(disk.image, key)}"
        else:
            definition[key] = f"{disk.name}, {next(sizes)} bytes{', shared' if disk.shared else ''}"
    for number, nic in enumerate(guest.nics):
        definition[f"guest.nics[{number}]"] = nic.mac
    return definition


def _digest(path: Path | None, key: str) -> str:
    if path is None:
        return "none"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ConfigurationError(f"{key} = '{path}': can't be read: {error}") from error
