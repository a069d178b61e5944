"""The kernel's NBD client on a disk buffer, with ext4 and xfs on it: what a file system needs of a disk, and
what it finds after the death of its host."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from diskbuf import DiskBuffer, FileStore, Kind, SealedWrites, serve_nbd_unix
from lab.nbd_device import attached

pytestmark = [pytest.mark.lab, pytest.mark.root]

SIZE_BYTES = 32 << 20
FILESYSTEMS = {
    "ext4": (("mkfs.ext4", "-q"), ("fsck.ext4", "-f", "-n")),
    "xfs": (("mkfs.xfs", "-q", "--unsupported"), ("xfs_repair", "-n")),  # below 300 MiB it is
}
"""What makes each, and what checks it without changing it."""

FILES = 40
FILES_PER_EPOCH = 5
SCENARIO_S = 120
"""A bound for what takes seconds, in an emulated machine that others slow down."""


@dataclass
class Disk:
    """A disk buffer in front of an image, and the file system that the kernel has mounted from it."""

    filesystem: str
    image: Path
    buffer: DiskBuffer
    mounted: Path
    epoch: int = 1

    def seal(self) -> int:
        """Seal the open epoch; its number."""
        self.buffer.prepare()
        self.buffer.seal(self.epoch)
        self.epoch += 1
        return self.epoch - 1

    def is_empty(self) -> bool:
        """Whether nothing has ever been written to the image."""
        return self.image.stat().st_blocks == 0

    async def check(self, image: Path) -> None:
        """Nothing is wrong with the file system in an image, as it is."""
        _, command = FILESYSTEMS[self.filesystem]
        await run(*command, image)

    async def files_in(self, image: Path) -> dict[int, bytes]:
        """The numbered files of an image, with which nothing is wrong once its log has been replayed."""
        async with mount(image, self.mounted, "loop"):
            files = numbered_files(self.mounted)
        await self.check(image)
        return files


@asynccontextmanager
async def disk_with(filesystem: str, directory: Path) -> AsyncIterator[Disk]:
    """Served, attached, formatted and mounted; the buffer holds epoch 1, which has all of that in it."""
    make, _ = FILESYSTEMS[filesystem]
    image, mounted, server = directory / "disk.img", directory / "mounted", directory / "nbd.sock"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    store = FileStore.open(image)
    disk = Disk(filesystem, image, DiskBuffer(store, limit_bytes=4 * SIZE_BYTES), mounted)
    disk.buffer.hold(1)
    try:
        with trio.fail_after(SCENARIO_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_nbd_unix, server, {"disk": disk.buffer})
                async with attached(0, server, "disk") as device:
                    await run(*make, device)
                    async with mount(device, mounted):
                        yield disk
                nursery.cancel_scope.cancel()
    finally:
        store.close()


@asynccontextmanager
async def mount(device: Path, directory: Path, options: str = "defaults") -> AsyncIterator[None]:
    """For as long as the body runs, or until it unmounts it itself."""
    await run("mount", "-o", options, device, directory)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            if is_mounted(directory):
                await run("umount", directory)


def is_mounted(directory: Path) -> bool:
    """Asked of the kernel: of a file system whose disk is gone nothing can be asked."""
    mounts = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return str(directory) in mounts


async def run(*command: str | Path) -> None:
    done = await trio.run_process(
        [str(word) for word in command], check=False, capture_stdout=True, capture_stderr=True
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0, f"{command[0]} ended with status {done.returncode}: {said}"


def numbered_files(directory: Path) -> dict[int, bytes]:
    return {int(path.name.removeprefix("file")): path.read_bytes() for path in directory.glob("file*")}


def contents(number: int) -> bytes:
    """Of one file: a few blocks, and no two alike."""
    return b"".join(b"%06d:%06d\n" % (number, line) for line in range(100 + 300 * (number % 7)))


def with_writes(image: bytes, writes: SealedWrites) -> bytes:
    changed = bytearray(image)
    for extent in writes.extents:
        changed[extent.offset : extent.end] = (
            extent.data if extent.kind is Kind.DATA else bytes(extent.length)
        )
    return bytes(changed)


@dataclass
class Writer:
    """Writes numbered files, each to stable storage before the next; `synced` counts those that were."""

    directory: Path
    synced: int = 0
    refused: OSError | None = None
    _progress: trio.Event = field(default_factory=trio.Event)

    async def write(self, count: int) -> None:
        """In a thread, for the disk is served by this one. Ends early where the disk refuses."""
        await trio.to_thread.run_sync(self._write_files, count)

    async def wait_until_synced(self, count: int) -> None:
        while self.synced < count:
            await self._progress.wait()
            self._progress = trio.Event()

    def _write_files(self, count: int) -> None:
        try:
            for number in range(count):
                self._write(number)
                self.synced = number + 1
                trio.from_thread.run_sync(self._tell)
        except OSError as error:
            self.refused = error

    def _tell(self) -> None:
        self._progress.set()

    def _write(self, number: int) -> None:
        with (self.directory / f"file{number}").open("wb") as file:
            file.write(contents(number))
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
async def test_a_file_system_lives_on_it_while_epochs_are_sealed_and_released(
    tmp_path: Path, filesystem: str
) -> None:
    async with disk_with(filesystem, tmp_path) as disk:
        assert disk.is_empty()
        writer = Writer(disk.mounted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.write, FILES)
            for count in range(FILES_PER_EPOCH, FILES, FILES_PER_EPOCH):
                await writer.wait_until_synced(count)
                epoch = disk.seal()
                assert epoch > 1 or disk.is_empty()
                await disk.buffer.release(epoch)
        assert writer.refused is None
        await run("umount", disk.mounted)
        last = disk.seal()
        assert last == FILES // FILES_PER_EPOCH
        await disk.buffer.release(last)
    expected = {number: contents(number) for number in range(FILES)}
    await disk.check(disk.image)
    assert await disk.files_in(disk.image) == expected


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
async def test_after_its_hosts_death_the_store_is_the_last_released_epoch(
    tmp_path: Path, filesystem: str
) -> None:
    async with disk_with(filesystem, tmp_path) as disk:
        writer = Writer(disk.mounted)
        released, synced = b"", 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.write, 10 * FILES)
            for count in range(FILES_PER_EPOCH, 5 * FILES_PER_EPOCH, FILES_PER_EPOCH):
                await writer.wait_until_synced(count)
                synced, epoch = writer.synced, disk.seal()
                released = with_writes(disk.image.read_bytes(), disk.buffer.sealed(epoch))
                await disk.buffer.release(epoch)
                assert disk.image.read_bytes() == released, f"epoch {epoch}"
            await writer.wait_until_synced(synced + FILES_PER_EPOCH)
            disk.seal()
            await writer.wait_until_synced(synced + 2 * FILES_PER_EPOCH)
            disk.buffer.discard()
        assert writer.refused is not None
        assert writer.synced < 10 * FILES
    assert disk.image.read_bytes() == released

    recovered = tmp_path / "recovered.img"
    shutil.copyfile(disk.image, recovered)
    files = await disk.files_in(recovered)
    assert {number: files.get(number) for number in range(synced)} == {
        number: contents(number) for number in range(synced)
    }
    assert max(files) <= synced, "a file that was begun after the last released epoch"
