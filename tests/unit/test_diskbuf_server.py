from __future__ import annotations

import logging
import random
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from diskbuf_fakes import FakeStore
from fakes.certificate import HOST, make_certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from diskbuf.buffer import DiskBuffer
from diskbuf.errors import ExportError, SocketError, SocketInUseError
from diskbuf.negotiation import OPTION_MAGIC
from diskbuf.server import CONNECTIONS_MAX, Clients, serve_nbd_tcp, serve_nbd_unix

GREETING_BYTES = 18
WRITE, FLUSH = 1, 3
READ = struct.pack(">IHHQQI", 0x25609513, 0, 0, 5, 0, 8)
ABORT, LIST, STARTTLS = 2, 3, 5
ACK, ERR_POLICY, ERR_TLS_REQD = 1, (1 << 31) + 2, (1 << 31) + 5
WAIT_S = 20
"""Far beyond what anything takes: what hangs fails its test."""
EXPORT_NAME = struct.pack(">IQII4s", 3, OPTION_MAGIC, 1, 4, b"disk")


def disk() -> DiskBuffer:
    buffer = DiskBuffer(FakeStore(4096), limit_bytes=1 << 20)
    buffer.hold(1)
    return buffer


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_nbd_unix, path, {"disk": disk()})
        yield path
        nursery.cancel_scope.cancel()


async def read_back(stream: trio.abc.Stream) -> None:
    """Negotiate and do one read, to see that the server is well."""
    await stream.send_all(EXPORT_NAME + READ)
    received = b""
    while len(received) < GREETING_BYTES + 10 + 16 + 8:
        received += await stream.receive_some()
    assert received[-24:] == struct.pack(">IIQ8x", 0x67446698, 0, 5)


async def ask(stream: trio.abc.Stream, request: bytes, data_bytes: int = 0) -> bytes:
    """Send a request; the data of its reply, which must be no error."""
    await stream.send_all(request)
    received = b""
    while len(received) < 16 + data_bytes:
        received += await stream.receive_some()
    assert received[:8] == struct.pack(">II", 0x67446698, 0)
    return received[16:]


async def test_serves_and_removes_its_socket(tmp_path: Path) -> None:
    async with serving(tmp_path / "nbd.sock") as path:
        assert path.stat().st_mode & 0o777 == 0o600
        async with await trio.open_unix_socket(str(path)) as stream:
            await read_back(stream)
    assert not path.exists()


async def test_a_flush_covers_what_was_answered_on_every_connection(tmp_path: Path) -> None:
    """What CAN_MULTI_CONN promises, where it costs something: in `open`."""
    store = FakeStore(4096)
    buffer = DiskBuffer(store, limit_bytes=1 << 20)
    await buffer.open()
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_nbd_unix, tmp_path / "nbd.sock", {"disk": buffer})
            streams = [await trio.open_unix_socket(str(tmp_path / "nbd.sock")) for _ in range(3)]
            for stream in streams:
                await read_back(stream)
            writer, flusher, reader = streams
            await ask(writer, struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 0, 0, 4) + b"mine")
            await ask(flusher, struct.pack(">IHHQQI", 0x25609513, 0, FLUSH, 0, 0, 0))
            assert store.operations == [("write", 0, b"mine"), ("sync",)]
            assert await ask(reader, READ, 8) == b"mine" + bytes(4)
            for stream in streams:
                await stream.aclose()
            nursery.cancel_scope.cancel()


async def test_takes_over_a_socket_that_a_crash_left(tmp_path: Path) -> None:
    path = tmp_path / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
    assert path.exists()
    async with serving(path), await trio.open_unix_socket(str(path)) as stream:
        await read_back(stream)


async def test_refuses_the_socket_of_a_living_server(tmp_path: Path) -> None:
    async with serving(tmp_path / "nbd.sock") as path:
        with pytest.raises(SocketInUseError, match=r"nbd\.sock: in use by a living server"):
            await serve_nbd_unix(path, {})
        async with await trio.open_unix_socket(str(path)) as stream:
            await read_back(stream)


async def test_leaves_the_socket_of_its_successor_alone(tmp_path: Path) -> None:
    async with serving(tmp_path / "nbd.sock") as path:
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_refuses_export_names_that_nbd_has_not(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="more than 4096 bytes"):
        await serve_nbd_unix(tmp_path / "nbd.sock", {"x" * 5000: disk()})
    assert not (tmp_path / "nbd.sock").exists()


async def test_refuses_other_files_and_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(SocketError, match="something else at this path"):
        await serve_nbd_unix(tmp_path / "file", {})
    assert (tmp_path / "file").read_text() == "precious"
    for path in (tmp_path / "absent" / "nbd.sock", tmp_path / ("x" * 120)):
        with pytest.raises(SocketError, match="writable path"):
            await serve_nbd_unix(path, {})


@asynccontextmanager
async def connected(clients: Clients) -> AsyncIterator[trio.SocketStream]:
    """A client of `clients`, which must have done with it once it has hung up."""
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.serve, trio.SocketStream(theirs))
        async with trio.SocketStream(ours) as stream:
            yield stream


async def test_garbage_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    clients = Clients({"disk": disk()})
    async with connected(clients) as stream, connected(clients) as other:
        await stream.send_all(struct.pack(">I", 3) + b"GET / HTTP/1.1\r\n")
        while await stream.receive_some():
            pass
        await read_back(other)
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "disconnected: option magic is 0x474554202f204854" in warnings[0]


async def test_client_that_leaves_without_a_word_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    clients = Clients({"disk": disk()})
    async with connected(clients):
        pass
    async with connected(clients) as stream:
        await read_back(stream)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_silent_client_is_disconnected(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Clients({"disk": disk()}, negotiation_s=0.1)) as stream:
        await stream.send_all(struct.pack(">I", 3))
        assert len(await stream.receive_some()) == GREETING_BYTES
        assert await stream.receive_some() == b""
    assert "no export was chosen within 0.1 s" in caplog.text


async def test_connections_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    clients = Clients({"disk": disk()})
    async with trio.open_nursery() as nursery:
        streams = []
        for _ in range(CONNECTIONS_MAX):
            ours, theirs = trio.socket.socketpair()
            nursery.start_soon(clients.serve, trio.SocketStream(theirs))
            streams.append(trio.SocketStream(ours))
        await wait_all_tasks_blocked()
        async with connected(clients) as refused:
            assert await refused.receive_some() == b""
        await streams.pop().aclose()
        while clients.connected == CONNECTIONS_MAX:
            await trio.lowlevel.checkpoint()
        async with connected(clients) as admitted:
            await read_back(admitted)
        for stream in streams:
            await stream.aclose()
    assert caplog.text.count("refused: 32 connections are open") == 1


async def test_our_own_defects_are_not_swallowed() -> None:
    store = FakeStore(4096)
    store.cached = False
    store.failure = ZeroDivisionError()  # type: ignore[assignment]
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with connected(Clients({"disk": DiskBuffer(store, limit_bytes=4096)})) as stream:
            await stream.send_all(EXPORT_NAME + READ)
            while await stream.receive_some():
                pass


@pytest.mark.parametrize("before", [b"", struct.pack(">I", 3), EXPORT_NAME, EXPORT_NAME + READ[:5]])
async def test_cancelled_server_ends_at_once_wherever_its_clients_are(tmp_path: Path, before: bytes) -> None:
    with trio.fail_after(WAIT_S):
        async with serving(tmp_path / "nbd.sock") as path:
            stream = await trio.open_unix_socket(str(path))
            await stream.send_all(before)
            assert len(await stream.receive_some()) >= GREETING_BYTES
    with trio.fail_after(WAIT_S):
        while await stream.receive_some():
            pass
    await stream.aclose()


async def test_cancelled_server_leaves_no_write_that_waited(tmp_path: Path) -> None:
    buffer = DiskBuffer(FakeStore(4096), limit_bytes=512)
    buffer.hold(1)
    buffer.write(0, bytes(512))
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_nbd_unix, tmp_path / "nbd.sock", {"disk": buffer})
            stream = await trio.open_unix_socket(str(tmp_path / "nbd.sock"))
            await stream.send_all(EXPORT_NAME + struct.pack(">IHHQQI", 0x25609513, 0, 1, 5, 0, 1) + b"x")
            while buffer.waiting != 1:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    await stream.aclose()
    buffer.prepare()
    assert buffer.read(0, 1) == b"\0"


# --- TCP and TLS ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    key, certificates = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates, key)
    return context


@asynccontextmanager
async def serving_tls(buffer: DiskBuffer, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """The port of a server that ends with the block."""
    tls = server_context(certificate)
    async with trio.open_nursery() as nursery:
        ((_, port),) = await nursery.start(partial(serve_nbd_tcp, "127.0.0.1", 0, {"disk": buffer}, tls=tls))
        yield port
        nursery.cancel_scope.cancel()


class BlockingClient:
    """An NBD client in a thread, over TCP; with a certificate, also over TLS."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        assert len(self.receive(GREETING_BYTES)) == GREETING_BYTES
        self.socket.sendall(struct.pack(">I", 3))

    def receive(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            part = self.socket.recv(length - len(received))
            assert part, f"the server hung up after {len(received)} of {length} bytes"
            received += part
        return received

    def close(self) -> None:
        self.socket.close()

    def option(self, option: int, data: bytes = b"") -> int:
        """The type of the option's first reply."""
        self.socket.sendall(struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data)
        _, _, reply, length = struct.unpack(">QIII", self.receive(20))
        self.receive(length)
        return reply

    def start_tls(self, certificate: tuple[Path, Path]) -> None:
        assert self.option(STARTTLS) == ACK
        context = ssl.create_default_context(cafile=certificate[1])
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # or no end lacks its close_notify
        self.socket = context.wrap_socket(self.socket, server_hostname=HOST, suppress_ragged_eofs=False)

    def choose(self, name: bytes) -> None:
        self.socket.sendall(struct.pack(">QII", OPTION_MAGIC, 1, len(name)) + name)
        self.receive(10)

    def ask(self, command: int, offset: int, length: int, payload: bytes = b"") -> tuple[int, bytes]:
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 5, offset, length) + payload)
        _, error, _ = struct.unpack(">IIQ", self.receive(16))
        return error, self.receive(length) if command == 0 and not error else b""


async def test_tcp_in_the_clear_if_asked_for() -> None:
    def talk(port: int) -> None:
        with closing(BlockingClient(port)) as client:
            assert client.option(STARTTLS) == ERR_POLICY
            client.choose(b"disk")
            assert client.ask(1, 0, 4, b"over") == (0, b"")
            assert client.ask(0, 0, 4) == (0, b"over")

    async with trio.open_nursery() as nursery:
        ((host, port),) = await nursery.start(
            partial(serve_nbd_tcp, "127.0.0.1", 0, {"disk": disk()}, tls=None)
        )
        assert host == "127.0.0.1"
        with pytest.raises(SocketInUseError, match=f"port {port}: in use"):
            await serve_nbd_tcp("127.0.0.1", port, {}, tls=None)
        await trio.to_thread.run_sync(talk, port)
        nursery.cancel_scope.cancel()


async def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SocketError, match=r"address 192\.0\.2\.1, port 10809"):
        await serve_nbd_tcp("192.0.2.1", 10809, {}, tls=None)


async def test_tls_is_required_where_it_is_offered(certificate: tuple[Path, Path]) -> None:
    def talk(port: int) -> None:
        with closing(BlockingClient(port)) as client:
            assert client.option(LIST) == ERR_TLS_REQD
            client.start_tls(certificate)
            client.choose(b"disk")
            data = random.Random(7).randbytes(1 << 20)
            assert client.ask(1, 1000, len(data), data) == (0, b"")
            assert client.ask(0, 1000, len(data)) == (0, data)
            assert client.ask(0, 2 << 20, 1) == (22, b"")
            client.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 5, 0, 0))
            assert client.socket.recv(1) == b""

    buffer = DiskBuffer(FakeStore(2 << 20), limit_bytes=64 << 20)
    buffer.hold(1)
    async with serving_tls(buffer, certificate) as port:
        await trio.to_thread.run_sync(talk, port)


async def test_a_tls_client_that_gives_up_is_said_goodbye_to(certificate: tuple[Path, Path]) -> None:
    def talk(port: int) -> None:
        with closing(BlockingClient(port)) as client:
            client.start_tls(certificate)
            assert client.option(ABORT) == ACK
            assert client.socket.recv(1) == b"", "without close_notify this fails as a truncation would"

    async with serving_tls(disk(), certificate) as port:
        await trio.to_thread.run_sync(talk, port)


async def test_tls_client_may_wait_while_its_connection_works(certificate: tuple[Path, Path]) -> None:
    """A reply from a worker gets through while the receiving thread waits for the client."""

    def talk(port: int) -> None:
        with closing(BlockingClient(port)) as client:
            client.start_tls(certificate)
            client.choose(b"disk")
            assert client.ask(1, 0, 512, bytes(512)) == (0, b"")
            assert client.ask(1, 0, 1, b"x") == (0, b"")

    buffer = DiskBuffer(FakeStore(4096), limit_bytes=512)
    buffer.hold(1)
    async with serving_tls(buffer, certificate) as port:
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as clients:
                clients.start_soon(trio.to_thread.run_sync, talk, port)
                while buffer.waiting != 1:
                    await trio.lowlevel.checkpoint()
                buffer.prepare()


@pytest.mark.parametrize("garbage", [b"", b"GET / HTTP/1.1\r\n\r\n"])
async def test_client_that_fails_at_tls_hurts_itself_only(
    certificate: tuple[Path, Path], garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def talk(port: int) -> None:
        with closing(BlockingClient(port)) as client:
            assert client.option(STARTTLS) == ACK
            client.socket.sendall(garbage)
            with suppress(OSError):  # it hung up without a look at the rest
                client.socket.shutdown(socket.SHUT_WR)
                while client.socket.recv(4096):
                    pass

    async with serving_tls(disk(), certificate) as port:
        with trio.fail_after(WAIT_S):
            await trio.to_thread.run_sync(talk, port)
    assert re.search(r"NBD client of 127.0.0.1, port \d+ disconnected: TLS handshake failed", caplog.text)


async def test_cancelled_server_leaves_a_tls_handshake(certificate: tuple[Path, Path]) -> None:
    with trio.fail_after(WAIT_S):
        async with serving_tls(disk(), certificate) as port:
            client = await trio.to_thread.run_sync(BlockingClient, port)
            assert await trio.to_thread.run_sync(client.option, STARTTLS) == ACK
    client.close()


@settings(deadline=None)  # threads have their turn when the machine lets them
@given(st.binary(max_size=300), st.sampled_from([b"", struct.pack(">I", 3), EXPORT_NAME]))
async def test_random_bytes_do_no_harm(data: bytes, before: bytes) -> None:
    buffer = disk()
    ours, theirs = trio.socket.socketpair()
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Clients({"disk": buffer}).serve, trio.SocketStream(theirs))
            with ours:
                await ours.send(before + data)
                ours.shutdown(socket.SHUT_WR)
                while await ours.recv(4096):
                    pass
    assert buffer._store.operations == []
