"""Soft-dirty on a kernel that has it, and no PAGEMAP_SCAN: what the conformance suite does not show."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import trio
from fakes.started_qemu import MEMORY_MIB, running_fake_qemu
from fakes.writing_process import PAGE_BYTES, WritingProcess

from remuslike.config import GuestSettings
from remuslike.errors import MissingToolError
from remuslike.guest.dirty import probe_pagemap_scan
from remuslike.guest.memory import GuestMemory
from remuslike.guest.page_table import ProcessPageTable, probe_soft_dirty
from remuslike.guest.process import QemuProcess, start_qemu
from remuslike.guest.running import QemuGuest
from remuslike.guest.soft_dirty import SoftDirty
from remuslike.guest.tracker import KINDS, Kind, open_tracker, require_tracker

pytestmark = [pytest.mark.lab, pytest.mark.root]

SWAP_BYTES = 32 << 20


def guest(tracker: Literal["auto", "pagemap-scan", "soft-dirty"]) -> GuestSettings:
    return GuestSettings(memory_mib=MEMORY_MIB, tracker=tracker)


def track(process: WritingProcess) -> closing[SoftDirty]:
    return closing(SoftDirty(ProcessPageTable(process.pid, process.start, process.length)))


# --- the choice -----------------------------------------------------------------------------------


def test_this_kernel_has_the_bits_and_not_the_call() -> None:
    probe_soft_dirty()
    with pytest.raises(MissingToolError, match=r"PAGEMAP_SCAN: .*; it takes Linux 6\.7 or later"):
        probe_pagemap_scan()


def test_who_insists_on_the_call_is_told_before_the_start() -> None:
    require_tracker(guest("auto"))
    require_tracker(guest("soft-dirty"))
    with pytest.raises(MissingToolError, match=r"guest\.tracker = 'pagemap-scan': .*Linux 6\.7"):
        require_tracker(guest("pagemap-scan"))


@pytest.mark.parametrize("standby", [False, True])
async def test_qemu_is_not_started_where_it_could_not_be_tracked(tmp_path: Path, standby: bool) -> None:
    """A standby is: it may never have to be."""
    ours, theirs = socket.socketpair()
    log_path = tmp_path / "qemu.log"

    def start() -> QemuProcess:
        return start_qemu(
            "node-a",
            GuestSettings(memory_mib=MEMORY_MIB, tracker="pagemap-scan", qemu="/bin/true"),
            taps=[],
            disk_sockets=[],
            log_path=log_path,
            incoming=theirs.fileno() if standby else None,
            on_end=lambda end, detail: None,
        )

    with ours, theirs:
        if standby:
            process = start()
            await process.destroy()
            process.close()
        else:
            with pytest.raises(MissingToolError, match=r"guest\.tracker = 'pagemap-scan'"):
                start()
    assert log_path.exists() == standby


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("shmem_enabled", "always within_size advise [never] deny force", False),
        ("shmem_enabled", "always within_size advise never [deny] force", False),
        ("shmem_enabled", "always within_size [advise] never deny force", True),
        ("hugepages-2048kB/shmem_enabled", "always [inherit] within_size advise never", False),
        ("hugepages-64kB/shmem_enabled", "[always] inherit within_size advise never", True),
    ],
)
def test_a_host_that_merges_shared_memory_is_refused(
    tmp_path: Path, name: str, text: str, refused: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text + "\n")
    if not refused:
        probe_soft_dirty(huge_pages=tmp_path)
        return
    with pytest.raises(MissingToolError, match=rf"{name}' is '(always|advise)', must be 'never'"):
        probe_soft_dirty(huge_pages=tmp_path)


async def test_a_guest_is_attached_to_and_captured(tmp_path: Path) -> None:
    async with running_fake_qemu(tmp_path) as qemu:
        captured = QemuGuest(qemu.process, captures_in_use=1)
        assert captured.tracker is None
        await captured.attach()
        assert captured.tracker == "soft-dirty"
        captured.start_tracking()
        assert len(await captured.dirty_pages()) == captured.page_count
        await captured.resume()
        for page, value in ((2, 22), (70, 33)):
            await qemu.process.qmp.execute("remember", offset=page * PAGE_BYTES, value=value)
        await captured.pause()
        capture = await captured.capture()
        assert capture.indices.tolist() == [2, 70]
        assert capture.pages[:, 0].tolist() == [22, 33]
        assert capture.devices == b"devices of a paused guest"
        assert (await captured.dirty_pages()).tolist() == []
        await captured.destroy()
        captured.close()


async def test_a_guest_that_refuses_injection_falls_back(tmp_path: Path) -> None:
    """As one under a seccomp filter does, on a kernel that has both."""

    def refuse(pid: int, start: int, memory: GuestMemory) -> SoftDirty:
        raise MissingToolError("a filter")

    refusing = Kind("pagemap-scan", "PAGEMAP_SCAN", lambda: None, refuse)
    async with running_fake_qemu(tmp_path) as qemu:
        process = qemu.process
        tracking = await trio.to_thread.run_sync(
            open_tracker, guest("auto"), process.pid, process.memory, (refusing, *KINDS[1:])
        )
        with closing(tracking.tracker):
            assert (tracking.name, tracking.reason) == ("soft-dirty", "pagemap-scan: a filter")
            assert len(tracking.tracker.scan()) == process.memory.page_count


# --- what must not cost a bit ---------------------------------------------------------------------


def test_a_page_whose_entry_has_gone_is_reported() -> None:
    with WritingProcess(32) as process, track(process) as tracker:
        process.write(range(32), 1)
        tracker.scan()
        process.drop(9)
        assert tracker.scan().tolist() == [9]


def test_a_process_that_cannot_be_stopped_is_tracked_all_the_same() -> None:
    with WritingProcess(32) as process, track(process) as tracker:
        tracker.scan()
        with process.one_thread_deaf():
            process.write([3], 1)
            assert tracker.scan().tolist() == [3]
            process.write([5], 1)
            assert tracker.scan().tolist() == [3, 5]
        assert tracker.scan().tolist() == [3, 5]
        assert tracker.scan().tolist() == []


@pytest.fixture
def reclaimed(tmp_path: Path) -> Iterator[Path]:
    """A control group (v2), from whose processes the kernel takes memory when it is told to, and a swap."""

    def command(line: str) -> str:
        return subprocess.run(line.split(), check=True, capture_output=True, text=True).stdout.strip()

    area, groups = Path("/run/swap"), tmp_path / "groups"
    with ExitStack() as stack:
        with area.open("wb") as file:
            file.truncate(SWAP_BYTES)
        stack.callback(area.unlink)
        device = command(f"losetup --find --show {area}")
        stack.callback(command, f"losetup --detach {device}")
        command(f"mkswap {device}")
        command(f"swapon {device}")
        stack.callback(command, f"swapoff {device}")
        groups.mkdir()
        command(f"mount -t cgroup2 none {groups}")
        stack.callback(command, f"umount {groups}")
        (groups / "cgroup.subtree_control").write_text("+memory")
        group = groups / "reclaimed"
        group.mkdir()
        stack.callback(group.rmdir)
        yield group


def take_memory(group: Path) -> None:
    """The kernel takes what it can, which is less."""
    with suppress(BlockingIOError):
        (group / "memory.reclaim").write_text(str(SWAP_BYTES))


def seen_by(pid: int, start: int, page_count: int) -> bytes:
    """The first byte of each page, as the process has it: it is read through the process's page table."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        return os.pread(memory.fileno(), page_count * PAGE_BYTES, start)[::PAGE_BYTES]


@pytest.mark.parametrize("locked", [True, False])
async def test_memory_is_locked_and_would_lose_its_bits_if_it_were_not(
    tmp_path: Path, reclaimed: Path, locked: bool
) -> None:
    """Without the lock a page that was written, swapped out and read again looks as if nobody had."""
    pages = range(32)
    async with running_fake_qemu(tmp_path) as qemu:
        process, memory = qemu.process, qemu.process.memory
        (reclaimed / "cgroup.procs").write_text(str(process.pid))

        async def write(value: int) -> None:
            for page in pages:
                await process.qmp.execute("remember", offset=page * PAGE_BYTES, value=value)

        await write(1)  # so that the pages are the group's, whoever populates the others
        start = memory.find_in(process.pid).start
        if locked:
            tracker = open_tracker(guest("soft-dirty"), process.pid, memory).tracker
        else:
            tracker = SoftDirty(ProcessPageTable(process.pid, start, memory.length))
        with closing(tracker):
            tracker.scan()
            await write(2)
            take_memory(reclaimed)
            assert seen_by(process.pid, start, len(pages)) == b"\x02" * len(pages)
            missed = np.setdiff1d(pages, tracker.scan())
    assert missed.tolist() == [] if locked else len(missed) > 0
