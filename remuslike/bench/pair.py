"""A real guest under two real daemons, in the namespaces of the demo's hosts, with a shell inside."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from os import getpid
from pathlib import Path

import trio
from pyroute2 import netns

from remuslike.bench.errors import MeasurementError
from remuslike.demo.control import ask
from remuslike.demo.daemons import start_daemon
from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import Answer, Pauses, PrimaryStatistics, Sample, Samples
from remuslike.demo.observer import Daemon
from remuslike.demo.options import DemoOptions
from remuslike.demo.plan import GUEST_ADDRESS, PREFIX_LENGTH_LAN, Directories, GuestFiles
from remuslike.demo.topology import topology
from remuslike.image import AGENT_PORT, build_image, host_tsc_khz, kernel_command_line, probe_accelerator

_PROTECTED_LIMIT_S = 120.0
_ANSWER_LIMIT_S = 60.0
_BOOT_LIMIT_S = 60.0
_ATTEMPT_S = 2.0
_POLL_S = 0.1
_STARTED = "started"  # what the agent says when it has
_SEED = 0  # of the data disk's file system


def guest_files() -> GuestFiles:
    """The guest image, without a service: what runs in it is the benchmark's. May build it."""
    image = build_image()
    append = kernel_command_line(addresses=[f"{GUEST_ADDRESS}/{PREFIX_LENGTH_LAN}"], tsc_khz=host_tsc_khz())
    return GuestFiles(image.kernel, image.initrd, image.root, append, probe_accelerator(image))


@dataclass(frozen=True, slots=True)
class ProtectedGuest:
    """A guest that a secondary could take over at any moment."""

    primary: Daemon
    client_namespace: str

    async def start(self, *arguments: str) -> None:
        """Begin a command in the guest, which goes on by itself. Raises MeasurementError."""
        line = f"{shlex.join(arguments)} >/dev/null 2>&1 </dev/null & echo {_STARTED}\n".encode()
        with trio.move_on_after(_BOOT_LIMIT_S):
            while True:
                stream = await self._reach_agent()
                with suppress(trio.BrokenResourceError):  # it is still booting
                    async with stream:
                        await stream.send_all(line)
                        if _STARTED.encode() in await stream.receive_some():
                            return
                await trio.sleep(_POLL_S)
        raise MeasurementError(f"the guest's agent didn't answer within {_BOOT_LIMIT_S:g} s")

    async def _reach_agent(self) -> trio.SocketStream:
        while True:
            # A socket stays in the namespace it was made in, wherever its thread goes.
            netns.pushns(self.client_namespace)
            try:
                socket = trio.socket.socket()
            finally:
                netns.popns()
            try:
                with trio.fail_after(_ATTEMPT_S):
                    await socket.connect((GUEST_ADDRESS, AGENT_PORT))
            except (OSError, trio.TooSlowError):
                socket.close()
                await trio.sleep(_POLL_S)
                continue
            return trio.SocketStream(socket)

    async def samples(self, seconds: float) -> list[Sample]:
        """The checkpoints of the next `seconds`."""
        _, since = await self._samples_from(0)
        await trio.sleep(seconds)
        samples, _ = await self._samples_from(since)
        return samples

    async def _samples_from(self, since: int) -> tuple[list[Sample], int]:
        samples: list[Sample] = []
        while True:
            answer = await self._ask(Samples, "samples", since=since)
            if not answer.samples:
                return samples, answer.next
            samples += answer.samples
            since = answer.next

    async def own_pauses(self, count: int) -> list[float]:
        """QEMU's own stop, save and continue, between checkpoints; ms."""
        return (await self._ask(Pauses, "measure-pause", count=count)).pause_ms

    async def _ask(self, kind: type[Answer], request: str, **arguments: int) -> Answer:
        try:
            return await ask(self.primary.control, kind, request, limit_s=_ANSWER_LIMIT_S, **arguments)
        except (OSError, DaemonError):
            self.primary.process.check_alive()  # its end is the better explanation
            raise


@asynccontextmanager
async def protected_guest(options: DemoOptions, guest: GuestFiles) -> AsyncIterator[ProtectedGuest]:
    """Within the block it is protected; nothing of it is left outside. Raises an error of
    `remuslike.demo.errors`."""
    with (
        tempfile.TemporaryDirectory(prefix="remuslike-bench-") as root,
        topology(getpid()) as network,
        ExitStack() as processes,
    ):
        directories = Directories(Path(root))
        daemons = {}
        for role, namespace in reversed(network.namespaces.hosts.items()):
            daemon = start_daemon(role, namespace, options, _SEED, guest, directories)
            processes.enter_context(daemon.process)
            daemons[role] = daemon
        await _wait_protected(daemons["primary"], daemons["secondary"])
        yield ProtectedGuest(daemons["primary"], network.namespaces.client)


async def _wait_protected(primary: Daemon, secondary: Daemon) -> None:
    with trio.move_on_after(_PROTECTED_LIMIT_S):
        while True:
            for daemon in (primary, secondary):
                daemon.process.check_alive()
            try:
                if (await ask(primary.control, PrimaryStatistics, "statistics")).protected:
                    return
            except OSError:
                pass  # it isn't set up yet
            await trio.sleep(_POLL_S)
    raise DaemonError(
        f"no protected guest within {_PROTECTED_LIMIT_S:g} s\nprimary: {primary.process.log_tail()}"
    )
