"""Several clients of one server, whose connections serve each other."""

from __future__ import annotations

import errno
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.connection import Connection
from diskbuf.crowd import Crowd
from diskbuf.endpoint import PlainEndpoint
from diskbuf.memorystore import MemoryStore
from diskbuf.wire import Export, Terms, export_flags

SIZE = 4 << 20
BLOCK_BYTES = 4096
LONG_BYTES = 128 << 10
WAIT_S = 30
"""Far beyond what anything takes: what hangs fails its test."""
READ, WRITE, DISC, FLUSH = 0, 1, 2, 3


def header(command: int, offset: int = 0, length: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, command, 0, offset, length)


@dataclass
class Client:
    stream: trio.SocketStream

    async def ask(self, request: bytes, data_bytes: int = 0) -> bytes:
        """The data of the reply, which must be no error."""
        await self.stream.send_all(request)
        received = b""
        while len(received) < 16 + data_bytes:
            part = await self.stream.receive_some()
            assert part, "the server hung up"
            received += part
        assert received[:8] == struct.pack(">II", 0x67446698, 0)
        return received[16:]


@asynccontextmanager
async def connected(count: int) -> AsyncIterator[tuple[list[Client], DiskBuffer]]:
    """So many clients of one buffer in one crowd; all have to be gone at the end."""
    buffer = DiskBuffer(MemoryStore(SIZE), limit_bytes=1 << 30)
    buffer.hold(1)
    crowd = Crowd()
    terms = Terms("disk", Export(SIZE, export_flags(read_only=False)))
    clients = []

    async def serve(theirs: socket.socket) -> None:
        def run() -> None:
            with suppress(BrokenPipeError):
                Connection(PlainEndpoint(theirs), buffer, terms, "client", b"", crowd).serve()

        with theirs:
            await trio.to_thread.run_sync(run, abandon_on_cancel=True)

    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                ours, theirs = socket.socketpair()
                clients.append(Client(trio.SocketStream(trio.socket.from_stdlib_socket(ours))))
                nursery.start_soon(serve, theirs)
            for client in [*clients, *clients]:  # now all are there, and then all have joined
                await client.ask(header(FLUSH))
            try:
                yield clients, buffer
            finally:
                for client in clients:
                    client.stream.socket.close()  # and its threads find that out, whatever they wait for


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_each_client_reads_what_it_wrote_whatever_the_others_do() -> None:
    """Short and long payloads, in turns of chance, so that they join and leave all the time."""
    seed = 7

    async def work(client: Client, number: int) -> None:
        chance = random.Random(seed * 100 + number)
        start = number * LONG_BYTES
        for step in range(60):
            length = chance.choice([BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES, LONG_BYTES])
            payload = bytes([chance.randrange(256)]) * length
            await client.ask(header(WRITE, start, length) + payload)
            assert await client.ask(header(READ, start, length), length) == payload, (seed, number, step)
        await client.stream.send_all(header(DISC))

    async with connected(8) as (clients, buffer):
        async with trio.open_nursery() as nursery:
            for number, client in enumerate(clients):
                nursery.start_soon(work, client, number)
        assert buffer.statistics().held_bytes == 8 * LONG_BYTES


async def test_whoever_leads_may_leave() -> None:
    before = descriptors()
    async with connected(4) as (clients, _):
        while clients:
            for client in clients:
                await client.ask(header(FLUSH))
            clients.pop(0).stream.socket.close()
    assert descriptors() == before, "descriptors are left"


async def test_a_client_that_dies_before_its_reply_leaves_no_thread() -> None:
    async with connected(3) as (clients, _):
        dying, *others = clients
        dying.stream.socket.shutdown(trio.socket.SHUT_RD)
        await dying.stream.send_all(header(READ, 0, BLOCK_BYTES))
        for client in others:
            await client.ask(header(FLUSH))


async def test_where_the_kernel_watches_no_more_sockets_everyone_is_served_by_himself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        def __init__(self) -> None:
            self.closed = False

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        def close(self) -> None:
            self.closed = True

    made: list[Full] = []

    def epoll() -> Full:
        made.append(Full())
        return made[-1]

    monkeypatch.setattr("diskbuf.crowd.select.epoll", epoll)
    async with connected(3) as (clients, _):
        for client in clients:
            await client.ask(header(FLUSH))
    assert made
    assert all(one.closed for one in made)


async def test_a_client_that_takes_no_replies_holds_up_itself_only() -> None:
    reads = 64  # of a quarter of the disk each: no socket has room for that

    async with connected(3) as (clients, _):
        stuck, *others = clients
        await stuck.stream.send_all(header(READ, 0, SIZE // 4) * reads)
        for _ in range(20):
            for client in others:
                await client.ask(header(WRITE, 0, BLOCK_BYTES) + bytes(BLOCK_BYTES))
        length = reads * (16 + SIZE // 4)
        while length:
            length -= len(await stuck.stream.receive_some())
