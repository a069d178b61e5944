"""Real NBD clients, unchanged, against a disk buffer on a unix socket."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from diskbuf import DiskBuffer, FileStore, serve_nbd_unix

nbd = pytest.importorskip("nbd", reason="libnbd's Python binding (python3-libnbd) is not installed")

SIZE = 8 << 20
CLIENT_S = 60
"""What a client may take before the test gives up; none needs more than a second."""


def requires(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


@dataclass
class Disk:
    image: Path
    store: FileStore
    buffer: DiskBuffer
    socket: Path

    @property
    def uri(self) -> str:
        return f"nbd+unix:///disk?socket={self.socket}"

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
    disk = Disk(image, store, buffer, tmp_path / "nbd.sock")
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_nbd_unix, disk.socket, {"disk": buffer})
            with trio.fail_after(CLIENT_S):
                yield disk
            nursery.cancel_scope.cancel()
    finally:
        store.close()


async def run(*command: str | Path) -> str:
    done = await trio.run_process([str(word) for word in command], capture_stdout=True, capture_stderr=True)
    return done.stdout.decode()


@requires("nbdinfo")
async def test_nbdinfo_sees_the_export(tmp_path: Path) -> None:
    async with serving(tmp_path) as disk:
        listed = json.loads(await run("nbdinfo", "--json", "--list", disk.uri))
    (export,) = listed["exports"]
    assert listed["protocol"] == "newstyle-fixed"
    assert (export["export-name"], export["export-size"]) == ("disk", SIZE)
    able = {"can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"}
    assert all(export[name] for name in able)
    assert not export["is_read_only"]
    assert (export["block_size_minimum"], export["block_size_preferred"]) == (1, 4096)
    assert export["block_size_maximum"] == 32 << 20


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
            (lambda: handle.cache(512, 0), "EINVAL"),
        ):
            with pytest.raises(nbd.Error) as caught:
                request()
            assert caught.value.errno == errno_name
        assert handle.pread(512, 0) == bytes(512)
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
        assert await disk.buffer.read(0, 1 << 20) == b"\xee" * (1 << 20)
        await disk.checkpoint(1)
        assert disk.image.read_bytes() == b"\xee" * (1 << 20) + bytes(SIZE - (1 << 20))
        assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk.uri, disk.image)
