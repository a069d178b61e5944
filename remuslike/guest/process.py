"""One QEMU process: started with what it inherits, watched, and ended."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import trio

from remuslike.config import GuestSettings
from remuslike.engine.events import GuestEnd
from remuslike.errors import GuestError, MissingToolError
from remuslike.guest.command import Descriptors, build_command
from remuslike.guest.memory import GuestMemory
from remuslike.guest.qmp import Qmp
from remuslike.guest.qmp_wire import Event
from remuslike.guest.tracker import require_tracker

log = structlog.get_logger()

# What QEMU says on its standard error, of which an error message quotes the end.
_LOG_TAIL_BYTES = 2000


class DeviceState:
    """A memfd that QEMU saves device state into.

    QEMU inherits `writable`, a description of its own: a descriptor set hands out only what matches
    the access mode asked for, which is write-only. The description's offset is shared with us.
    """

    def __init__(self) -> None:
        self._readable = os.memfd_create("remuslike-devices", os.MFD_CLOEXEC)
        self.writable = os.open(f"/proc/self/fd/{self._readable}", os.O_WRONLY | os.O_CLOEXEC)

    def clear(self) -> None:
        os.ftruncate(self.writable, 0)
        os.lseek(self.writable, 0, os.SEEK_SET)

    def read(self) -> bytes:
        return os.pread(self._readable, os.fstat(self._readable).st_size, 0)

    def close(self) -> None:
        os.close(self._readable)
        os.close(self.writable)


class QemuProcess:
    """A started QEMU with its monitor and RAM. `run` must be running while it lives."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        definition: GuestSettings,
        monitor: socket.socket,
        memory: GuestMemory,
        device_state: DeviceState,
        log_path: Path,
        on_end: Callable[[GuestEnd, str], None],
    ) -> None:
        self.definition = definition
        self.qmp = Qmp(monitor, self._on_event)
        self.memory = memory
        self.device_state = device_state
        self.version = ""
        self._process = process
        self._ended = os.pidfd_open(process.pid)
        self._log_path = log_path
        self._on_end = on_end
        self._expected_end = False
        self._resumed_or_gone = trio.Event()
        self._resumed = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Negotiate, then serve the monitor and watch the process until it is gone."""
        try:
            self.version = (await self.qmp.negotiate()).version
        except GuestError as error:
            await self.destroy()
            raise GuestError(f"{error}; QEMU's last words: {self.last_words()}") from error
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.qmp.run)
            task_status.started()
            status = await self._wait()
            self._resumed_or_gone.set()
            if not self._expected_end:
                cause = f"signal {-status}" if status < 0 else f"exit status {status}"
                self._on_end(GuestEnd.DIED, f"QEMU ended with {cause}: {self.last_words()}")

    def _on_event(self, event: Event) -> None:
        match event.name:
            case "RESUME":
                self._resumed = True
                self._resumed_or_gone.set()
            case "SHUTDOWN" if not self._expected_end:
                self._on_end(GuestEnd.SHUTDOWN, str(event.data.get("reason", "for no given reason")))
            case "RESET" | "GUEST_PANICKED" | "WATCHDOG" | "BLOCK_IO_ERROR" | "MEMORY_FAILURE":
                log.warning("guest.event", event_name=event.name, **event.data)

    async def wait_resumed(self) -> bool:
        """Whether the guest began to run for the first time, rather than QEMU ended."""
        await self._resumed_or_gone.wait()
        return self._resumed

    def last_words(self) -> str:
        """The end of QEMU's standard error, on one line."""
        try:
            tail = self._log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return "(none)"
        return " / ".join(tail.split("\n")[-5:]).strip(" /") or "(none)"

    async def _wait(self) -> int:
        """The exit status, once the process is gone; -N for signal N."""
        # A descriptor of its own for each waiter: trio lets one task wait on one.
        ended = os.dup(self._ended)
        try:
            while (status := self._process.poll()) is None:
                await trio.lowlevel.wait_readable(ended)
        finally:
            os.close(ended)
        return status

    async def destroy(self) -> None:
        """Kill it and wait until it is gone. Idempotent."""
        self._expected_end = True
        with trio.CancelScope(shield=True):
            self._process.kill()
            await self._wait()

    def close(self) -> None:
        self.qmp.close()
        os.close(self._ended)
        self.memory.close()
        self.device_state.close()


def start_qemu(
    name: str,
    guest: GuestSettings,
    *,
    taps: Sequence[int],
    disk_sockets: Sequence[Path],
    log_path: Path,
    incoming: int | None,
    on_end: Callable[[GuestEnd, str], None],
) -> QemuProcess:
    """Start QEMU paused, or, with the descriptor that its state will come from, as a standby;
    `QemuProcess.run` comes next.

    It dies with us: the kernel kills it when the thread that started it is gone. So it is started here, in
    the main thread, and not by trio, whose worker threads go after ten idle seconds.
    """
    for tool, package in ((guest.qemu, "qemu-system-x86"), ("setpriv", "util-linux")):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool!r} is not installed; on Debian it is in the package {package}")
    if incoming is None:
        require_tracker(guest)
    memory = GuestMemory(guest.memory_mib)
    device_state = DeviceState()
    ours, theirs = socket.socketpair()
    try:
        descriptors = Descriptors(memory.descriptor, theirs.fileno(), device_state.writable, taps)
        command = build_command(name, guest, descriptors, disk_sockets, standby=incoming is not None)
        inherited = [memory.descriptor, theirs.fileno(), device_state.writable, *taps]
        if incoming is not None:
            inherited.append(incoming)
        with log_path.open("wb") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=inherited,
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        memory.close()
        device_state.close()
        raise GuestError(f"{guest.qemu!r} can't be started: {error}") from error
    finally:
        theirs.close()
    return QemuProcess(process, guest, ours, memory, device_state, log_path, on_end)
