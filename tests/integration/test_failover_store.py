"""A host's disk is full while it protects or stands by: it gives way, the other goes on with everything."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemon_harness import Cluster, Node, Shape, cluster, marks
from guest_client import stop_guest, writing

from remuslike.demo.client import Work

pytestmark = marks

WORK = Work(seed=13, connections=4, pipeline=1, payload_bytes=1500, limit_bytes=32 << 20)
"""A few blocks in an epoch: what is left in the file system's last page is soon used up."""

SHAPE = Shape(disk_mib=64)


@contextmanager
def small_file_system(path: Path, disk: Path) -> Iterator[Path]:
    """At `path`, with room for all of a disk; the disk in it."""
    path.mkdir()
    size = f"size={SHAPE.disk_mib + 1}m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", path], check=False).returncode:
        pytest.skip("no tmpfs can be mounted")
    try:
        moved = path / disk.name
        subprocess.run(["cp", "--sparse=always", disk, moved], check=True)
        yield moved
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def on_small_disk(hosts: Cluster, node: Node) -> Iterator[Path]:
    """The node's data disk in a file system of its own, its journal elsewhere."""
    (disk,) = node.disks
    with small_file_system(hosts.directory / "small", disk) as moved:
        node.document["guest"]["disks"][1] |= {
            "store": str(moved),
            "journal": str(node.directory / "journal"),
        }
        yield moved.parent


def fill(directory: Path) -> None:
    """Leave no page of a file system to anybody."""
    with (directory / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
        while True:
            ballast.write(bytes(1 << 16))


@pytest.mark.parametrize("full", ["primary", "secondary"])
async def test_a_full_disk_costs_its_host_and_nothing_else(full: str) -> None:
    with cluster(SHAPE) as hosts, on_small_disk(hosts, getattr(hosts, full)) as directory:
        primary, secondary = await hosts.protect()
        async with writing(hosts, WORK) as client:
            await client.wait_progress()
            fill(directory)
            if full == "primary":
                await primary.wait_ended(1)
                await secondary.wait_phase("active")
                broken, survivor, told = primary, secondary, "output.failed"
            else:
                await secondary.wait_ended(1)
                await primary.wait_phase("solo")
                broken, survivor, told = secondary, primary, "apply.failed"
            assert "No space left on device" in await broken.wait_logged(told)
            assert hosts.holder == survivor.node.role
            await client.wait_progress()
        await stop_guest(hosts, survivor)
        await client.check_disk(hosts, survivor.node)
