from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import trio
from diskbuf_fakes import FakeStore
from hypothesis import given, settings
from hypothesis import strategies as st

from diskbuf.arena import SLAB_BYTES_MIN
from diskbuf.buffer import DiskBuffer
from diskbuf.connection import IN_FLIGHT_MAX, Connection
from diskbuf.crowd import Crowd
from diskbuf.endpoint import Endpoint, PlainEndpoint
from diskbuf.errors import (
    ProtocolError,
    RequestError,
    StoreError,
    StoreFullError,
    StoreIOError,
    StoreReadOnlyError,
    StoreShortError,
)
from diskbuf.extents import Bytes
from diskbuf.wire import (
    DRAIN_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    CommandFlag,
    Export,
    NbdError,
    Request,
    Terms,
    export_flags,
    validate_request,
)

SIZE = 4096
TALK_S = 20
"""Far beyond what any conversation takes: a server that hangs fails its test."""


@pytest.fixture(params=["alone", "in a crowd"], autouse=True, scope="module")
def crowd(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every conversation is held by a connection's own thread, and by a leader's."""
    global _crowd
    if request.param == "alone":
        yield
        return
    _crowd = Crowd()
    with _crowd.presence():
        yield
    _crowd = None


_crowd: Crowd | None = None


def header(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)


DISCONNECT = header(Command.DISC)


@dataclass
class Client:
    """The other end of a connection that is being served."""

    socket: trio.socket.SocketType
    store: FakeStore
    buffer: DiskBuffer
    connection: Connection

    @property
    def memory(self) -> bytearray:
        return self.store.image

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
        """Cookie, error and data of the next simple reply; only replies without an error have data."""
        magic, error, cookie = struct.unpack(">IIQ", await self.receive(16))
        assert magic == SIMPLE_REPLY_MAGIC
        return cookie, error, b"" if error else await self.receive(data_bytes)

    async def chunk(self) -> tuple[int, int, bytes]:
        """Cookie, type and payload of the next structured reply, which must be of one chunk."""
        header = struct.unpack(">IHHQI", await self.receive(20))
        assert header[:2] == (STRUCTURED_REPLY_MAGIC, 1)
        return header[3], header[2], await self.receive(header[4])

    async def ask(self, request: bytes, data_bytes: int = 0) -> tuple[int, bytes]:
        await self.send(request)
        _, error, data = await self.reply(data_bytes)
        return error, data

    async def waiting(self, count: int) -> None:
        """Return when so many threads wait in the buffer."""
        while self.buffer.waiting != count:
            await trio.lowlevel.checkpoint()

    async def stalled(self) -> None:
        """Return when the server takes no request until one is answered."""
        while not self.connection.stalled:
            await trio.lowlevel.checkpoint()

    async def entered(self, count: int = 1) -> None:
        """Return when so many more store operations have begun."""
        for _ in range(count):
            assert await trio.to_thread.run_sync(partial(self.store.entered.acquire, timeout=TALK_S))


async def converse(
    talk: Callable[[Client], Awaitable[None]],
    *,
    tail: bytes = b"",
    limit_bytes: int = 1 << 30,
    structured: bool = False,
    size_bytes: int = SIZE,
    in_memory: bool = False,
    endpoint: Callable[[socket.socket], Endpoint] = PlainEndpoint,
) -> None:
    """Serve a holding buffer over a socket pair while `talk(client)` runs; both must come to their end."""
    store = FakeStore(size_bytes)
    store.in_memory = in_memory
    buffer = DiskBuffer(store, limit_bytes=limit_bytes)
    buffer.hold(1)
    ours, theirs = socket.socketpair()
    connection = Connection(
        endpoint(theirs), buffer, terms(size_bytes, structured=structured), "client", tail, _crowd
    )

    async def serve() -> None:
        with theirs:
            await trio.to_thread.run_sync(connection.serve)

    with trio.fail_after(TALK_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.socket.from_stdlib_socket(ours) as client_socket:
                await talk(Client(client_socket, store, buffer, connection))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("diskbuf")] == []


def terms(size_bytes: int = SIZE, *, structured: bool = False) -> Terms:
    contexts = {1: "base:allocation"} if structured else {}
    return Terms("disk", Export(size_bytes, export_flags(read_only=False)), structured, contexts)


async def test_reads_what_was_written() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 10, 5, flags=1, cookie=7) + b"hello")
        assert await client.reply() == (7, 0, b"")
        assert await client.ask(header(Command.FLUSH)) == (0, b"")
        assert await client.ask(header(Command.TRIM, 11, 1)) == (0, b"")
        assert await client.ask(header(Command.WRITE_ZEROES, 13, 1, flags=2)) == (0, b"")
        assert await client.ask(header(Command.READ, 9, 7), 7) == (0, b"\0h\0l\0o\0")
        kinds = [extent.kind.name for extent in client.buffer.held_writes().extents]
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


@pytest.mark.parametrize("opened", [False, True])
async def test_writes_that_come_together_are_each_judged_and_happen_in_order(opened: bool) -> None:
    async def talk(client: Client) -> None:
        if opened:
            await client.buffer.open()
        await client.send(sent)
        answers = [await client.reply() for _ in writes]
        assert answers == [
            (1, 0, b""),
            (2, NbdError.ENOSPC, b""),
            (3, 0, b""),
            (4, NbdError.EINVAL, b""),
            (5, 0, b""),
        ]
        assert await client.reply(7) == (6, 0, b"aabbccc")
        assert bytes(client.store.image[:7]) == (b"aabbccc" if opened else bytes(7))

    writes = [(1, 0, b"aaaa"), (2, SIZE - 1, b"xx"), (3, 2, b"bbbb"), (4, 0, b""), (5, 4, b"ccc")]
    sent = b"".join(
        header(Command.WRITE, offset, len(data), cookie=cookie) + data for cookie, offset, data in writes
    )
    sent += header(Command.READ, 0, 7, cookie=6)
    await converse(talk, in_memory=True)


async def test_of_writes_that_come_together_those_beyond_the_limit_wait() -> None:
    async def talk(client: Client) -> None:
        assert {await client.reply() for _ in range(2)} == {(1, 0, b""), (2, 0, b"")}
        await client.waiting(1)
        client.buffer.prepare()
        assert {await client.reply() for _ in range(2)} == {(3, 0, b""), (4, 0, b"")}
        assert client.buffer.read(0, SIZE) == b"".join(bytes([place]) * 1024 for place in range(4))

    sent = b"".join(
        header(Command.WRITE, place * 1024, 1024, cookie=place + 1) + bytes([place]) * 1024
        for place in range(4)
    )
    await converse(talk, tail=sent, limit_bytes=2048)


class Trickle(PlainEndpoint):
    """An endpoint that gets its bytes one by one."""

    def receive_into(self, target: memoryview) -> int:
        return super().receive_into(target[:1])


async def test_requests_may_come_byte_by_byte() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 2) + b"ab" + header(Command.READ, 0, 2))
        assert (await client.reply())[1] == 0
        assert (await client.reply(2))[2] == b"ab"

    await converse(talk, endpoint=Trickle)


@pytest.mark.parametrize("length", [SLAB_BYTES_MIN - 1, SLAB_BYTES_MIN, 300_000])
@pytest.mark.parametrize("ahead", [0, 28, 1000])
async def test_long_writes_arrive_whole_wherever_the_read_ahead_ends(length: int, ahead: int) -> None:
    """`ahead`: so much of what follows the header is received with it, or, at 0, all."""

    class Parted(PlainEndpoint):
        def receive_into(self, target: memoryview) -> int:
            return super().receive_into(target[: 28 + ahead] if ahead else target)

    async def talk(client: Client) -> None:
        data = random.Random(length).randbytes(length)
        sent = b"".join(header(Command.WRITE, place, length) + data for place in (0, length, 7))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, sent + header(Command.READ, 7, 2 * length - 7))
            for _ in range(3):
                assert await client.reply() == (0, 0, b"")
            _, _, found = await client.reply(2 * length - 7)
        assert found == data + data[7:]

    await converse(talk, endpoint=Parted, size_bytes=1 << 20)


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
            assert await client.reply() == (2, NbdError.ENOSPC, b"")
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


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StoreFullError("full"), NbdError.ENOSPC),
        (StoreReadOnlyError("mounted read-only"), NbdError.EPERM),
        (StoreShortError("truncated"), NbdError.EIO),
        (StoreIOError("the server is lost"), NbdError.EIO),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
async def test_every_request_that_meets_the_store_tells_of_its_failure(
    failure: StoreError, code: NbdError
) -> None:
    async def talk(client: Client) -> None:
        await client.buffer.open()
        client.store.cached = False
        client.store.failure = failure
        for request in (
            header(Command.READ, 0, 1),
            header(Command.WRITE, 0, 1) + b"x",
            header(Command.WRITE, 0, 1, flags=CommandFlag.FUA) + b"x",
            header(Command.TRIM, 0, 512),
            header(Command.WRITE_ZEROES, 0, 512),
            header(Command.FLUSH),
        ):
            assert (await client.ask(request))[0] == code
        client.store.failure = None
        assert await client.ask(header(Command.WRITE, 0, 1) + b"x") == (0, b"")
        assert await client.ask(header(Command.READ, 0, 1), 1) == (0, b"x")

    await converse(talk)


async def test_what_is_held_survives_a_store_that_fails() -> None:
    async def talk(client: Client) -> None:
        assert (await client.ask(header(Command.WRITE, 0, 4) + b"held"))[0] == 0
        client.buffer.seal(1)
        client.store.failure = StoreFullError("full")
        with pytest.raises(StoreFullError):
            await client.buffer.release(1)
        assert await client.ask(header(Command.READ, 0, 4), 4) == (0, b"held")
        assert (await client.ask(header(Command.WRITE, 8, 4) + b"more"))[0] == 0
        client.store.failure = None
        await client.buffer.release(1)
        assert client.store.image[:12] == b"held" + bytes(8)

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
        await client.stalled()
        assert client.connection.in_flight == IN_FLIGHT_MAX
        client.buffer.prepare()
        for _ in range(IN_FLIGHT_MAX + 10):
            assert (await client.reply())[1] == 0

    await converse(talk, limit_bytes=1024)


async def test_goodbye_waits_for_what_is_in_flight() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024) + bytes(1024))
        await client.reply()
        await client.send(header(Command.WRITE, 0, 1, cookie=9) + b"x" + DISCONNECT)
        await client.stalled()
        client.buffer.prepare()
        assert await client.reply() == (9, 0, b"")
        assert await client.socket.recv(1) == b""

    await converse(talk, limit_bytes=1024)


async def test_write_of_a_client_that_hung_up_while_waiting_has_not_happened() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024) + bytes(1024))
        await client.reply()
        await client.send(header(Command.WRITE, 0, 1) + b"x")
        await client.waiting(1)
        client.socket.shutdown(trio.socket.SHUT_WR)
        assert await client.socket.recv(1) == b""
        client.buffer.prepare()
        assert client.buffer.read(0, 1) == b"\0"

    await converse(talk, limit_bytes=1024)


# --- structured replies -----------------------------------------------------------------------------


async def test_structured_reads_are_data_or_a_hole() -> None:
    async def talk(client: Client) -> None:
        await client.ask(header(Command.WRITE, 0, 4) + b"data")
        await client.ask(header(Command.TRIM, 4, 100))
        await client.send(header(Command.READ, 1, 5, cookie=7, flags=CommandFlag.DF))
        assert await client.chunk() == (7, ChunkType.OFFSET_DATA, struct.pack(">Q", 1) + b"ata\0\0")
        await client.send(header(Command.READ, 4, 50, cookie=8))
        assert await client.chunk() == (8, ChunkType.OFFSET_HOLE, struct.pack(">QI", 4, 50))
        client.store.cached = False
        await client.send(header(Command.READ, 2000, 3, cookie=9))
        assert await client.chunk() == (9, ChunkType.OFFSET_DATA, struct.pack(">Q", 2000) + bytes(3))

    await converse(talk, structured=True)


async def test_structured_errors_say_where_and_why() -> None:
    async def talk(client: Client) -> None:
        client.store.cached = False
        client.store.failure = StoreIOError("the disk is broken")
        await client.send(header(Command.READ, 512, 3, cookie=1))
        text = b"the disk is broken"
        expected = struct.pack(">IH", NbdError.EIO, len(text)) + text + struct.pack(">Q", 512)
        assert await client.chunk() == (1, ChunkType.ERROR_OFFSET, expected)
        await client.send(header(Command.WRITE, SIZE, 1, cookie=2) + b"x")
        cookie, kind, payload = await client.chunk()
        assert (cookie, kind) == (2, ChunkType.ERROR)
        assert struct.unpack_from(">I", payload) == (NbdError.ENOSPC,)
        assert b"exceed the export of 4096 bytes" in payload

    await converse(talk, structured=True)


async def test_block_status_tells_held_and_stored() -> None:
    async def status(client: Client, request: bytes) -> list[tuple[int, int]]:
        await client.send(request)
        cookie, kind, payload = await client.chunk()
        assert (cookie, kind) == (0, ChunkType.BLOCK_STATUS)
        assert struct.unpack_from(">I", payload) == (1,)
        return list(struct.iter_unpack(">II", payload[4:]))

    async def talk(client: Client) -> None:
        await client.ask(header(Command.TRIM, 512, 512))
        await client.ask(header(Command.WRITE_ZEROES, 1024, 512, flags=CommandFlag.NO_HOLE))
        whole = await status(client, header(Command.BLOCK_STATUS, 0, SIZE))
        assert whole == [(512, 0), (512, 3), (512, 2), (SIZE - 1536, 0)]
        one = await status(client, header(Command.BLOCK_STATUS, 600, SIZE - 600, flags=CommandFlag.REQ_ONE))
        assert one == [(424, 3)]

    await converse(talk, structured=True)


async def test_zeros_are_fast_while_they_are_held_only() -> None:
    fast = header(Command.WRITE_ZEROES, 0, 512, flags=CommandFlag.FAST_ZERO)

    async def talk(client: Client) -> None:
        assert await client.ask(fast) == (0, b"")
        await client.buffer.open()
        assert await client.ask(fast) == (NbdError.ENOTSUP, b"")
        assert await client.ask(header(Command.CACHE, 0, 512)) == (0, b"")

    await converse(talk)


# --- threads ----------------------------------------------------------------------------------------


async def test_store_operations_of_one_client_run_side_by_side() -> None:
    async def talk(client: Client) -> None:
        await client.buffer.open()
        client.store.stall()
        for cookie in range(10):
            await client.send(header(Command.WRITE, 512 * cookie % 4096, 1, cookie=cookie) + b"x")
        await client.entered(8)
        client.store.proceed()
        assert sorted([(await client.reply())[0] for _ in range(10)]) == list(range(10))

    await converse(talk)


async def test_client_that_takes_no_replies_stalls_nobody_and_can_be_stopped() -> None:
    length = 1 << 20
    sending = threading.Event()

    class Narrow(PlainEndpoint):
        """Has room for a small part of a reply."""

        def __init__(self, client_socket: socket.socket) -> None:
            super().__init__(client_socket)
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)

        def send_all(self, parts: Sequence[Bytes]) -> None:
            if sum(map(len, parts)) > length // 2:  # the leader of a crowd has sent the beginning
                sending.set()
            super().send_all(parts)

    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, length) + bytes(length))
        await client.reply()
        client.buffer.seal(1)
        await client.send(header(Command.READ, 0, length))
        assert await trio.to_thread.run_sync(sending.wait, TALK_S)
        await client.buffer.release(1)
        await trio.to_thread.run_sync(client.buffer.write, 0, b"another's")
        client.buffer.seal(2)
        client.connection.stop()

    await converse(talk, size_bytes=length, endpoint=Narrow)


async def test_stopped_connection_leaves_no_thread_and_no_write_that_waited() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.WRITE, 0, 1024) + bytes(1024))
        await client.reply()
        await client.send((header(Command.WRITE, 0, 1) + b"x") * (IN_FLIGHT_MAX + 1))
        await client.stalled()
        client.connection.stop()
        assert await client.socket.recv(1) == b""
        client.buffer.prepare()
        assert client.buffer.read(0, 1) == b"\0"

    await converse(talk, limit_bytes=1024)


async def test_our_own_defects_end_the_server() -> None:
    async def talk(client: Client) -> None:
        await client.buffer.open()
        client.store.failure = ZeroDivisionError()  # type: ignore[assignment]
        await client.send(header(Command.FLUSH))
        assert await client.socket.recv(1) == b""

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await converse(talk)


# --- bad input --------------------------------------------------------------------------------------

requests = st.builds(
    Request,
    flags=st.sampled_from([0, 0, 0, 1, 2, 3, 4, 0x8000]),
    command=st.sampled_from([0, 1, 1, 3, 4, 5, 6, 7, 0xFFFF]),
    cookie=st.integers(0, 2**64 - 1),
    offset=st.one_of(st.integers(0, SIZE + 8), st.sampled_from([2**63, 2**64 - 1])),
    length=st.integers(0, 64),
)


@settings(deadline=None)  # threads have their turn when the machine lets them
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
            validate_request(request, terms())
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
        assert client.buffer.read(0, SIZE) == disk
        assert client.store.operations == []

    await converse(talk)


@settings(deadline=None)  # threads have their turn when the machine lets them
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


async def test_a_reply_does_not_wait_for_a_payload_that_is_refused() -> None:
    async def talk(client: Client) -> None:
        await client.send(header(Command.FLUSH, cookie=1) + header(Command.WRITE, SIZE, 512, cookie=2))
        assert await client.reply() == (1, 0, b"")
        await client.send(bytes(512))
        assert (await client.reply())[:2] == (2, NbdError.ENOSPC)
        await client.send(DISCONNECT)

    await converse(talk)


async def test_long_writes_go_to_an_open_store_in_memory_as_they_come() -> None:
    length = SLAB_BYTES_MIN

    async def talk(client: Client) -> None:
        await client.buffer.open()
        await client.send(header(Command.WRITE, 1, length, cookie=1) + b"a" * (length - 1))
        while client.memory[length - 1] != ord("a"):
            await trio.lowlevel.checkpoint()
        await client.send(b"z")
        assert await client.reply() == (1, 0, b"")
        assert client.memory[: length + 2] == b"\0" + b"a" * (length - 1) + b"z\0"
        assert client.buffer.take_dirty_chunks().tolist() == [0]
        assert client.buffer.statistics().released_bytes == length
        assert client.store.operations == []

    await converse(talk, size_bytes=2 * length, in_memory=True)


async def begin_long_write(client: Client, length: int) -> None:
    """Of "open" and then "h" throughout; only its first four bytes come, and are in the store."""
    await client.buffer.open()
    await client.send(header(Command.WRITE, 0, length, cookie=1) + b"open")
    while client.memory[:4] != b"open":
        await trio.lowlevel.checkpoint()


async def end_long_write(client: Client, length: int) -> None:
    """The rest comes; all of it is held."""
    await client.send(b"h" * (length - 4))
    assert await client.reply() == (1, 0, b"")
    (held,) = client.buffer.held_writes().extents
    assert (held.offset, held.data) == (0, b"open" + b"h" * (length - 4))


async def test_a_release_does_not_wait_for_a_client_in_the_midst_of_a_long_write() -> None:
    """What has come is in the store, and as unanswered as it is unsafe; all of it belongs to the epoch."""
    length = SLAB_BYTES_MIN

    async def talk(client: Client) -> None:
        await begin_long_write(client, length)
        client.buffer.hold(1)
        client.buffer.write(length, b"held")
        client.buffer.seal(1)
        await client.buffer.release(1)
        await end_long_write(client, length)
        assert client.memory[: length + 4] == b"open" + bytes(length - 4) + b"held"

    await converse(talk, size_bytes=2 * length, in_memory=True)


async def test_a_long_write_that_was_received_while_an_epoch_began_is_of_that_epoch() -> None:
    length = SLAB_BYTES_MIN

    async def talk(client: Client) -> None:
        await begin_long_write(client, length)
        client.buffer.hold(1)  # and what a synchronisation reads now has no more than four bytes of it
        await end_long_write(client, length)

    await converse(talk, size_bytes=2 * length, in_memory=True)


async def test_a_flush_that_failed_before_an_epoch_began_is_told_within_it() -> None:
    async def talk(client: Client) -> None:
        await client.buffer.open()
        client.store.failure = StoreIOError("broken by design")
        with pytest.raises(StoreIOError):
            await client.buffer.flush()  # as somebody else's
        client.store.failure = None
        client.buffer.hold(2)
        assert (await client.ask(header(Command.FLUSH)))[0] == NbdError.EIO
        assert (await client.ask(header(Command.FLUSH)))[0] == 0

    await converse(talk)


async def test_a_client_that_dies_before_a_long_write_has_come_holds_up_no_release() -> None:
    length = SLAB_BYTES_MIN
    buffers: list[DiskBuffer] = []

    async def talk(client: Client) -> None:
        await client.buffer.open()
        buffers.append(client.buffer)
        client.socket.shutdown(trio.socket.SHUT_RD)  # the reply to the flush finds nobody
        await client.send(header(Command.FLUSH) + header(Command.WRITE, 0, length) + b"x")

    with pytest.RaisesGroup(BrokenPipeError, flatten_subgroups=True, allow_unwrapped=True):
        await converse(talk, size_bytes=2 * length, in_memory=True)
    (buffer,) = buffers
    buffer.hold(1)
    buffer.seal(1)
    with trio.fail_after(TALK_S):
        await buffer.release(1)


async def test_garbage_behind_a_reply_that_is_under_way_leaves_no_thread() -> None:
    """A worker that has a reply, too, must not wait for its turn for ever."""
    length = PAYLOAD_BYTES_MAX // 2  # no socket has room for that

    async def talk(client: Client) -> None:
        client.buffer.write(0, bytes(length))
        client.store.cached = False
        client.store.stall()
        asked = header(Command.READ, length, 512) + header(Command.READ, 0, length)
        await client.send(asked + b"garbage!" * 4)
        await client.entered()
        assert await client.socket.recv(1), "the long reply is under way"
        client.socket.close()
        client.store.proceed()

    with pytest.RaisesGroup(
        pytest.RaisesExc((ProtocolError, OSError)), flatten_subgroups=True, allow_unwrapped=True
    ):
        await converse(talk, size_bytes=length + 512)
