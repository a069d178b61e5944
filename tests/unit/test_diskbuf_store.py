from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from diskbuf_fakes import FakeStore

from diskbuf.errors import (
    StoreFullError,
    StoreInUseError,
    StoreIOError,
    StoreOpenError,
    StoreReadOnlyError,
    StoreShortError,
)
from diskbuf.extents import Extent, Kind
from diskbuf.store import FileStore, apply_extents

SIZE = 4 << 20


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


def read(store: FileStore, offset: int, length: int) -> bytes:
    target = bytearray(length)
    store.read(offset, memoryview(target))
    return bytes(target)


def test_writes_gather_in_place(store: FileStore, image: Path) -> None:
    assert store.size_bytes == SIZE
    store.write(3, [b"ab", memoryview(b"cde"), bytearray(b"f")])
    store.sync()
    assert image.read_bytes()[:10] == b"\xaa\xaa\xaaabcdef\xaa"
    assert read(store, 2, 5) == b"\xaaabcd"


def test_more_pieces_than_one_system_call_takes(store: FileStore) -> None:
    pieces = [bytes([index % 256]) * 3 for index in range(3000)]
    store.write(1, pieces)
    assert read(store, 1, 9000) == b"".join(pieces)


def test_cached_read_is_right_or_refused(store: FileStore) -> None:
    store.write(100, [b"cached"])
    target = bytearray(6)
    if store.read_cached(100, memoryview(target)):
        assert target == b"cached"


@pytest.mark.parametrize("punch_hole", [True, False])
@pytest.mark.parametrize("fallocate", [True, False])
def test_zeroes_are_exact_to_the_byte(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, punch_hole: bool, fallocate: bool
) -> None:
    if not fallocate:
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


def test_second_server_is_refused(store: FileStore, image: Path) -> None:
    with pytest.raises(StoreInUseError, match=r"disk\.img is served by another process"):
        FileStore.open(image)
    with pytest.raises(StoreInUseError):
        FileStore.open(image, read_only=True)
    store.close()
    FileStore.open(image).close()


def test_two_readers_are_welcome(image: Path) -> None:
    first = FileStore.open(image, read_only=True)
    second = FileStore.open(image, read_only=True)
    assert read(second, 0, 2) == b"\xaa\xaa"
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


def test_truncated_image_is_named(store: FileStore, image: Path) -> None:
    os.truncate(image, 1000)
    with pytest.raises(StoreShortError, match="ends at 1000, not at its 4194304 bytes"):
        read(store, 0, 4096)
    assert not store.read_cached(0, memoryview(bytearray(4096)))


def test_full_store_is_named(store: FileStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(StoreFullError, match="write of 4 bytes at 4096 failed: File too large"):
            store.write(4096, [b"full"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_broken_store_is_named(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call, operation in (("preadv", "read"), ("fdatasync", "sync")):
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(StoreIOError, match=f"{operation} of .* failed: Input/output error"):
            store.sync() if call == "fdatasync" else store.read(0, memoryview(bytearray(1)))


def test_neighbours_are_written_together_and_in_order() -> None:
    store = FakeStore(64)
    extents = (
        Extent.of_data(0, b"aa"),
        Extent.of_data(2, b"bb"),
        Extent(4, 4, Kind.HOLE),
        Extent.of_data(8, b"cc"),
        Extent.of_data(11, b"dd"),
        Extent(20, 2, Kind.ZERO),
    )
    assert apply_extents(store, extents, lambda: False)
    assert store.operations == [
        ("write", 0, b"aabb"),
        ("hole", 4, 4),
        ("write", 8, b"cc"),
        ("write", 11, b"dd"),
        ("zero", 20, 2),
    ]


def test_stops_when_told() -> None:
    store = FakeStore(64)
    answers = iter([False, True])
    extents = (Extent.of_data(0, b"aa"), Extent.of_data(4, b"bb"))
    assert not apply_extents(store, extents, lambda: next(answers))
    assert store.operations == [("write", 0, b"aa")]
