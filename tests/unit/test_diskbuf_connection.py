from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import trio
from diskbuf_fakes import FakeStore
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from diskbuf.buffer import DiskBuffer
from diskbuf.connection import IN_FLIGHT_MAX, Connection
from diskbuf.errors import ProtocolError, RequestError, StoreFullError, StoreIOError
from diskbuf.wire import (
    DRAIN_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Command,
    NbdError,
    Request,
    validate_request,
)

SIZE = 4096
TALK_S = 20
"""Far beyond what any conversation takes: a server that hangs fails its test."""


def header(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


DISCONNECT = header(Command.DISC)


@dataclass
class Client:
    """The other end of a connection that is being served."""

    socket: trio.socket.SocketType
    store: FakeStore
    buffer: DiskBuffer

    async def send(self, data: bytes) -> None:
        while data:
            data = data[await self.socket.send(data) :]

    async def receive(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            part = await self.socket.recv(length - len(received))
            assert part, f"the server hung up after {len(received)} of {length} bytes"
            received += part
        return received

    async def reply(self, data_bytes: int = 0) -> tuple[int, int, bytes]:
        """Cookie, error and data of the next reply; only replies without an error have data."""
        magic, error, cookie = struct.unpack(">IIQ", await self.receive(16))
        assert magic == 0x67446698
        return cookie, error, b"" if error else await self.receive(data_bytes)

    async def ask(self, request: bytes, data_bytes: int = 0) -> tuple[int, bytes]:
        await self.send(request)
        _, error, data = await self.reply(data_bytes)
        return error, data


async def converse(
    talk: Callable[[Client], Awaitable[None]], *, tail: bytes = b"", limit_bytes: int = 1 << 30
) -> None:
    """Serve a holding buffer over a socket pair while `talk(client)` runs; both must come to their end."""
    store = FakeStore(SIZE)
    buffer = DiskBuffer(store, limit_bytes=limit_bytes)
    buffer.hold(1)
    ours, theirs = trio.socket.socketpair()

    async def serve() -> None:
        with theirs:
            await Connection(theirs, buffer, "client", tail).serve()

    with trio.fail_after(TALK_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with ours:
                await talk(Client(ours, store, buffer))


async def test_reads_what_was_written() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 10, 5, flags=1, cookie=7) + b"hello")
        assert await client.reply() == (7, 0, b"")
        assert await client.ask(header(Command.FLUSH)) == (0, b"")
        assert await client.ask(header(Command.TRIM, 11, 1)) == (0, b"")
        assert await client.ask(header(Command.WRITE_ZEROES, 13, 1, flags=2)) == (0, b"")
        assert await client.ask(header(Command.READ, 9, 7), 7) == (0, b"\0h\0l\0o\0")
        kinds = [extent.kind.name for extent in client.buffer._overlay.open_map.extents]
        assert kinds == ["DATA", "HOLE", "DATA", "ZERO", "DATA"]
        assert client.store.operations == []
        await client.send(DISCONNECT)
        assert await client.socket.recv(1) == b""

    await converse(talk)


async def test_requests_that_came_with_the_negotiation_are_served() -> None:
    async def talk(client: Client) -> None:
        assert await client.reply() == (1, 0, b"")
        assert await client.reply(4) == (2, 0, b"tail")

    sent = header(Command.WRITE, 0, 4, cookie=1) + b"tail" + header(Command.READ, 0, 4, cookie=2)
    await converse(talk, tail=sent)


async def test_header_may_come_byte_by_byte() -> None:
    async def talk(client: Client) -> None:
        for byte in header(Command.WRITE, 0, 2) + b"ab" + header(Command.READ, 0, 2):
            await client.send(bytes([byte]))
            await wait_all_tasks_blocked()
        assert (await client.reply())[1] == 0
        assert (await client.reply(2))[2] == b"ab"

    await converse(talk)


async def test_refused_write_is_skipped_and_the_next_request_served() -> None:
    async def talk(client: Client) -> None:
        too_long = PAYLOAD_BYTES_MAX + 1

        async def send() -> None:
            await client.send(header(Command.WRITE, SIZE - 1, 2, cookie=1) + b"xx")
            await client.send(header(Command.WRITE, 0, too_long, cookie=2) + bytes(too_long))
            await client.send(header(Command.READ, 0, 2, cookie=3))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await client.reply() == (1, NbdError.ENOSPC, b"")
            assert await client.reply() == (2, NbdError.EINVAL, b"")
            assert await client.reply(2) == (3, 0, b"\0\0")

    await converse(talk)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\0" * 28, "request magic"),
        (header(Command.READ)[:27], "after 27 bytes of a request header"),
        (header(Command.WRITE, 0, 100) + b"x" * 99, "after 99 of a write's 100 bytes"),
        (header(Command.WRITE, SIZE, 100) + b"x" * 99, "with 1 bytes of a refused write to come"),
        (header(Command.WRITE, 0, DRAIN_BYTES_MAX + 1), "too long to be skipped"),
    ],
)
async def test_garbage_ends_the_connection_and_changes_nothing(sent: bytes, message: str) -> None:
    async def talk(client: Client) -> None:
        await client.send(sent)
        client.socket.shutdown(trio.socket.SHUT_WR)
        assert await client.socket.recv(1) == b""
        assert client.buffer.statistics().held_items == 0

    with pytest.RaisesGroup(
        pytest.RaisesExc(ProtocolError, match=message), flatten_subgroups=True, allow_unwrapped=True
    ):
        await converse(talk)


async def test_store_errors_become_error_values() -> None:
    async def talk(client: Client) -> None:
        await client.buffer.open()
        client.store.failure = StoreFullError("full")
        assert (await client.ask(header(Command.WRITE, 0, 1) + b"x"))[0] == NbdError.ENOSPC
        client.store.failure = StoreIOError("broken")
        client.store.cached = False
        assert (await client.ask(header(Command.READ, 0, 1)))[0] == NbdError.EIO
        assert (await client.ask(header(Command.FLUSH)))[0] == NbdError.EIO
        client.buffer.discard()
        assert (await client.ask(header(Command.WRITE, 0, 1) + b"x"))[0] == NbdError.EPERM
        assert (await client.ask(header(Command.TRIM, 0, 1)))[0] == NbdError.EPERM

    await converse(talk)


async def test_force_unit_access_is_synchronised_when_open() -> None:
    async def talk(client: Client) -> None:
        await client.buffer.open()
        assert await client.ask(header(Command.WRITE, 0, 4, flags=1) + b"safe") == (0, b"")
        assert client.store.operations == [("write", 0, b"safe"), ("sync",)]

    await converse(talk)


async def test_slow_request_does_not_hold_up_others() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024, cookie=1) + bytes(1024))
        assert await client.reply() == (1, 0, b"")
        await client.send(
            header(Command.WRITE, 0, 4, cookie=2) + b"late" + header(Command.READ, 0, 4, cookie=3)
        )
        assert await client.reply(4) == (3, 0, bytes(4))
        client.buffer.prepare()
        assert await client.reply() == (2, 0, b"")

    await converse(talk, limit_bytes=1024)


async def test_requests_in_flight_are_bounded() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024) + bytes(1024))
        await client.reply()
        await client.send((header(Command.WRITE, 0, 1) + b"x") * (IN_FLIGHT_MAX + 10) + DISCONNECT)
        await wait_all_tasks_blocked()
        assert client.buffer._waiting.statistics().tasks_waiting == IN_FLIGHT_MAX
        client.buffer.prepare()
        for _ in range(IN_FLIGHT_MAX + 10):
            assert (await client.reply())[1] == 0

    await converse(talk, limit_bytes=1024)


async def test_goodbye_waits_for_what_is_in_flight() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024) + bytes(1024))
        await client.reply()
        await client.send(header(Command.WRITE, 0, 1, cookie=9) + b"x" + DISCONNECT)
        await wait_all_tasks_blocked()
        client.buffer.prepare()
        assert await client.reply() == (9, 0, b"")
        assert await client.socket.recv(1) == b""

    await converse(talk, limit_bytes=1024)


async def test_write_of_a_client_that_hung_up_while_waiting_has_not_happened() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024) + bytes(1024))
        await client.reply()
        await client.send(header(Command.WRITE, 0, 1) + b"x")
        await wait_all_tasks_blocked()
        client.socket.shutdown(trio.socket.SHUT_WR)
        assert await client.socket.recv(1) == b""
        client.buffer.prepare()
        assert await client.buffer.read(0, 1) == b"\0"

    await converse(talk, limit_bytes=1024)


requests = st.builds(
    Request,
    flags=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 0x8000]),
    command=st.sampled_from([0, 1, 1, 3, 4, 5, 6, 7, 0xFFFF]),
    cookie=st.integers(0, 2**64 - 1),
    offset=st.one_of(st.integers(0, SIZE + 8), st.sampled_from([2**63, 2**64 - 1])),
    length=st.integers(0, 64),
)


@given(st.lists(requests, max_size=20), st.integers(0, 255), st.integers(1, 200))
async def test_request_grammar_against_a_model(asked: list[Request], fill: int, piece_bytes: int) -> None:
    disk = bytearray(SIZE)
    sent = bytearray()
    expected: list[tuple[int, int, bytes]] = []
    for number, request in enumerate(asked):
        payload = bytes([(fill + number) % 256]) * request.payload_bytes
        sent += header(
            request.command, request.offset, request.length, flags=request.flags, cookie=request.cookie
        )
        sent += payload
        try:
            validate_request(request, SIZE, read_only=False)
        except RequestError as error:
            expected.append((request.cookie, error.code, b""))
            continue
        place = slice(request.offset, request.offset + request.length)
        data = bytes(disk[place]) if request.command == Command.READ else b""
        if request.command in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES):
            disk[place] = payload or bytes(request.length)
        expected.append((request.cookie, 0, data))

    async def talk(client: Client) -> None:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(sent), piece_bytes):
                    await client.send(bytes(sent[start : start + piece_bytes]))
                await client.send(DISCONNECT)

            nursery.start_soon(send)
            for cookie, error, data in expected:
                assert await client.reply(len(data)) == (cookie, error, data)
        assert await client.socket.recv(1) == b""
        assert await client.buffer.read(0, SIZE) == disk
        assert client.store.operations == []

    await converse(talk)


@given(st.lists(st.one_of(st.binary(max_size=60), st.just(header(Command.WRITE, 0, 8))), max_size=5))
async def test_random_bytes_end_with_a_protocol_error_at_worst(parts: list[bytes]) -> None:
    async def talk(client: Client) -> None:
        with trio.fail_after(10):
            await client.send(b"".join(parts))
            client.socket.shutdown(trio.socket.SHUT_WR)
            while await client.socket.recv(4096):
                pass
        assert client.store.operations == []

    try:
        await converse(talk)
    except* ProtocolError:
        pass
