"""The emulated machine of the lab: its process, its console, and the frames to and from its agent."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from remuslike.lab import wire
from remuslike.lab.errors import LabEndedError, LabProtocolError, LabStartError
from remuslike.lab.wire import Frame, WireError

SEND_LIMIT_S = 15.0
"""For the lab to take a frame. Its agent reads whenever we write; longer, and its kernel hangs."""

CONSOLE_TAIL_LINES = 50
"""A kernel's oops, with the line at its head that says what happened."""

_CONSOLE_TAIL_BYTES = 8192
_RECEIVE_BYTES = 1 << 16


class DeadlinePassed(Exception):  # noqa: N818 - it says what happened, not that something is wrong
    """No frame came in time."""


class Machine:
    """A started machine, which has its console on a pipe and its agent behind a socket.

    One that has failed is closed before the error is raised.
    """

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, console: int) -> None:
        """`channel` leads to the agent, `console` is the pipe's read end; both are the machine's now."""
        self.process = process
        self._channel = channel
        self._channel.settimeout(SEND_LIMIT_S)
        self._console = console
        os.set_blocking(console, False)
        self._console_tail = b""
        self._decoder = wire.Decoder()
        self._frames: deque[Frame] = deque()
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._read_channel)
        self._selector.register(console, selectors.EVENT_READ, self._read_console)

    def send(self, data: bytes) -> None:
        """Sends bytes to the agent. Raises LabEndedError."""
        if self.closed:
            raise self.ended("it was closed before")
        try:
            self._channel.sendall(data)
        except OSError as error:
            raise self.ended(f"it takes nothing any more ({error})") from None

    @property
    def closed(self) -> bool:
        """Whether `close` was called, by its owner or by a failure."""
        return self._console < 0

    def ended(self, reason: str) -> LabEndedError:
        """Closes the machine; the error to raise."""
        self.close()
        return LabEndedError(reason, self.console_tail())

    def misunderstood(self, reason: str) -> LabProtocolError:
        """Closes the machine; the error to raise."""
        self.close()
        return LabProtocolError(f"the lab's agent can't be understood: {reason}")

    def next_frame(self, deadline: float) -> Frame:
        """The agent's next frame, waited for until `deadline` (of time.monotonic()); one that has come before
        is never too late.

        Raises DeadlinePassed, LabEndedError, LabProtocolError.
        """
        if self.closed:
            raise self.ended("it was closed before")
        while not self._frames:
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise DeadlinePassed
            for key, _ in ready:
                key.data()
        return self._frames.popleft()

    def console_tail(self) -> str:
        """The last lines of the console so far."""
        lines = self._console_tail.decode(errors="replace").replace("\r", "").strip().splitlines()
        return "\n".join(f"    {line}" for line in lines[-CONSOLE_TAIL_LINES:]) or "    (nothing)"

    def close(self) -> None:
        """Kills the machine if it still runs. Idempotent, never raises."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        if not self.closed:
            # What it has said last is why it ended.
            with suppress(BlockingIOError):
                while self._read_console():
                    pass
            self._selector.close()
            self._channel.close()
            os.close(self._console)
            self._console = -1

    def _read_channel(self) -> None:
        try:
            received = self._channel.recv(_RECEIVE_BYTES)
        except OSError:
            received = b""
        if not received:
            raise self.ended("its machine has ended")
        try:
            self._frames.extend(self._decoder.feed(received))
        except WireError as error:
            raise self.misunderstood(str(error)) from None

    def _read_console(self) -> bool:
        """Whether there was something. At its end nothing is said any more, so it isn't waited for."""
        received = os.read(self._console, _RECEIVE_BYTES)
        self._console_tail = (self._console_tail + received)[-_CONSOLE_TAIL_BYTES:]
        if not received and self._console in self._selector.get_map():
            self._selector.unregister(self._console)
        return bool(received)


def start_machine(command: Callable[[int], Sequence[str]]) -> Machine:
    """Starts what `command` returns for the descriptor of the channel's far end. Raises LabStartError.

    Prerequisite: called in the main thread. The parent-death signal comes when the *thread* ends that forked,
    PR_SET_PDEATHSIG(2const).
    """
    ours, theirs = socket.socketpair()
    console, console_writer = os.pipe()
    arguments = command(theirs.fileno())
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=console_writer,
            stderr=console_writer,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # the terminal's Ctrl-C is for us, and the lab ends with us
        )
    except OSError as error:
        ours.close()
        os.close(console)
        raise LabStartError(arguments[0], error.strerror or str(error)) from None
    finally:
        theirs.close()
        os.close(console_writer)
    return Machine(process, ours, console)
