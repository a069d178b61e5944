"""The primary dies at each named step of an epoch, under load: its guest goes on at the secondary."""

from __future__ import annotations

import signal

import pytest
from daemon_harness import FIRST_HOST, Shape, cluster, marks
from guest_client import shell, stop_guest, writing

from remuslike.engine.ports import PRIMARY_STEPS

pytestmark = marks

FATAL_EPOCH = 12
"""Behind the base, which is the first: an ordinary epoch, with a few before it that were released."""

SHAPES = {
    "checkpoint.begin": Shape(),
    "checkpoint.paused": Shape(machine="q35"),
    "checkpoint.sealed": Shape(vcpus=2),
    "checkpoint.captured": Shape(disks=2, nics=2),
    "send.half": Shape(machine="q35", extra_arguments=("-device", "virtio-rng-pci")),
    "ack.received": Shape(machine="q35", vcpus=2, disks=2, nics=2),
}
"""Each kind of guest loses its host once. At the other steps the plain one does, again and again."""

OTHER_STEPS = tuple(step for step in PRIMARY_STEPS if step not in SHAPES)


@pytest.mark.parametrize("step", SHAPES)
async def test_a_guest_outlives_its_host(step: str) -> None:
    shape = SHAPES[step]
    with cluster(shape) as hosts:
        primary = hosts.start(hosts.primary, kill_at=f"{step}@{FATAL_EPOCH}")
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await secondary.wait_phase("active")
            assert hosts.holder == "secondary"
            assert survivor.takeover is not None
            # The last acknowledgement may have been received, but not the one that was on its way.
            assert FATAL_EPOCH - 3 <= survivor.takeover["epoch"] <= FATAL_EPOCH
            await client.wait_progress()
        for number in range(1, shape.nics):
            assert await shell(hosts, "hostname", address=f"10.77.{number}.2") == "remus-guest\n"
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)


async def test_a_guest_outlives_one_host_after_the_other() -> None:
    with cluster() as hosts:
        hosts.secondary.document["link"]["successor"] = FIRST_HOST
        first_again = hosts.as_secondary()
        active = hosts.start(hosts.primary, kill_at=f"{OTHER_STEPS[0]}@{FATAL_EPOCH}")
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            for number, step in enumerate(OTHER_STEPS):
                node = first_again if number % 2 else hosts.secondary
                following = OTHER_STEPS[number + 1 : number + 2]
                standby = hosts.start(node, *(f"{name}@{FATAL_EPOCH}" for name in following))
                await active.wait_ended(-signal.SIGKILL)
                survivor = await standby.wait_phase("active")
                assert hosts.holder == node.document["name"], step
                assert survivor.takeover is not None
                assert FATAL_EPOCH - 3 <= survivor.takeover["epoch"] <= FATAL_EPOCH, step
                await client.wait_progress()
                active = standby
        await stop_guest(hosts, active)
        await client.check_disk(hosts, node)
