"""A QMP client over a connected socket: one command at a time, events to a callback."""

from __future__ import annotations

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

# QEMU answers in milliseconds, and drains its disks within `stop`: one that takes this long is as good as
# dead, and its guest stands still meanwhile.
_ANSWER_LIMIT_S = 10.0


class Qmp:
    """The monitor of one QEMU process.

    `negotiate` first, then `run` in a nursery for as long as the guest lives; `execute` from any
    task. Commands are answered in order, so one lock pairs them with their replies.
    """

    def __init__(self, stream: trio.SocketStream, on_event: Callable[[Event], None]) -> None:
        self._stream = stream
        self._on_event = on_event
        self._lines = LineReader()
        self._received: deque[bytes] = deque()  # lines not yet looked at
        self._lock = trio.Lock()
        self._waiting: tuple[str, trio.Event] | None = None
        self._answer: Reply | Failure | None = None
        self._broken: str | None = None

    async def negotiate(self, timeout_s: float = 30) -> Greeting:
        """Wait for QEMU to be set up, and enter command mode. GuestError if it doesn't come up."""
        with trio.move_on_after(timeout_s):
            greeting = await self._next_message()
            if not isinstance(greeting, Greeting):
                raise GuestError(f"QEMU's monitor began with {greeting}, expected a greeting")
            await self._stream.send_all(encode_command("qmp_capabilities", {}))
            answer = await self._next_message()
            if not isinstance(answer, Reply):
                raise GuestError(f"QEMU refused qmp_capabilities: {answer}")
            return greeting
        raise GuestError(f"QEMU's monitor did not answer within {timeout_s} s")

    async def _next_message(self) -> Message:
        while not self._received:
            self._received.extend(self._lines.receive(await self._receive_some()))
        return parse_message(self._received.popleft())

    async def _receive_some(self) -> bytes:
        try:
            data = await self._stream.receive_some(65536)
        except trio.BrokenResourceError as error:
            raise GuestError("QEMU's monitor broke off") from error
        if not data:
            raise GuestError("QEMU closed its monitor: it ended; its log says why")
        return bytes(data)

    async def run(self) -> None:
        """Read until the monitor closes; then every `execute` fails with GuestError."""
        try:
            while True:
                self._dispatch(await self._next_message())
        except GuestError as error:
            self._broken = str(error)
        finally:
            self._broken = self._broken or "the monitor was closed"
            if self._waiting:
                self._waiting[1].set()

    def _dispatch(self, message: Message) -> None:
        if isinstance(message, Event):
            self._on_event(message)
        elif self._waiting is None or isinstance(message, Greeting):
            raise GuestError(f"QEMU's monitor sent {message}, which answers nothing")
        else:
            self._answer = message
            self._waiting[1].set()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """The value that QEMU returns; GuestError with QEMU's words if it fails or dies."""
        async with self._lock:
            if self._broken:
                raise GuestError(f"{command}: {self._broken}")
            answered = trio.Event()
            self._waiting = (command, answered)
            try:
                with trio.move_on_after(_ANSWER_LIMIT_S) as limit:
                    await self._stream.send_all(encode_command(command, arguments))
                    await answered.wait()
                if limit.cancelled_caught:
                    self._broken = f"QEMU did not answer {command} within {_ANSWER_LIMIT_S:.0f} s"
            except trio.BrokenResourceError as error:
                raise GuestError(f"{command}: QEMU's monitor broke off") from error
            except trio.Cancelled:
                # Its reply may still come and would be taken for the next command's.
                self._broken = self._broken or f"{command} was given up half-way"
                raise
            finally:
                self._waiting = None
            answer, self._answer = self._answer, None
        match answer:
            case Reply():
                return answer.value
            case Failure():
                raise GuestError(f"{command}: QEMU says: {answer.description}")
            case None:
                raise GuestError(f"{command}: {self._broken}")

    async def aclose(self) -> None:
        await self._stream.aclose()
