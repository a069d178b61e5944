"""Ends on purpose, of daemons and of guests: both sides are the same afterwards, to the byte."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from daemon_harness import Cluster, Daemon, Shape, cluster, marks, run, wait_for
from guest_client import shell, stop_guest, tell, writing

from remuslike.engine.ports import PAGE_BYTES, Pages
from remuslike.image import READY_LINE

pytestmark = marks

CLEAN, FAILED, GUEST_DIED = 0, 1, 4

SLOW_EPOCH_MS = 100

SLOW_DETECT_MS = 20_000
"""So that what happens at once can't have waited for it."""


def open_ram(daemon: Daemon) -> Pages:
    """The RAM of the daemon's guest, which outlives both for as long as it is mapped here."""
    descriptors = Path(f"/proc/{daemon.pid}/fd")
    (ram,) = {path.stat().st_ino: path for path in descriptors.iterdir() if is_ram(path)}.values()
    with ram.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return np.frombuffer(mapping, np.uint8).reshape(-1, PAGE_BYTES)


def is_ram(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("/memfd:remuslike-ram")
    except FileNotFoundError:
        return False  # closed since it was listed


def differing_pages(one: Pages, other: Pages) -> list[int]:
    return [int(page) for page in np.flatnonzero((one != other).any(axis=1))]


def check_recoverable(hosts: Cluster, disk: Path) -> None:
    """As after a power cut: the journal makes the file system whole."""
    copy = hosts.directory / "copy"
    shutil.copyfile(disk, copy)
    # 0 or 1, "errors corrected", which a journal's replay can count as: e2fsck(8).
    run("sh", "-c", f"e2fsck -p {copy} || [ $? = 1 ]")
    run("e2fsck", "-fn", str(copy))


@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(machine="q35", vcpus=2, disks=2)],
    ids=["microvm", "q35 with two processors and disks"],
)
async def test_a_stopped_primary_and_its_secondary_have_the_same_ram_and_disks(shape: Shape) -> None:
    with cluster(shape) as hosts:
        # So small that the guest's writes are at the limit, too.
        hosts.primary.document["buffers"] = {"disk_limit_mib": 1}
        primary, secondary = await hosts.protect()
        primary_ram, secondary_ram = open_ram(primary), open_ram(secondary)
        async with writing(hosts) as client:
            await shell(hosts, "dd if=/dev/urandom of=/data/random bs=64k count=48 conv=fsync")
            await shell(hosts, "dd if=/dev/urandom of=/dev/shm/random bs=64k count=256")
            await client.wait_progress()
            primary.terminate()
            await primary.wait_ended(CLEAN)
            await secondary.wait_ended(CLEAN)
            acknowledged = client.acknowledged
            client.abandon()
        assert acknowledged > 0
        assert primary_ram.any()
        assert not differing_pages(primary_ram, secondary_ram)
        assert not hosts.disks_differ()
        check_recoverable(hosts, hosts.secondary.disks[0])


def test_a_page_that_differs_is_found() -> None:
    one = np.zeros((3, PAGE_BYTES), np.uint8)
    other = one.copy()
    other[1, -1] = 1
    assert differing_pages(one, other) == [1]


async def test_a_guest_that_stops_itself_ends_both_sides() -> None:
    with cluster() as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
        await stop_guest(hosts, primary, secondary)
        assert not hosts.disks_differ()
        await client.check_disk(hosts, hosts.secondary)


@pytest.mark.parametrize(
    ("machine", "command"),
    [("microvm", "echo c >/proc/sysrq-trigger"), ("q35", "reboot -f")],
    ids=["microvm panics", "q35 reboots"],
)
async def test_a_guest_that_begins_anew_stays_protected(machine: str, command: str) -> None:
    with cluster(Shape(machine=machine, service="none")) as hosts:
        for node in (hosts.primary, hosts.secondary):
            # A guest that boots writes all its RAM: fewer checkpoints let it get there sooner.
            node.document["epoch"]["epoch_ms"] = SLOW_EPOCH_MS
        primary, secondary = await hosts.protect()
        await tell(hosts, command)
        await wait_for("guest: ready again", lambda: hosts.primary.console.count(READY_LINE) == 2)
        assert (await primary.wait_protected()).generation == 1
        assert primary.log.count("session.accepted") == 1
        assert await shell(hosts, "hostname") == "remus-guest\n"
        primary.kill()
        await secondary.wait_phase("active")
        assert await shell(hosts, "hostname") == "remus-guest\n"
        await stop_guest(hosts, secondary)


async def test_a_guest_whose_qemu_is_killed_goes_on_at_once() -> None:
    with cluster(Shape(detect_ms=SLOW_DETECT_MS)) as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            said = await primary.statistics()
            assert said is not None
            killed_at = time.monotonic()
            os.kill(said.guest_pid, signal.SIGKILL)
            await primary.wait_ended(GUEST_DIED)
            survivor = await secondary.wait_phase("active")
            assert survivor.takeover is not None
            assert "take-over" in survivor.takeover["cause"]
            assert survivor.takeover["decided_at"] - killed_at < SLOW_DETECT_MS / 1e3
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)


async def test_a_primary_that_is_asked_to_stop_during_its_set_up_ends_in_order() -> None:
    with cluster() as hosts:
        for node in (hosts.primary, hosts.secondary):
            daemon = hosts.start(node)
            lock = Path(node.document["run_directory"]) / "lock"
            await wait_for(f"{node.role}: its set-up to begin", lock.exists)
            daemon.terminate()
            await daemon.wait_ended(CLEAN)


async def test_a_primary_that_is_asked_twice_leaves_its_guest_to_the_secondary() -> None:
    with cluster(Shape(detect_ms=SLOW_DETECT_MS)) as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            # The last checkpoint's acknowledgement will not come while the secondary is stopped.
            secondary.process.popen.send_signal(signal.SIGSTOP)
            primary.terminate()
            await primary.wait_logged("stop.requested")
            primary.terminate()
            await primary.wait_ended(FAILED)
            secondary.process.popen.send_signal(signal.SIGCONT)
            await secondary.wait_phase("active")
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)
