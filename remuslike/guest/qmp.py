"""A QMP client over a connected socket: commands one behind the other, events to a callback.

The socket belongs to the event loop, but whoever is in a hurry may wait for an answer without it
(`wait_at_once`): a guest stands still meanwhile, and two changes of task a command would make its pause a
tenth longer.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from remuslike.errors import GuestError
from remuslike.guest.qmp_wire import (
    Event,
    Failure,
    Greeting,
    LineReader,
    Message,
    Reply,
    encode_command,
    parse_message,
)

# QEMU listens once it has the guest's RAM, of which it may have hundreds of GiB to clear; if it ends, that is
# seen at once.
GREETING_LIMIT_S = 120.0
# QEMU answers in milliseconds, and drains its disks within `stop`: one that takes this long is as good as
# dead, and its guest stands still meanwhile.
_ANSWER_LIMIT_S = 10.0
# Nobody has more commands under way than a checkpoint's stop and save, and one beside it (P6).
_COMMANDS_MAX = 8
_RECEIVE_BYTES = 65536


class Command:
    """One that was sent; its answer will come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answer: Reply | Failure | None = None
        self.answered = trio.Event()


class Qmp:
    """The monitor of one QEMU process.

    `negotiate` first, then `run` in a nursery for as long as the guest lives; `execute` from any
    task. QEMU executes commands one by one and answers in order, which pairs them with their answers.
    """

    def __init__(self, monitor: socket.socket, on_event: Callable[[Event], None]) -> None:
        monitor.setblocking(False)
        self._socket = monitor
        self._on_event = on_event
        self._lines = LineReader()
        self._received: deque[bytes] = deque()  # lines not yet looked at
        self._under_way: deque[Command] = deque()
        self._broken: str | None = None
        self._readable = select.poll()
        self._readable.register(monitor, select.POLLIN)

    async def negotiate(self, timeout_s: float = GREETING_LIMIT_S) -> Greeting:
        """Wait for QEMU to be set up, and enter command mode. GuestError if it doesn't come up."""
        with trio.move_on_after(timeout_s):
            greeting = await self._next_message()
            if not isinstance(greeting, Greeting):
                raise GuestError(f"QEMU's monitor began with {greeting}, expected a greeting")
            self._send(encode_command("qmp_capabilities", {}))
            answer = await self._next_message()
            if not isinstance(answer, Reply):
                raise GuestError(f"QEMU refused qmp_capabilities: {answer}")
            return greeting
        raise GuestError(f"QEMU's monitor did not answer within {timeout_s:g} s")

    async def _next_message(self) -> Message:
        while not self._received:
            await trio.lowlevel.wait_readable(self._socket)
            self._receive()
        return parse_message(self._received.popleft())

    async def run(self) -> None:
        """Read until the monitor closes; then every `execute` fails with GuestError."""
        try:
            while self._socket.fileno() >= 0:
                self._dispatch_received()
                await trio.lowlevel.wait_readable(self._socket)
                # Whoever waits at once may have taken what there was.
                self._receive()
        except GuestError as error:
            self._break(str(error))
        except trio.ClosedResourceError:
            pass  # `close`
        finally:
            self._break("the monitor was closed")

    def _break(self, reason: str) -> None:
        """No command is answered any more; the first reason counts."""
        self._broken = self._broken or reason
        while self._under_way:
            self._under_way.popleft().answered.set()

    def _receive(self) -> None:
        """Take what has come. No other task runs between that and its being dispatched."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise GuestError("QEMU's monitor broke off") from error
        if not data:
            raise GuestError("QEMU closed its monitor: it ended; its log says why")
        self._received.extend(self._lines.receive(data))

    def _dispatch_received(self) -> None:
        while self._received:
            self._dispatch(parse_message(self._received.popleft()))

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, Event):
            self._on_event(message)
        elif not self._under_way or isinstance(message, Greeting):
            raise GuestError(f"QEMU's monitor sent {message}, which answers nothing")
        else:
            command = self._under_way.popleft()
            command.answer = message
            command.answered.set()

    def send(self, name: str, **arguments: Any) -> Command:
        """Have QEMU execute a command after those before it; `wait` for its answer. Raises GuestError."""
        if self._broken:
            raise GuestError(f"{name}: {self._broken}")
        assert len(self._under_way) < _COMMANDS_MAX, f"{name} behind {len(self._under_way)} others"
        self._send(encode_command(name, arguments))
        command = Command(name)
        self._under_way.append(command)
        return command

    def _send(self, line: bytes) -> None:
        """A socket has room for hundreds of commands, and QEMU reads."""
        try:
            sent = self._socket.send(line)
        except OSError as error:
            self._break("QEMU's monitor broke off")
            raise GuestError(f"{line.decode().strip()}: QEMU's monitor broke off") from error
        if sent != len(line):
            self._break("QEMU doesn't read its monitor")
            raise GuestError(f"{line[:80].decode()}…: QEMU doesn't read its monitor")

    def wait_at_once(self, command: Command, limit_s: float) -> None:
        """Wait for its answer with the event loop standing still, for `limit_s` at most."""
        until = time.monotonic() + limit_s
        while not command.answered.is_set():
            # What has come by the limit counts, even if we were not running when it did.
            if not self._readable.poll(max(0.0, until - time.monotonic()) * 1e3):
                return
            try:
                self._receive()
                self._dispatch_received()
            except GuestError as error:
                self._break(str(error))

    async def wait(self, command: Command) -> Any:
        """The value that QEMU returns; GuestError with QEMU's words if it fails or dies."""
        if not command.answered.is_set():
            with trio.move_on_after(_ANSWER_LIMIT_S) as limit:
                await command.answered.wait()
            if limit.cancelled_caught:
                self._break(f"QEMU did not answer {command.name} within {_ANSWER_LIMIT_S:.0f} s")
        match command.answer:
            case Reply():
                return command.answer.value
            case Failure():
                raise GuestError(f"{command.name}: QEMU says: {command.answer.description}")
            case None:
                raise GuestError(f"{command.name}: {self._broken}")

    async def execute(self, name: str, **arguments: Any) -> Any:
        """`send` and `wait`."""
        return await self.wait(self.send(name, **arguments))

    def close(self) -> None:
        """From now on every command fails. Idempotent."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._break("the monitor was closed")
