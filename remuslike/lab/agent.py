"""Inside the lab: runs the commands that come over the channel, one at a time.

Started by `guest/init.sh` as `python3 -S -m remuslike.lab.agent DESCRIPTOR`; stands on the standard library
alone, so that it is up at once in an emulated machine. What a command leaves running dies with it: the agent
adopts orphans (PR_SET_CHILD_SUBREAPER(2const)), so they are all its descendants.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

from remuslike.lab import wire
from remuslike.lab.wire import Frame, Kind, WireError

NOT_FOUND_STATUS, NOT_EXECUTABLE_STATUS = 127, 126
"""As env(1) and the shells have them."""

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_RECEIVE_BYTES = 1 << 16


class Agent:
    """Serves the channel `descriptor`, open for reading and writing, until END or until nobody is there."""

    def __init__(self, descriptor: int) -> None:
        self._channel = descriptor
        self._decoder = wire.Decoder()
        self._frames: deque[Frame] = deque()
        self._over = False

    def serve(self) -> None:
        """Answers requests. Raises WireError for what is no request."""
        self._send(Frame(Kind.READY))
        while not self._over:
            if not self._frames:
                self._receive()
            elif (frame := self._frames.popleft()).kind is Kind.RUN:
                self._send(Frame(Kind.EXIT, wire.encode_status(self._run(frame.payload))))

    def _run(self, payload: bytes) -> int:
        request = wire.decode_request(payload)
        try:
            process = subprocess.Popen(
                request.arguments,
                cwd=request.directory,
                env=request.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            self._send(Frame(Kind.ERRORS, f"remuslike lab: {error.filename}: {error.strerror}\n".encode()))
            return NOT_FOUND_STATUS if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE_STATUS
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            outputs = {process.stdout.fileno(): Kind.OUTPUT, process.stderr.fileno(): Kind.ERRORS}
            self._attend(process, outputs)
            end_descendants()
            # Nobody is left who could write: what is in the pipes is all, and their end follows it.
            while outputs:
                self._forward(outputs, select.select(list(outputs), [], [])[0])
        return process.returncode

    def _attend(self, process: subprocess.Popen[bytes], outputs: dict[int, Kind]) -> None:
        """Forwards what the command writes until it ends, by itself or because nobody wants it any more."""
        ended = os.pidfd_open(process.pid)
        try:
            while process.poll() is None:
                if self._unwanted():
                    process.kill()
                    process.wait()
                    return
                readable, _, _ = select.select([ended, self._channel, *outputs], [], [])
                self._forward(outputs, readable)
                if self._channel in readable:
                    self._receive()
        finally:
            os.close(ended)

    def _forward(self, outputs: dict[int, Kind], readable: list[int]) -> None:
        for descriptor in outputs.keys() & set(readable):
            if written := os.read(descriptor, wire.OUTPUT_CHUNK_BYTES):
                self._send(Frame(outputs[descriptor], written))
            else:
                del outputs[descriptor]

    def _unwanted(self) -> bool:
        """Whether the running command is to be killed. It may have been asked for together with that."""
        return self._over or any(frame.kind is Kind.KILL for frame in self._frames)

    def _receive(self) -> None:
        received = os.read(self._channel, _RECEIVE_BYTES)
        for frame in self._decoder.feed(received):
            if frame.kind not in (Kind.RUN, Kind.KILL, Kind.END):
                raise WireError(f"{frame.kind.name} is not for the agent")
            self._over = self._over or frame.kind is Kind.END
            self._frames.append(frame)
        self._over = self._over or not received

    def _send(self, frame: Frame) -> None:
        left = memoryview(wire.encode(frame))
        while left:
            left = left[os.write(self._channel, left) :]


def adopt_orphans() -> None:
    """From now on a descendant whose parent ends becomes a child of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def end_descendants() -> None:
    """Kills every descendant. Prerequisites: `adopt_orphans()`, and a process with one thread."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    # Those of a child that has just ended are children now: there may be some as long as there were any.
    while process_ids := [int(word) for word in children.read_text().split()]:
        for process_id in process_ids:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        for process_id in process_ids:
            with suppress(ChildProcessError):
                os.waitpid(process_id, 0)


def main() -> None:
    """Serve the channel whose descriptor is the first argument."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    adopt_orphans()
    Agent(descriptor).serve()


if __name__ == "__main__":
    main()
