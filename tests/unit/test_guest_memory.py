"""remuslike.guest.memory: RAM without a name, and where another process has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.started_qemu import MEMORY_MIB, running_fake_qemu

from remuslike.engine.ports import PAGE_BYTES
from remuslike.errors import GuestError
from remuslike.guest.memory import GuestMemory


def test_ram_is_zeros_in_pages() -> None:
    memory = GuestMemory(2)
    assert memory.length == 2 << 20
    assert memory.page_count == 512
    assert memory.pages.shape == (512, PAGE_BYTES)
    assert not memory.pages.any()
    memory.close()


def test_pages_are_the_file() -> None:
    memory = GuestMemory(1)
    memory.pages[3, 5] = 77
    assert os.pread(memory.descriptor, 1, 3 * PAGE_BYTES + 5) == b"M"
    os.pwrite(memory.descriptor, b"Z", 7 * PAGE_BYTES)
    assert memory.pages[7, 0] == ord("Z")
    memory.close()


def test_it_has_no_name_that_could_be_left_behind() -> None:
    memory = GuestMemory(1)
    assert "(deleted)" in str(Path(f"/proc/self/fd/{memory.descriptor}").readlink())
    assert not os.get_inheritable(memory.descriptor)
    memory.close()


def test_pages_outlive_the_descriptor() -> None:
    memory = GuestMemory(1)
    pages = memory.pages
    memory.close()
    pages[0] = 1
    assert int(pages.sum()) == PAGE_BYTES


def test_ram_that_this_host_cannot_map_is_named() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(GuestError, match=r"guest\.memory_mib = 268435456: "):
        GuestMemory(1 << 28)  # 256 TiB, beyond a process's address space
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_our_own_mapping_is_found() -> None:
    memory = GuestMemory(1)
    mapping = memory.find_in(os.getpid())
    assert mapping.start == memory.pages.ctypes.data
    assert mapping.end - mapping.start == memory.length
    memory.close()


def locked_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to lock memory")
def test_locked_memory_is_all_there_and_stays() -> None:
    before = locked_kib()
    memory = GuestMemory(130)  # more than is locked at a time
    memory.lock()
    assert locked_kib() - before == 130 << 10
    assert os.fstat(memory.descriptor).st_blocks * 512 == memory.length
    memory.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up root's right to lock memory")
def test_memory_that_cannot_be_locked_is_named() -> None:
    unprivileged = ["prlimit", "--memlock=0", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    program = "from remuslike.guest.memory import GuestMemory; GuestMemory(2).lock()"
    ended = subprocess.run(
        [*unprivileged, sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert "GuestError: guest.memory_mib = 2: can't be locked in memory: " in ended.stderr


def test_another_memory_of_the_same_name_is_not_mistaken() -> None:
    first, second = GuestMemory(1), GuestMemory(1)
    assert first.find_in(os.getpid()) != second.find_in(os.getpid())
    first.close()
    second.close()


def test_a_process_that_is_gone_is_named() -> None:
    memory = GuestMemory(1)
    with pytest.raises(GuestError, match="process 4194304"):
        memory.find_in(1 << 22)
    memory.close()


async def test_another_process_has_it_once_and_whole(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        memory = qemu.process.memory
        mapping = memory.find_in(qemu.process.pid)
        assert mapping.end - mapping.start == memory.length == MEMORY_MIB << 20
        await qemu.process.qmp.execute("remember", offset=5 * PAGE_BYTES, value=9)
        assert np.flatnonzero(memory.pages[:, 0]).tolist() == [5]


@pytest.mark.parametrize(
    ("wishes", "pieces"),
    [
        ("no-ram", "0 bytes of the guest's RAM in 0 pieces"),
        ("half", "in 1 pieces"),
        ("split apart", "in 2 pieces"),
    ],
)
async def test_ram_that_is_missing_or_split_is_named(tmp_path: Path, wishes: str, pieces: str) -> None:
    async with running_fake_qemu(tmp_path, wishes) as qemu:
        with pytest.raises(GuestError, match="expected 16777216 in one") as caught:
            qemu.process.memory.find_in(qemu.process.pid)
        assert pieces in str(caught.value)


async def test_halves_that_touch_in_the_wrong_order_are_not_taken_for_one(tmp_path: Path) -> None:
    """Page numbers would be those of other pages."""
    async with running_fake_qemu(tmp_path, "split") as qemu:
        with pytest.raises(GuestError, match="expected 16777216 in one"):
            qemu.process.memory.find_in(qemu.process.pid)
