"""Sessions without contents, and the other end of a link, for the tests of the daemons' doors."""

from __future__ import annotations

import socket
from typing import Any

import trio

from remuslike.engine.handshake import PROTOCOL_VERSION, Hello
from transport import Frame, FrameType, Link

# So slow that no test meets a heartbeat that it didn't ask for.
HEARTBEAT_MS = 1e6

DEFINITION = {"page size": "4096", "guest.memory_mib": "256", "qemu version": "7.2.22"}


def hello(name: str, generation: int = 0, **changes: Any) -> Hello:
    """Of a side that defines the same guest as all others do."""
    fields: dict[str, Any] = {"protocol": PROTOCOL_VERSION, "definition": DEFINITION, **changes}
    return Hello(name=name, generation=generation, **fields)


class FakeSession:
    """Keeps what arrives; raises `failure` when a frame of type SYNC_DISK does."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.frames: list[Frame] = []
        self.failure: Exception = AssertionError("no failure was chosen")
        self.started: list[str] = []

    async def run(self) -> None:
        while True:
            frame = await self.link.receive()
            if frame.type is FrameType.SYNC_DISK:
                raise self.failure
            self.frames.append(frame)

    async def synchronise(self) -> None:
        self.started.append("synchronise")
        await trio.sleep_forever()

    async def send_epochs(self) -> None:
        self.started.append("send_epochs")
        await trio.sleep_forever()


def unused_port() -> int:
    """A TCP port of the loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def connect_link(port: int) -> Link:
    """As a peer connects, over the loopback."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return Link(stream, heartbeat_ms=HEARTBEAT_MS)
