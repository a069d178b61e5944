from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from diskbuf_fakes import FakeStore
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from diskbuf.buffer import DiskBuffer
from diskbuf.errors import SocketError, SocketInUseError
from diskbuf.server import CONNECTIONS_MAX, Clients, serve_nbd_unix
from diskbuf.wire import OPTION_MAGIC

GREETING_BYTES = 18
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
    await stream.send_all(EXPORT_NAME + struct.pack(">IHHQQI", 0x25609513, 0, 0, 5, 0, 8))
    received = b""
    while len(received) < GREETING_BYTES + 10 + 16 + 8:
        received += await stream.receive_some()
    assert received[-24:] == struct.pack(">IIQ8x", 0x67446698, 0, 5)


async def test_serves_and_removes_its_socket(tmp_path: Path) -> None:
    async with serving(tmp_path / "nbd.sock") as path:
        assert path.stat().st_mode & 0o777 == 0o600
        async with await trio.open_unix_socket(str(path)) as stream:
            await read_back(stream)
    assert not path.exists()


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


async def test_silent_client_is_disconnected(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(Clients({"disk": disk()})) as stream:
        await stream.send_all(struct.pack(">I", 3))
        assert len(await stream.receive_some()) == GREETING_BYTES
        assert await stream.receive_some() == b""
    assert "no export was chosen within 10 s" in caplog.text


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
        await wait_all_tasks_blocked()
        async with connected(clients) as admitted:
            await read_back(admitted)
        for stream in streams:
            await stream.aclose()
    assert caplog.text.count("refused: 32 connections are open") == 1


async def test_our_own_defects_are_not_swallowed() -> None:
    buffer = DiskBuffer(FakeStore(4096), limit_bytes=4096)
    buffer.hold(1)
    buffer.on_pressure(lambda _: 1 / 0)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with connected(Clients({"disk": buffer})) as stream:
            write = struct.pack(">IHHQQI", 0x25609513, 0, 1, 5, 0, 4096) + bytes(4096)
            await stream.send_all(EXPORT_NAME + write)
            while await stream.receive_some():
                pass


@given(st.binary(max_size=300), st.sampled_from([b"", struct.pack(">I", 3), EXPORT_NAME]))
async def test_random_bytes_do_no_harm(data: bytes, before: bytes) -> None:
    buffer = disk()
    ours, theirs = trio.socket.socketpair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Clients({"disk": buffer}).serve, trio.SocketStream(theirs))
            with ours:
                await ours.send(before + data)
                ours.shutdown(socket.SHUT_WR)
                while await ours.recv(4096):
                    pass
    assert buffer._store.operations == []
