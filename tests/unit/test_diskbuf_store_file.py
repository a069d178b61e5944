"""What is special about files and block devices; the rest is in tests/conformance/test_store.py."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from diskbuf.errors import (
    StoreFullError,
    StoreInUseError,
    StoreIOError,
    StoreOpenError,
    StoreReadOnlyError,
    StoreShortError,
)
from diskbuf.filestore import FileStore
from diskbuf.store import ALLOCATIONS_MAX, Allocation

SIZE = 4 << 20

needs_mounts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("losetup") is None, reason="mounts and loop devices take root"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * SIZE)
    return path


@pytest.fixture
def store(image: Path) -> Iterator[FileStore]:
    opened = FileStore.open(image)
    yield opened
    opened.close()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "none", place], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def device(image: Path) -> Iterator[Path]:
    """A loop device on `image`."""
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    name = made.stdout.strip()
    yield Path(name)
    subprocess.run(["losetup", "--detach", name], check=True)


def read(store: FileStore, offset: int, length: int) -> bytes:
    target = bytearray(length)
    store.read(offset, memoryview(target))
    return bytes(target)


@pytest.mark.parametrize("punch_hole", [True, False])
def test_zeros_where_the_file_system_has_none_to_give(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, punch_hole: bool
) -> None:
    monkeypatch.setattr(store, "_fallocate", lambda *_: False)
    store.zero(4097, 3 << 20, punch_hole=punch_hole)
    assert read(store, 4090, 10) == b"\xaa" * 7 + b"\0" * 3
    assert read(store, 4097 + (3 << 20) - 3, 10) == b"\0" * 3 + b"\xaa" * 7
    assert not any(read(store, 4097, 3 << 20))


def test_hole_frees_space_and_zeroes_keep_it(store: FileStore, image: Path) -> None:
    store.sync()
    before = image.stat().st_blocks
    store.zero(0, 1 << 20, punch_hole=False)
    assert image.stat().st_blocks == before
    store.zero(0, 1 << 20, punch_hole=True)
    after = image.stat().st_blocks
    if after == before:
        pytest.skip("this file system punches no holes")
    assert before - after == (1 << 20) // 512


def test_allocation_is_that_of_the_file(store: FileStore) -> None:
    assert store.allocation(0, SIZE) == [Allocation(SIZE, hole=False, zero=False)]
    store.zero(1 << 20, 1 << 20, punch_hole=True)
    if len(store.allocation(0, SIZE)) == 1:
        pytest.skip("this file system tells no holes")
    data, hole, more = store.allocation(100, SIZE - 200)
    assert data == Allocation((1 << 20) - 100, hole=False, zero=False)
    assert hole == Allocation(1 << 20, hole=True, zero=True)
    assert more == Allocation((2 << 20) - 100, hole=False, zero=False)


def test_allocation_of_a_fragmented_file_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "fragmented.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for offset in range(0, 64 << 20, 8192):
            os.pwrite(file.fileno(), b"x", offset)
    store = FileStore.open(path)
    found = store.allocation(0, 64 << 20)
    store.close()
    assert ALLOCATIONS_MAX - 2 < len(found) <= ALLOCATIONS_MAX
    assert {(entry.length, entry.hole) for entry in found} == {(4096, False), (4096, True)}


def test_a_hole_that_is_made_between_two_questions_is_no_truncation(
    store: FileStore, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another client may trim while one asks."""
    image.write_bytes(b"x" * SIZE)
    seek = os.lseek

    def seek_late(descriptor: int, position: int, whence: int) -> int:
        found = seek(descriptor, position, whence)
        if whence == os.SEEK_DATA:
            store.zero(0, 1 << 20, punch_hole=True)
        return found

    monkeypatch.setattr(os, "lseek", seek_late)
    found = store.allocation(0, SIZE)
    assert sum(each.length for each in found) == SIZE
    assert [each.hole for each in found] == [True, False]


def test_second_server_is_refused(store: FileStore, image: Path) -> None:
    with pytest.raises(StoreInUseError, match=r"disk\.img is served already, by another process"):
        FileStore.open(image)
    with pytest.raises(StoreInUseError):
        FileStore.open(image, read_only=True)
    store.close()
    FileStore.open(image).close()


def test_two_readers_are_welcome(image: Path) -> None:
    first = FileStore.open(image, read_only=True)
    second = FileStore.open(image, read_only=True)
    assert read(second, 0, 2) == b"\xaa\xaa"
    first.sync()
    first.close()
    second.close()


def test_read_only_store_refuses_writes(image: Path) -> None:
    store = FileStore.open(image, read_only=True)
    with pytest.raises(StoreReadOnlyError, match="write of 1 bytes at 0"):
        store.write(0, [b"x"])
    with pytest.raises(StoreReadOnlyError):
        store.zero(0, 1, punch_hole=True)
    store.close()


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError, match=r"absent\.img: No such file"):
        FileStore.open(tmp_path / "absent.img")


def test_empty_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    with pytest.raises(StoreOpenError, match=r"empty\.img has 0 bytes"):
        FileStore.open(tmp_path / "empty.img")


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError, match="Is a directory"):
        FileStore.open(tmp_path)
    with pytest.raises(StoreOpenError, match="neither a file nor a block device"):
        FileStore.open("/dev/null")
    with pytest.raises(StoreOpenError, match="null byte"):
        FileStore.open("a\0b")


def test_truncated_image_is_named(store: FileStore, image: Path) -> None:
    os.truncate(image, 1000)
    with pytest.raises(StoreShortError, match="ends at 1000, not at its 4194304 bytes"):
        read(store, 0, 4096)
    assert not store.read_cached(0, memoryview(bytearray(4096)))


def test_file_size_limit_is_named(store: FileStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(StoreFullError, match="write of 4 bytes at 4096 failed: File too large"):
            store.write(4096, [b"full"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@needs_mounts
@pytest.mark.root
def test_full_file_system_is_named_and_the_write_can_be_repeated(tmpfs: Path) -> None:
    image, other = tmpfs / "disk.img", tmpfs / "other"
    with image.open("wb") as file:
        file.truncate(SIZE)
    other.write_bytes(bytes(800 << 10))
    with closing(FileStore.open(image)) as store:
        full = "write of 524288 bytes at 0 failed: No space left on device; make room, then release again"
        with pytest.raises(StoreFullError, match=full):
            store.write(0, [b"x" * (512 << 10)])
        with pytest.raises(StoreFullError, match="No space left on device"):
            store.zero(0, 512 << 10, punch_hole=False)
        other.unlink()
        store.write(0, [b"x" * (512 << 10)])
        assert read(store, 0, 512 << 10) == b"x" * (512 << 10)


@needs_mounts
@pytest.mark.root
def test_read_only_file_system_is_named(tmpfs: Path) -> None:
    image = tmpfs / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    with pytest.raises(StoreOpenError, match="Read-only file system"):
        FileStore.open(image)
    with closing(FileStore.open(image, read_only=True)) as store:
        assert read(store, 0, 2) == b"\0\0"


@needs_mounts
@pytest.mark.root
def test_device_that_fails_is_named(device: Path, image: Path) -> None:
    """A loop device whose file has shrunk answers with EIO."""
    with closing(FileStore.open(device)) as store:
        os.truncate(image, 1 << 20)
        with pytest.raises(StoreIOError, match=r"read of 4096 bytes at 2097152 failed: Input/output error"):
            read(store, 2 << 20, 4096)


@needs_mounts
@pytest.mark.root
def test_device_zeroes_its_blocks_and_the_edges(device: Path) -> None:
    expected = bytearray(b"\xaa" * SIZE)
    expected[1000:101_000] = bytes(100_000)
    expected[200_100:200_150] = bytes(50)
    with closing(FileStore.open(device)) as store:
        store.zero(1000, 100_000, punch_hole=True)
        store.zero(200_100, 50, punch_hole=False)
        assert read(store, 0, SIZE) == expected


def test_broken_store_is_named(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call, operation in (("preadv", "read"), ("fdatasync", "sync")):
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(StoreIOError, match=f"{operation} of .* failed: Input/output error"):
            store.sync() if call == "fdatasync" else store.read(0, memoryview(bytearray(1)))


def test_uri_opens_the_same_file_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path
) -> None:
    odd = tmp_path / "odd name%.img"
    image.rename(odd)
    monkeypatch.chdir(tmp_path)
    store = FileStore.open(odd.name)
    store.close()
    assert store.uri == f"file:{tmp_path}/odd%20name%25.img"
