"""The lab from outside: boots it, and has commands run in it.

    with Lab.boot() as lab:
        finished = lab.run(["uname", "-r"], timeout_s=10)

All of it blocks, and is for one thread at a time: the main one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from remuslike.image import build_image, probe_accelerator
from remuslike.lab import wire
from remuslike.lab.command import build_lab_command
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
from remuslike.lab.wire import Frame, Kind, WireError

BOOT_LIMIT_S = 90.0
"""Ten seconds are usual under emulation; the rest is for a host that does something else meanwhile."""

KILL_LIMIT_S = 15.0
"""For a killed command to be gone; longer, and it hangs in the lab's kernel."""

END_LIMIT_S = 5.0
"""For the lab to power itself off."""

OUTPUT_LIMIT_BYTES = 16 << 20
"""What is kept of one command: a test report has kilobytes, and more than this nobody reads."""

_TIMEOUT_OUTPUT_BYTES = 2000

OnOutput = Callable[[Kind, bytes], None]
"""Is given what a command writes, as it comes: Kind.OUTPUT or Kind.ERRORS, and the bytes."""


class Finished(NamedTuple):
    """A command that has ended: its exit status, or minus the number of the signal that ended it, and what
    it wrote to its standard output and standard error, in the order in which it came."""

    status: int
    output: str


class Lab:
    """A lab whose agent is ready. Leaving its context powers it off."""

    def __init__(self, machine: Machine, boot_limit_s: float = BOOT_LIMIT_S) -> None:
        """Waits for the agent in `machine`. Raises LabBootError, and the machine is gone."""
        self._machine = machine
        self._gone = False
        try:
            self._begin(boot_limit_s)
        except BaseException:
            self.kill()
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

    def run(
        self,
        arguments: Sequence[str],
        timeout_s: float,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
    ) -> Finished:
        """Runs a command as root, in our directory and with our environment unless others are given.

        `REMUSLIKE_LAB=1` is added to the environment; standard input is empty. When the command ends, what it
        left running is killed; files, modules and namespaces stay until the lab ends. With `on_output`
        nothing is kept, and `Finished.output` is empty. A command that can't be started has status 127 (not
        found) or 126, as in env(1).

        Raises LabRequestError, CommandTimeoutError and OutputLimitError, after which the lab can go on, and
        LabEndedError and LabProtocolError, after which, as after an error out of `on_output`, it is gone.
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
        if self._gone:
            raise LabEndedError("it was ended before", self._machine.console_tail())
        try:
            return self._run(encoded, arguments, timeout_s, on_output)
        except (CommandTimeoutError, OutputLimitError):
            raise
        except BaseException:
            self.kill()
            raise

    def close(self) -> None:
        """Powers the lab off. Idempotent."""
        if not self._gone:
            deadline = time.monotonic() + END_LIMIT_S
            try:
                self._machine.send(wire.encode(Frame(Kind.END)))
                while True:
                    self._machine.next_frame(deadline)
            except (LabMachineError, DeadlinePassed):
                # The first is what was asked for; after the second it is killed.
                self.kill()

    def kill(self) -> None:
        """Ends the lab at once. Idempotent."""
        self._gone = True
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
        raise LabBootError(reason, self._machine.console_tail())

    def _run(
        self, encoded: bytes, arguments: Sequence[str], timeout_s: float, on_output: OnOutput | None
    ) -> Finished:
        deadline = time.monotonic() + timeout_s
        kept = bytearray()
        self._machine.send(encoded)
        try:
            while (frame := self._machine.next_frame(deadline)).kind is not Kind.EXIT:
                if frame.kind not in (Kind.OUTPUT, Kind.ERRORS):
                    raise LabProtocolError(f"the lab's agent sends {frame.kind.name} while a command runs")
                if on_output is not None:
                    on_output(frame.kind, frame.payload)
                elif len(kept) + len(frame.payload) > OUTPUT_LIMIT_BYTES:
                    self._kill_command()
                    raise OutputLimitError(arguments, OUTPUT_LIMIT_BYTES)
                else:
                    kept += frame.payload
        except DeadlinePassed:
            self._kill_command()
            tail = kept[-_TIMEOUT_OUTPUT_BYTES:].decode(errors="replace")
            raise CommandTimeoutError(arguments, timeout_s, tail) from None
        try:
            return Finished(wire.decode_status(frame.payload), kept.decode(errors="replace"))
        except WireError as error:
            raise LabProtocolError(f"the lab's agent can't be understood: {error}") from None

    def _kill_command(self) -> None:
        """Returns when the command is gone; what it wrote meanwhile is dropped."""
        deadline = time.monotonic() + KILL_LIMIT_S
        self._machine.send(wire.encode(Frame(Kind.KILL)))
        try:
            while self._machine.next_frame(deadline).kind is not Kind.EXIT:
                pass
        except DeadlinePassed:
            raise LabEndedError(
                f"a command is still there {KILL_LIMIT_S:g} s after it was killed",
                self._machine.console_tail(),
            ) from None
