"""The lab from outside: boots it, and has commands run in it.

    with Lab.boot() as lab:
        finished = lab.run(["uname", "-r"], timeout_s=10)

All of it blocks, and is for one thread at a time: the main one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from remuslike.image import build_image, probe_accelerator
from remuslike.lab import wire
from remuslike.lab.errors import (
    CommandTimeoutError,
    LabBootError,
    LabEndedError,
    LabMachineError,
    LabProtocolError,
    LabRequestError,
    OutputLimitError,
)
from remuslike.lab.image import Progress, build_lab_image
from remuslike.lab.machine import DeadlinePassed, Machine, start_machine
from remuslike.lab.qemu import build_lab_command
from remuslike.lab.wire import Frame, Kind, WireError

BOOT_LIMIT_S = 90.0
"""Ten seconds are usual under emulation; the rest is for a host that does something else meanwhile."""

KILL_LIMIT_S = 15.0
"""For a killed command to be gone; longer, and it hangs in the lab's kernel."""

END_LIMIT_S = 5.0
"""For the lab to power itself off."""

OUTPUT_LIMIT_BYTES = 16 << 20
"""What `Lab.run` keeps of one command: a test report has kilobytes, and more than this nobody reads."""

_TAIL_BYTES = 2000
"""How much of its output the error of a command that took too long repeats."""


class Finished(NamedTuple):
    """A command that has ended: its exit status, or minus the number of the signal that ended it, and what
    it wrote to its standard output and standard error, in the order in which it came."""

    status: int
    output: str


class Running:
    """A command that runs in a lab. Iterating waits for what it writes, each part with Kind.OUTPUT or
    Kind.ERRORS; at the end of that `status` is known.

    Iterating raises CommandTimeoutError, LabEndedError, LabProtocolError.
    """

    def __init__(self, machine: Machine, arguments: Sequence[str], timeout_s: float) -> None:
        self.status: int | None = None
        """Of an ended command: its exit status, or minus the number of the signal that ended it."""
        self._machine = machine
        self._arguments = arguments
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._tail = b""

    def __iter__(self) -> Iterator[tuple[Kind, bytes]]:
        return self

    def __next__(self) -> tuple[Kind, bytes]:
        if self.status is not None:
            raise StopIteration
        try:
            frame = self._next_frame(self._deadline)
        except DeadlinePassed:
            self.kill()
            tail = self._tail.decode(errors="replace")
            raise CommandTimeoutError(self._arguments, self._timeout_s, tail) from None
        if frame is None:
            raise StopIteration
        self._tail = (self._tail + frame.payload)[-_TAIL_BYTES:]
        return frame.kind, frame.payload

    def kill(self) -> None:
        """Returns when the command is gone, if it wasn't before; what it wrote meanwhile is dropped.

        Raises LabEndedError, LabProtocolError.
        """
        if self.status is not None:
            return
        self._machine.send(wire.encode(Frame(Kind.KILL)))
        deadline = time.monotonic() + KILL_LIMIT_S
        try:
            while self._next_frame(deadline) is not None:
                pass
        except DeadlinePassed:
            reason = f"a command is still there {KILL_LIMIT_S:g} s after it was killed"
            raise self._machine.ended(reason) from None

    def _next_frame(self, deadline: float) -> Frame | None:
        """The next output; None when the command has ended."""
        frame = self._machine.next_frame(deadline)
        match frame.kind:
            case Kind.OUTPUT | Kind.ERRORS:
                return frame
            case Kind.EXIT:
                try:
                    self.status = wire.decode_status(frame.payload)
                except WireError as error:
                    raise self._machine.misunderstood(str(error)) from None
                return None
            case _:
                raise self._machine.misunderstood(f"it sends {frame.kind.name} while a command runs")


class Lab:
    """A lab whose agent is ready. Leaving its context powers it off."""

    def __init__(self, machine: Machine, boot_limit_s: float = BOOT_LIMIT_S) -> None:
        """Waits for the agent in `machine`. Raises LabBootError, and the machine is gone."""
        self._machine = machine
        self._running: Running | None = None
        try:
            self._begin(boot_limit_s)
        except BaseException:
            machine.close()
            raise

    @classmethod
    def boot(cls, cache_directory: Path | None = None, *, progress: Progress = lambda line: None) -> Lab:
        """Boots a lab, with the kernel out of the cache or out of Debian's archive.

        Raises LabStartError, LabBootError, ImageError. Prerequisite: called in the main thread; the lab's
        machine dies with it.
        """
        image = build_lab_image(cache_directory, progress=progress)
        accelerator = probe_accelerator(build_image(cache_directory, progress=progress), cache_directory)
        return cls(start_machine(lambda channel: build_lab_command(image, accelerator, channel)))

    def start(
        self,
        arguments: Sequence[str],
        timeout_s: float,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Starts a command as root, in our directory and with our environment unless others are given.

        `REMUSLIKE_LAB=1` is added to the environment; standard input is empty. When the command ends, what it
        left running is killed; files, modules and namespaces stay until the lab ends. A command that can't be
        started has status 127 (not found) or 126, as in env(1). One that was started before and hasn't ended
        is killed first: a lab runs one at a time.

        Raises LabRequestError, LabEndedError, LabProtocolError.
        """
        request = wire.Request(
            tuple(arguments),
            str(directory or Path.cwd()),
            {**(os.environ if environment is None else environment), "REMUSLIKE_LAB": "1"},
        )
        try:
            encoded = wire.encode(Frame(Kind.RUN, wire.encode_request(request)))
        except WireError as error:
            raise LabRequestError(f"{arguments[0]} with its arguments and environment: {error}") from None
        if self._running is not None:
            self._running.kill()
        self._machine.send(encoded)
        self._running = Running(self._machine, request.arguments, timeout_s)
        return self._running

    def run(
        self,
        arguments: Sequence[str],
        timeout_s: float,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """Runs a command to its end, otherwise as `start` does. Raises an error of the tree of LabError."""
        running = self.start(arguments, timeout_s, directory=directory, environment=environment)
        kept = bytearray()
        for _, written in running:
            if len(kept) + len(written) > OUTPUT_LIMIT_BYTES:
                running.kill()
                raise OutputLimitError(arguments, OUTPUT_LIMIT_BYTES)
            kept += written
        assert running.status is not None
        return Finished(running.status, kept.decode(errors="replace"))

    def close(self) -> None:
        """Powers the lab off. Idempotent, never raises."""
        deadline = time.monotonic() + END_LIMIT_S
        try:
            self._machine.send(wire.encode(Frame(Kind.END)))
            while True:
                self._machine.next_frame(deadline)
        except LabMachineError:
            # What was asked for, or it was gone before.
            pass
        except DeadlinePassed:
            self._machine.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, limit_s: float) -> None:
        """What guest/init.sh reads, and the agent's first word."""
        try:
            self._machine.send(f"{sys.executable}\n{Path(__file__).parents[2]}\n".encode())
            first = self._machine.next_frame(time.monotonic() + limit_s)
        except DeadlinePassed:
            reason = f"its agent isn't ready after {limit_s:g} s"
        except LabProtocolError as error:
            reason = str(error)
        except LabEndedError:
            reason = "its machine has ended"
        else:
            if first.kind is Kind.READY:
                return
            reason = f"its agent begins with {first.kind.name}"
        self._machine.close()
        raise LabBootError(reason, self._machine.console_tail())
