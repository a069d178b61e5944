"""The survivor is protected again by the host of the first primary, and dies in turn: nothing is lost."""

from __future__ import annotations

import copy
import signal
from dataclasses import replace
from typing import Any

import trio
from daemon_harness import POLL_S, WAIT_LIMIT_S, Cluster, Daemon, Node, Statistics, cluster, marks
from guest_client import stop_guest, writing

from remuslike.demo import plan
from remuslike.demo.control import ask

pytestmark = marks

FIRST_HOST = f"{plan.PEER_ADDRESSES['primary']}:{plan.REPLICATION_PORT}"


class Survivor(Statistics):
    """A secondary that has taken over also tells what a primary does."""

    protection: dict[str, Any] | None = None


def as_secondary(hosts: Cluster) -> Node:
    """The first host again: same name, files and disks, but now it listens."""
    document = copy.deepcopy(hosts.primary.document)
    document["link"]["address"] = FIRST_HOST
    return replace(hosts.primary, role="secondary", document=document)


async def wait_protected(survivor: Daemon) -> None:
    """Returns when the guest that it has taken over is protected again."""
    with trio.fail_after(WAIT_LIMIT_S):
        while True:
            said = await ask(survivor.node.control, Survivor, "statistics")
            if said.protection is not None and said.protection["protected"]:
                return
            await trio.sleep(POLL_S)


async def test_the_guest_goes_to_the_second_host_and_back() -> None:
    with cluster() as hosts:
        hosts.secondary.document["link"]["successor"] = FIRST_HOST
        primary, survivor = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            primary.kill()
            await primary.wait_ended(-signal.SIGKILL)
            await survivor.wait_phase("active")
            assert hosts.holder == "secondary"
            await client.wait_progress()

            returned = as_secondary(hosts)
            successor = hosts.start(returned)
            await wait_protected(survivor)
            await successor.wait_phase("standby")
            await client.wait_progress()

            survivor.kill()
            await survivor.wait_ended(-signal.SIGKILL)
            taken_over = await successor.wait_phase("active")
            assert hosts.holder == "primary"
            assert taken_over.generation == 3
            await client.wait_progress()
        await stop_guest(hosts, successor)
        await client.check_disk(hosts, returned)
