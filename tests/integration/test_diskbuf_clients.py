"""Real NBD clients, unchanged, against a disk buffer on a unix socket."""

from __future__ import annotations

import json
import random
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from fakes.certificate import HOST, make_certificate

from diskbuf import DiskBuffer, FileStore, serve_nbd_tcp, serve_nbd_unix
from diskbuf.memorystore import MemoryStore

nbd = pytest.importorskip("nbd", reason="libnbd's Python binding (python3-libnbd) is not installed")

MIB = 1 << 20
SIZE = 8 << 20
CLIENT_S = 60
"""What a client may take before the test gives up; none needs more than a second."""
_EPOCH_S = 0.005


def requires(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@dataclass
class Disk:
    image: Path
    store: FileStore
    buffer: DiskBuffer
    socket: Path
    nursery: trio.Nursery
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _ended: trio.Event = field(default_factory=trio.Event)

    async def serve(self) -> None:
        await self.nursery.start(self._serve)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        with self._scope:
            await serve_nbd_unix(self.socket, {"disk": self.buffer}, task_status=task_status)
        self._ended.set()

    async def restart(self) -> None:
        """The server, not what it serves: all clients are disconnected."""
        self._scope.cancel()
        await self._ended.wait()
        await self.serve()

    @property
    def uri(self) -> str:
        return f"nbd+unix:///disk?socket={self.socket}"

    @asynccontextmanager
    async def epochs(self) -> AsyncIterator[None]:
        """Within the block writes are released every few milliseconds, and at its end all of them."""
        self.buffer.hold(1)
        last = 0

        async def work() -> None:
            nonlocal last
            while True:
                await trio.sleep(_EPOCH_S)
                with trio.CancelScope(shield=True):
                    last += 1
                    await self.checkpoint(last)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            yield
            nursery.cancel_scope.cancel()
        await self.checkpoint(last + 1)

    async def checkpoint(self, epoch: int) -> None:
        self.buffer.prepare()
        self.buffer.seal(epoch)
        await self.buffer.release(epoch)


@asynccontextmanager
async def serving(tmp_path: Path, limit_bytes: int = 64 << 20) -> AsyncIterator[Disk]:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    store = FileStore.open(image)
    buffer = DiskBuffer(store, limit_bytes=limit_bytes)
    try:
        async with trio.open_nursery() as nursery:
            disk = Disk(image, store, buffer, tmp_path / "nbd.sock", nursery)
            await disk.serve()
            with trio.fail_after(CLIENT_S):
                yield disk
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.decode()


@requires("nbdinfo")
async def test_nbdinfo_sees_the_export(tmp_path: Path) -> None:
    async with serving(tmp_path) as disk:
        listed = json.loads(await run("nbdinfo", "--json", "--list", disk.uri))
    (export,) = listed["exports"]
    assert listed["protocol"] == "newstyle-fixed"
    assert (export["export-name"], export["export-size"]) == ("disk", SIZE)
    able = {"can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache", "can_df"}
    able.add("can_multi_conn")
    assert all(export[name] for name in able)
    assert not export["is_read_only"]
    assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
    assert export["block_size_maximum"] == 32 << 20
    assert export["contexts"] == ["base:allocation"]


@requires("qemu-io")
async def test_qemu_writes_reach_the_image_at_the_release(tmp_path: Path) -> None:
    def words(*commands: str) -> list[str]:
        return [word for command in commands for word in ("-c", command)]

    async with serving(tmp_path) as disk:
        disk.buffer.hold(1)
        await run(
            "qemu-io",
            "-f",
            "raw",
            disk.uri,
            *words("write -P 0x5a 1000 70000", "write -z 4096 8192", "discard 20480 4096", "flush"),
            *words("write -f -P 0x11 1M 64k", "read -P 0x5a 1000 3096", "read -P 0 4096 8192"),
            *words("read -P 0 20480 4096", "read -P 0x5a 24576 46424", "read -P 0x11 1M 64k"),
        )
        assert not any(disk.image.read_bytes())
        await disk.checkpoint(1)
        written = bytearray(SIZE)
        written[1000:71000] = b"\x5a" * 70000
        written[4096:12288] = bytes(8192)
        written[20480:24576] = bytes(4096)
        written[1 << 20 : (1 << 20) + 65536] = b"\x11" * 65536
        assert disk.image.read_bytes() == written


@requires("qemu-img")
@requires("nbdcopy")
async def test_whole_images_go_in_and_out(tmp_path: Path) -> None:
    seed = 20081116
    source = tmp_path / "source.img"
    generator = random.Random(seed)
    parts = [
        generator.randbytes(65536) if generator.random() < 0.5 else bytes(65536) for _ in range(SIZE >> 16)
    ]
    source.write_bytes(b"".join(parts))
    async with serving(tmp_path) as disk:
        disk.buffer.hold(1)
        await run("nbdcopy", source, disk.uri)
        compare = ("qemu-img", "compare", "-f", "raw", "-F", "raw", source)
        assert "identical" in await run(*compare, disk.uri), f"seed {seed}"
        await disk.checkpoint(1)
        assert "identical" in await run(*compare, disk.uri), f"seed {seed}"
        copy = tmp_path / "copy.img"
        await run("nbdcopy", disk.uri, copy)
        assert copy.read_bytes() == source.read_bytes() == disk.image.read_bytes(), f"seed {seed}"


@requires("nbdcopy")
@requires("nbdinfo")
async def test_holes_are_seen_and_kept(tmp_path: Path) -> None:
    source = tmp_path / "source.img"
    with source.open("wb") as file:
        file.truncate(SIZE)
        file.seek(1 << 20)
        file.write(b"d" * (1 << 20))
    async with serving(tmp_path) as disk:
        disk.buffer.hold(1)
        await run("nbdcopy", source, disk.uri)
        held = json.loads(await run("nbdinfo", "--map", "--json", disk.uri))
        await disk.checkpoint(1)
        released = json.loads(await run("nbdinfo", "--map", "--json", disk.uri))
        before, data, after = ([part[key] for key in ("offset", "length", "type")] for part in released)
        assert [before, data, after] == [[0, MIB, 3], [MIB, MIB, 0], [2 * MIB, SIZE - 2 * MIB, 3]]
        assert held == released
        await run("nbdcopy", disk.uri, tmp_path / "copy.img")
    assert disk.image.stat().st_blocks * 512 <= 2 * MIB
    assert (tmp_path / "copy.img").read_bytes() == source.read_bytes()


@requires("nbddump")
async def test_nbddump_shows_what_is_held(tmp_path: Path) -> None:
    async with serving(tmp_path) as disk:
        disk.buffer.hold(1)
        disk.buffer.write(16, b"sixteen bytes in")
        dumped = await run("nbddump", disk.uri)
    assert "sixteen bytes in" in dumped
    assert dumped.splitlines()[0].startswith("0000000000: 00 00")


@requires("nbdsh")
async def test_nbdsh_finds_its_writes_through_another_connection(tmp_path: Path) -> None:
    script = "h.pwrite(b'from a shell', 1000, nbd.CMD_FLAG_FUA); h.flush()"
    # It is a script of the system's Python, which has libnbd, whatever other Python comes first here.
    nbdsh = ("env", "PATH=/usr/bin:/bin", "nbdsh")
    async with serving(tmp_path) as disk:
        disk.buffer.hold(1)
        await run(*nbdsh, "-u", disk.uri, "-c", script)
        found = await run(*nbdsh, "-u", disk.uri, "-c", "print(h.pread(12, 1000))")
    assert found == "bytearray(b'from a shell')\n"


@requires("fio")
@pytest.mark.parametrize("mode", ["holding", "open"])
@pytest.mark.parametrize("how", ["--rw=randwrite --bs=4k", "--rw=randrw --bs=512", "--rw=write --bs=256k"])
async def test_fio_verifies_what_it_wrote(tmp_path: Path, how: str, mode: str) -> None:
    """A checksum in every block; epochs come and go meanwhile."""
    async with serving(tmp_path) as disk:
        command = ["fio", "--name=verified", "--ioengine=nbd", f"--uri={disk.uri}", *how.split()]
        command += ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randseed=20081118"]
        command += [f"--size={SIZE}", "--iodepth=16"]
        if mode == "open":
            await disk.buffer.open()
            told = await run(*command)
        else:
            async with disk.epochs():
                told = await run(*command)
            assert disk.buffer.statistics().held_items == 0
    assert "err= 0" in told


class QemuIo:
    """qemu-io, which is told one command after another."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process

    async def ask(self, command: str) -> str:
        """Send a command; what qemu-io says to it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        await self._process.stdin.send_all(command.encode() + b"\n")
        said = b""
        while b"ops;" not in said and b"rror" not in said and b"ailed" not in said:
            received = await self._process.stdout.receive_some()
            assert received, f"qemu-io has ended: {said!r}"
            said += received
        return said.decode()


@requires("qemu-io")
@pytest.mark.parametrize("mode", ["holding", "open"])
async def test_qemu_waits_for_a_server_that_comes_back(tmp_path: Path, mode: str) -> None:
    """As a guest's disk does, with reconnect-delay: a server's restart is a pause and no error."""
    async with serving(tmp_path) as disk:
        if mode == "open":
            await disk.buffer.open()
        else:
            disk.buffer.hold(1)
        server = f"server.type=unix,server.path={disk.socket}"
        address = f"driver=nbd,{server},export=disk,reconnect-delay={CLIENT_S}"
        command = ["qemu-io", "--image-opts", address]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process: trio.Process = await disk.nursery.start(partial(trio.run_process, command, **streams))
        client = QemuIo(process)
        assert "wrote 65536/65536" in await client.ask("write -P 0x11 0 64k")
        await disk.restart()
        assert "wrote 65536/65536" in await client.ask("write -P 0x22 32k 64k")
        assert "read 32768/32768" in await client.ask("read -P 0x11 0 32k")
        await disk.restart()
        assert "read 65536/65536" in await client.ask("read -P 0x22 32k 64k")
        assert process.stdin is not None
        await process.stdin.aclose()
        await process.wait()
        assert disk.buffer.read(0, 98304) == b"\x11" * 32768 + b"\x22" * 65536


@requires("nbdinfo")
async def test_tls_as_libnbd_speaks_it(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    store = MemoryStore(SIZE)
    disk = DiskBuffer(store, limit_bytes=64 << 20)
    disk.hold(1)

    def talk(uri: str) -> None:
        handle = nbd.NBD()
        handle.set_uri_allow_local_file(True)
        handle.connect_uri(uri)
        assert handle.get_tls_negotiated()
        data = random.Random(7).randbytes(3 << 20)
        handle.pwrite(data, 777)
        assert handle.pread(len(data), 777) == data
        handle.shutdown()

    with trio.fail_after(CLIENT_S):
        async with trio.open_nursery() as nursery:
            ((_, port),) = await nursery.start(
                partial(serve_nbd_tcp, "127.0.0.1", 0, {"disk": disk}, tls=tls)
            )
            secret = f"nbds://{HOST}:{port}/disk?tls-certificates={tmp_path}"
            await trio.to_thread.run_sync(talk, secret)
            with pytest.raises(nbd.Error, match="TLS"):
                await trio.to_thread.run_sync(nbd.NBD().connect_uri, f"nbd://127.0.0.1:{port}/disk")
            nursery.cancel_scope.cancel()
    assert store.read_view(0, SIZE) == bytes(SIZE)


class Connections:
    """Several libnbd connections that do random things, and a model of the disk."""

    def __init__(self, uri: str, generator: random.Random) -> None:
        self.handles = []
        self.model = bytearray(SIZE)
        self._generator = generator
        for _ in range(3):
            handle = nbd.NBD()
            handle.connect_uri(uri)
            self.handles.append(handle)

    def work(self, requests: int) -> None:
        """Write through one connection, and read it back through another. Runs in a thread."""
        for _ in range(requests):
            writer, reader = self._generator.sample(self.handles, 2)
            length = self._generator.randint(1, 50000)
            offset = self._generator.randrange(SIZE - length)
            what = self._generator.choice(("write", "write", "trim", "zero", "zero no hole"))
            data = self._generator.randbytes(length) if what == "write" else bytes(length)
            match what:
                case "write":
                    writer.pwrite(data, offset, self._generator.choice((0, nbd.CMD_FLAG_FUA)))
                case "trim":
                    writer.trim(length, offset)
                case "zero":
                    writer.zero(length, offset)
                case _:
                    writer.zero(length, offset, nbd.CMD_FLAG_NO_HOLE)
            self.model[offset : offset + length] = data
            start = max(0, offset - 100)
            end = min(SIZE, offset + length + 100)
            assert reader.pread(end - start, start) == self.model[start:end]
        self.handles[0].flush()

    def close(self) -> None:
        for handle in self.handles:
            handle.shutdown()


@pytest.mark.parametrize("seed", range(3))
async def test_libnbd_reads_its_writes_and_the_image_is_always_an_epoch(tmp_path: Path, seed: int) -> None:
    async with serving(tmp_path) as disk:
        disk.buffer.hold(1)
        connections = await trio.to_thread.run_sync(Connections, disk.uri, random.Random(seed))
        images = []
        for epoch in range(1, 7):
            await trio.to_thread.run_sync(connections.work, 40)
            disk.buffer.seal(epoch)
            images.append(bytes(connections.model))
            if len(images) == disk.buffer.depth:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(disk.buffer.release, epoch - 1)
                    await trio.to_thread.run_sync(connections.work, 10)
                assert disk.image.read_bytes() == images.pop(0), f"seed {seed}, epoch {epoch - 1}"
        await disk.buffer.open()
        await trio.to_thread.run_sync(connections.work, 40)
        assert disk.image.read_bytes() == connections.model, f"seed {seed}"
        await trio.to_thread.run_sync(connections.close)


async def test_libnbd_is_told_why(tmp_path: Path) -> None:
    def ask(uri: str) -> None:
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.connect_uri(uri)
        for request, errno_name in (
            (lambda: handle.pwrite(b"x", 0), "EPERM"),
            (lambda: handle.pread(512, SIZE), "EINVAL"),
            (lambda: handle.pwrite(b"x" * 512, SIZE - 1), "ENOSPC"),
            (lambda: handle.zero(512, SIZE), "ENOSPC"),
            (lambda: handle.cache(512, SIZE), "EINVAL"),
            (lambda: handle.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO), "EPERM"),
        ):
            with pytest.raises(nbd.Error) as caught:
                request()
            assert caught.value.errno == errno_name
        assert handle.pread(512, 0) == bytes(512)
        handle.cache(512, 0)
        handle.shutdown()

    async with serving(tmp_path) as disk:
        await trio.to_thread.run_sync(ask, disk.uri)
        with pytest.raises(nbd.Error, match="no export named 'absent'"):
            await trio.to_thread.run_sync(nbd.NBD().connect_uri, disk.uri.replace("///disk", "///absent"))


@requires("qemu-io")
async def test_killed_client_leaves_whole_writes_only(tmp_path: Path) -> None:
    async with serving(tmp_path, limit_bytes=2 << 20) as disk:
        written = trio.Event()
        disk.buffer.on_pressure(lambda _: written.set())
        disk.buffer.hold(1)
        writes = [word for _ in range(500) for word in ("-c", "aio_write -P 0xee 0 1M")]
        command = ["qemu-io", "-f", "raw", disk.uri, *writes]
        async with trio.open_nursery() as nursery:
            client = await nursery.start(partial(trio.run_process, command, check=False, capture_stdout=True))
            await written.wait()
            client.send_signal(signal.SIGKILL)
        assert disk.buffer.read(0, 1 << 20) == b"\xee" * (1 << 20)
        await disk.checkpoint(1)
        assert disk.image.read_bytes() == b"\xee" * (1 << 20) + bytes(SIZE - (1 << 20))
        assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk.uri, disk.image)
