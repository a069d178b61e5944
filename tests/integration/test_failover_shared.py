"""Both hosts reach one disk. Whoever has the guest dies between two steps of a release to it, and the other
one writes what may not be there once more: the disk is as the guest left it, and nothing is done twice.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from daemon_harness import FIRST_HOST, Cluster, Daemon, Shape, cluster, marks
from guest_client import stop_guest, writing

from remuslike.demo.client import Work

pytestmark = marks

STEPS = (
    "release.begin",
    "release.write",  # nothing of the epoch is on the disk
    "release.write#2",  # some of it is
    "release.written",  # all of it, but it may be in a cache only
    "release.synced",
    "release.end",  # and its frames have left
    "released.sent",  # and the other host knows
)
EPOCH_WRITES = frozenset(STEPS[1:5])
"""What only an epoch passes that writes to the disk."""

FATAL_EPOCH = 12
"""Behind the base, which is the first: an ordinary epoch, with a few before it that were released."""

SHAPE = Shape(memory_mib=192, disk_mib=96)
WORK = Work(seed=11, connections=6, pipeline=1, payload_bytes=1500, limit_bytes=64 << 20)
"""More than a block in an epoch: a block that is lost stays lost, because nobody writes it again."""

FORGETFUL = str(Path(__file__).with_name("forgetful_daemon.py"))


def fatal(step: str) -> str:
    """As `REMUSLIKE_KILL_AT` names a step in FATAL_EPOCH or the next epoch that passes it so often."""
    name, _, time = step.partition("#")
    return f"{name}@{FATAL_EPOCH}#{time or 1}"


def share_disk(hosts: Cluster) -> None:
    """The first host's data disk becomes both hosts'; the second one's own is gone."""
    (own,) = hosts.secondary.disks
    own.unlink()
    for node in (hosts.primary, hosts.secondary):
        disk = node.document["guest"]["disks"][1]
        node.document["guest"]["disks"][1] = disk | {"store": str(hosts.primary.disks[0]), "shared": True}


def replayed(survivor: Daemon) -> int:
    return survivor.log.count('"takeover.replayed"')


async def test_whoever_has_the_guest_dies_at_each_step_of_a_release_and_the_disk_is_whole() -> None:
    with cluster(SHAPE) as hosts:
        share_disk(hosts)
        hosts.secondary.document["link"]["successor"] = FIRST_HOST
        first_again = hosts.as_secondary()
        active = hosts.start(hosts.primary, kill_at=fatal(STEPS[0]))
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts, WORK) as client:
            for number, step in enumerate(STEPS):
                node = first_again if number % 2 else hosts.secondary
                after = fatal(STEPS[number + 1]) if number + 1 < len(STEPS) else None
                standby = hosts.start(node, kill_at=after)
                await active.wait_ended(-signal.SIGKILL)
                await standby.wait_phase("active")
                assert hosts.holder == node.document["name"], step
                assert replayed(standby) > 0 or step not in EPOCH_WRITES, step
                await client.wait_progress()
                active = standby
        await stop_guest(hosts, active)
        await client.check_disk(hosts, hosts.primary)


async def test_a_survivor_that_forgets_is_caught() -> None:
    with cluster(SHAPE) as hosts:
        share_disk(hosts)
        primary = hosts.start(hosts.primary, kill_at=fatal("release.write"))
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts, WORK) as client:
            survivor = hosts.start(hosts.secondary, command=(sys.executable, FORGETFUL))
            await primary.wait_ended(-signal.SIGKILL)
            await survivor.wait_phase("active")
            await client.wait_progress()
        await stop_guest(hosts, survivor)
        with pytest.raises(AssertionError):
            await client.check_disk(hosts, hosts.primary)
