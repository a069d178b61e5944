"""Every Store against the suite, and the suite against stores that are broken on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.nbd_server import nbdkit, qemu_nbd
from store_suite import PROPERTIES, SIZE, Property

from diskbuf.blockedges import BlockEdges
from diskbuf.extents import Bytes
from diskbuf.memorystore import MemoryStore
from diskbuf.sharedstore import SharedStore
from diskbuf.store import Allocation, Store
from diskbuf.uri import open_store

MakeStore = Callable[[Path, ExitStack], Store]


def image_in(directory: Path) -> Path:
    path = directory / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def make_file(directory: Path, _stack: ExitStack) -> Store:
    return open_store(str(image_in(directory)))


def make_file_on_tmpfs(_directory: Path, stack: ExitStack) -> Store:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no tmpfs at /dev/shm")
    return open_store(str(image_in(Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))))))


def make_block_device(directory: Path, stack: ExitStack) -> Store:
    if os.geteuid() or shutil.which("losetup") is None:
        pytest.skip("a loop device takes root and losetup")
    made = subprocess.run(
        ["losetup", "--find", "--show", image_in(directory)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
    return open_store(device)


def make_memory(_directory: Path, _stack: ExitStack) -> Store:
    return open_store("memory:4M")


def make_shared(directory: Path, _stack: ExitStack) -> Store:
    store = SharedStore(image_in(directory))
    assert store.try_acquire()
    return store


def nbdkit_with(*filters: str) -> MakeStore:
    def make(directory: Path, stack: ExitStack) -> Store:
        pytest.importorskip("nbd", reason="libnbd's Python binding (python3-libnbd) is not installed")
        server = nbdkit(directory / "nbd.sock", *filters)
        stack.callback(server.close)
        return open_store(server.uri)

    return make


def make_qcow2(directory: Path, stack: ExitStack) -> Store:
    pytest.importorskip("nbd", reason="libnbd's Python binding (python3-libnbd) is not installed")
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    image = directory / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, str(SIZE)], check=True)
    server = qemu_nbd(directory / "nbd.sock", image, "--format=qcow2")
    stack.callback(server.close)
    return open_store(server.uri)


STORES: dict[str, MakeStore] = {
    "file": make_file,
    "file-on-tmpfs": make_file_on_tmpfs,
    "block-device": make_block_device,
    "memory": make_memory,
    "shared": make_shared,
    "nbdkit": nbdkit_with("memory", "4M"),
    "nbdkit-whole-blocks": nbdkit_with(
        "--filter=blocksize-policy",
        "memory",
        "4M",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
        "blocksize-maximum=64K",
        "blocksize-error-policy=error",
    ),
    "nbdkit-no-zero-no-extents": nbdkit_with("--filter=nozero", "--filter=noextents", "memory", "4M"),
    "qemu-nbd-qcow2": make_qcow2,
}


@pytest.mark.parametrize("make", STORES.values(), ids=STORES.keys())
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_store(make: MakeStore, check: Property, tmp_path: Path) -> None:
    with ExitStack() as stack:
        store = make(tmp_path, stack)
        stack.callback(store.close)
        check(store)


class _Shifting(MemoryStore):
    """Puts the second of two pieces a byte too far."""

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        for piece in pieces:
            super().write(min(offset, SIZE - len(piece)), [piece])
            offset += len(piece) + 1


class _Ragged(MemoryStore):
    """Zeroes whole pages only, the pages around included."""

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        start, end = offset // 4096 * 4096, -(-(offset + length) // 4096) * 4096
        super().zero(start, end - start, punch_hole=punch_hole)


class _Empty(MemoryStore):
    """Calls all of it a hole."""

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        return [Allocation(length, hole=True, zero=True)]


class _Stale(MemoryStore):
    """Reads from a cache that nobody invalidates."""

    def read_cached(self, offset: int, target: memoryview) -> bool:
        target[:] = bytes(len(target))
        return True


class _Racing(BlockEdges):
    """Changes parts of blocks without a lock, and gives the others time to do so, too."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(MemoryStore(size_bytes), 4096)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        start, end = self._around(offset, sum(map(len, pieces)))
        blocks = bytearray(end - start)
        self._store.read(start, memoryview(blocks))
        os.sched_yield()
        data = b"".join(pieces)
        blocks[offset - start : offset - start + len(data)] = data
        self._store.write(start, [blocks])


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (_Shifting, "writes_gather_in_place_exact_to_the_byte"),
        (_Ragged, "zeros_are_exact_to_the_byte_in_either_manner"),
        (_Empty, "what_holds_data_is_never_called_a_hole"),
        (_Empty, "zeros_are_told_only_where_they_are"),
        (_Stale, "all_ways_to_read_agree"),
        (_Racing, "threads_that_change_different_bytes_do_not_disturb_each_other"),
    ],
)
def test_the_suite_notices(broken: Callable[[int], Store], named: str) -> None:
    (check,) = (check for check in PROPERTIES if check.__name__ == named)
    with pytest.raises(AssertionError):
        check(broken(SIZE))
