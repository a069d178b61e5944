"""The QEMU end of a monitor, over a socket pair: says what a test has it say, and shows what it was told."""

from __future__ import annotations

import json
import socket
from typing import Any

import trio

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": "Debian"}}}


def connected() -> tuple[socket.socket, FakeMonitor]:
    """A client's socket and the monitor at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return ours, FakeMonitor(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))


class FakeMonitor:
    """Scripted, not clever: each test says what comes next."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._pending = b""

    async def greet(self) -> None:
        """Greet, and take the client into command mode."""
        await self.say(GREETING)
        assert await self.heard() == {"execute": "qmp_capabilities"}
        await self.say({"return": {}})

    async def heard(self) -> Any:
        """The next command."""
        while b"\n" not in self._pending:
            data = await self._stream.receive_some(4096)
            assert data, "the client hung up"
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.say_bytes(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    async def say_bytes(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def answer(self, value: Any) -> dict[str, Any]:
        """Hear a command and return `value` to it; the command."""
        command: dict[str, Any] = await self.heard()
        await self.say({"return": value})
        return command

    async def hang_up(self) -> None:
        await self._stream.aclose()
