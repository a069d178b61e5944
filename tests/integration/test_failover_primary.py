"""The primary dies at each named step of an epoch, under load: its guest goes on at the secondary."""

from __future__ import annotations

import signal

import pytest
from daemon_harness import Shape, cluster, marks
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
"""Each kind of guest dies at least once; at the other steps it is the plain one."""


@pytest.mark.parametrize("step", PRIMARY_STEPS)
async def test_a_guest_outlives_its_host(step: str) -> None:
    shape = SHAPES.get(step, Shape())
    with cluster(shape) as hosts:
        primary = hosts.start(hosts.primary, kill_at=f"{step}@{FATAL_EPOCH}")
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await secondary.wait_phase("active")
            assert hosts.holder == "secondary"
            assert survivor.takeover is not None
            # The last acknowledgement may have been received, and not the one that was on its way.
            assert FATAL_EPOCH - 3 <= survivor.takeover["epoch"] <= FATAL_EPOCH
            await client.wait_progress()
        for number in range(1, shape.nics):
            assert await shell(hosts, "hostname", address=f"10.77.{number}.2") == "remus-guest\n"
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)
