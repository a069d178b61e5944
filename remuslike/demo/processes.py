"""Processes in network namespaces: started so that they can't outlive the demo, ended all at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import trio

from remuslike.demo.errors import DaemonError, DemoEnvironmentError

LOG_TAIL_LINES = 12
END_LIMIT_S = 10.0
_END_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Program:
    """A command line in a network namespace; its standard error, and without `pipes` its standard
    output, goes to `log`. With `pipes` standard input and output are the demo's."""

    name: str
    namespace: str
    arguments: tuple[str, ...]
    log: Path
    pipes: bool = False


class Process:
    """A started program; leaving its context ends it."""

    def __init__(self, program: Program) -> None:
        """Raises DemoEnvironmentError when it can't be started.

        Prerequisite: called in the main thread. The parent-death signal comes when the *thread* ends
        that forked, PR_SET_PDEATHSIG(2const), and a worker thread's end is nobody's death.
        """
        self.program = program
        pipe = subprocess.PIPE if program.pipes else None
        with program.log.open("ab") as log:
            try:
                self.popen = subprocess.Popen(
                    # `ip netns exec` shows the process the namespace's own /sys/class/net as well.
                    [
                        *("setpriv", "--pdeathsig", "KILL", "--"),
                        *("ip", "netns", "exec", program.namespace, *program.arguments),
                    ],
                    stdin=pipe or subprocess.DEVNULL,
                    stdout=pipe or log,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C is for the demo, which then ends it
                )
            except OSError as error:
                raise DemoEnvironmentError(f"{program.name} can't be started: {error}") from error

    def status(self) -> int | None:
        """Its exit status (minus the signal that ended it), or None while it lives."""
        return self.popen.poll()

    async def wait(self) -> int:
        """Its exit status, when it has ended."""
        if (status := self.status()) is not None:
            return status
        descriptor = os.pidfd_open(self.popen.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        return self.popen.wait()

    def check_alive(self) -> None:
        """Raises DaemonError, with the end of its log, when it has ended."""
        status = self.status()
        if status is not None:
            raise DaemonError(f"{self.program.name} ended early with status {status}. {self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of its log, in one text."""
        try:
            with self.program.log.open(encoding="utf-8", errors="replace") as log:
                tail = deque(log, LOG_TAIL_LINES)
        except OSError as error:
            return f"Its log can't be read: {error}"
        if not tail:
            return "It logged nothing."
        return "The end of its log:\n" + "".join(tail).rstrip()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


def all_processes() -> list[int]:
    """Every process id of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def processes_in(namespace: Path) -> list[int]:
    """The process ids whose network namespace is the one mounted at `namespace`."""
    try:
        wanted = namespace.stat()
    except FileNotFoundError:
        return []
    found: list[int] = []
    for process_id in all_processes():
        with suppress(OSError):  # it ended meanwhile, or is a zombie
            status = Path(f"/proc/{process_id}/ns/net").stat()
            if (status.st_ino, status.st_dev) == (wanted.st_ino, wanted.st_dev):
                found.append(process_id)
    return found


class Victims:
    """The processes of a host, found and pinned before the moment when they die together."""

    def __init__(self, namespace: Path) -> None:
        self._namespace = namespace
        self._found = processes_in(namespace)
        self._descriptors: list[int] = []
        for process_id in self._found:
            with suppress(ProcessLookupError):
                self._descriptors.append(os.pidfd_open(process_id))

    @property
    def count(self) -> int:
        """How many were found."""
        return len(self._found)

    def kill(self) -> None:
        """SIGKILL to all, one system call each; then to what they may just have forked."""
        for descriptor in self._descriptors:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        kill_processes_in(self._namespace)

    def close(self) -> None:
        """Give the descriptors back. Idempotent."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def kill_processes_in(namespace: Path) -> list[int]:
    """SIGKILL to every process of a namespace, which may still be ending on return."""
    process_ids = processes_in(namespace)
    for process_id in process_ids:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    return process_ids


def end_processes_in(namespace: Path) -> None:
    """SIGKILL to every process of a namespace until none is left.

    Raises DemoEnvironmentError when one of them won't end: it hangs in the kernel.
    """
    limit = time.monotonic() + END_LIMIT_S
    while process_ids := kill_processes_in(namespace):
        if time.monotonic() > limit:
            raise DemoEnvironmentError(
                f"processes {process_ids} in {namespace} don't end within {END_LIMIT_S:g} s of SIGKILL;"
                " look at their /proc/PID/stack"
            )
        time.sleep(_END_POLL_S)
