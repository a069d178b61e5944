"""The question that this project began with: why treat TCP differently from DHCP and UDP? One must not.

A guest that leases addresses and counts what it echoes loses fifty hosts, one after the other, and no client
has ever seen an answer from a state that the survivor doesn't have.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from daemon_harness import FIRST_HOST, Cluster, Node, Shape, cluster, marks, run
from dhcp_client import Clients, Wants, asking, find_violations
from dhcp_history import Answer, Echoed, Leased, contradictions, read_books, violations
from guest_client import stop_guest

from remuslike.demo import plan
from remuslike.image import ECHO_LOG, host_tsc_khz, kernel_command_line

pytestmark = marks

KILLS = 50

KILL_WITHIN_S = 0.2
"""Of being protected again: eight epochs, in any moment of which the host may die."""

SECOND_HOST = f"{plan.PEER_ADDRESSES['secondary']}:{plan.REPLICATION_PORT}"
LEAKS: dict[str, tuple[type[Answer], Wants]] = {
    "udp": (Echoed, Wants(leases_per_s=0)),
    "dhcp": (Leased, Wants(echoes_per_s=0, leases_per_s=50, offers=False)),
}
LEAKY_EPOCH_MS = 200
"""Long enough for tens of questions that are asked and answered within one epoch."""

LEAKY = (sys.executable, str(Path(__file__).with_name("leaky_daemon.py")))


@contextmanager
def dhcp_cluster() -> Iterator[Cluster]:
    """A guest with the service "dhcp", and room in its network for all the clients that ask."""
    with cluster(Shape(service="none")) as hosts:
        append = kernel_command_line(
            addresses=[f"{plan.GUEST_ADDRESS}/16"],
            data_disk="vdb",
            service="dhcp",
            dhcp_pool=("10.77.16.0", "10.77.63.255"),
            tsc_khz=host_tsc_khz(),
        )
        for node in (hosts.primary, hosts.secondary):
            node.document["guest"]["append"] = append
        yield hosts


def succeeding_each_other(hosts: Cluster) -> dict[str, Node]:
    """Both hosts as secondaries, each with the other for its successor, by the host's namespace."""
    first, second = hosts.as_secondary(), hosts.secondary
    first.document["link"]["successor"] = SECOND_HOST
    second.document["link"]["successor"] = FIRST_HOST
    return {node.namespace: node for node in (first, second)}


@pytest.mark.parametrize("seed", [1867])
async def test_fifty_dead_hosts_have_told_nothing_that_the_survivor_does_not_know(seed: int) -> None:
    moments = Random(seed)
    with dhcp_cluster() as hosts:
        nodes = succeeding_each_other(hosts)
        active, standby = await hosts.protect()
        async with asking(hosts) as clients:
            for number in range(KILLS):
                await clients.wait_answers(Leased)
                await clients.wait_answers(Echoed)
                await trio.sleep(moments.uniform(0, KILL_WITHIN_S))
                active.kill()
                await active.wait_ended(-signal.SIGKILL)
                # It takes a while to come up, and the survivor is asked meanwhile.
                successor = hosts.start(nodes[active.node.namespace])
                await standby.wait_phase("active")
                await clients.wait_answers(Echoed)
                found = await find_violations(hosts, clients)
                assert not found, f"kill {number}: {found[:5]}"
                active, standby = standby, successor
                await active.wait_protected_again()
        await stop_guest(hosts, active, standby)
        check_disk(active.node, clients)


def check_disk(node: Node, clients: Clients) -> None:
    """The log on the survivor's data disk, for tools that know nothing of this project."""
    (disk,) = node.disks
    run("e2fsck", "-fn", str(disk))
    log = run("debugfs", "-R", f"cat /{Path(ECHO_LOG).name}", str(disk))
    found = violations(
        [answer for answer in clients.answers if isinstance(answer, Echoed)], read_books(log, "")
    )
    assert not found, found[:5]


@pytest.mark.parametrize(("kind", "wants"), LEAKS.values(), ids=LEAKS)
async def test_a_hold_that_releases_at_the_seal_is_found_out(kind: type[Answer], wants: Wants) -> None:
    with dhcp_cluster() as hosts:
        hosts.primary.document["epoch"]["epoch_ms"] = LEAKY_EPOCH_MS
        leaky = hosts.start(hosts.primary, command=LEAKY)
        await hosts.guest_is_up(hosts.primary)
        survivor = hosts.start(hosts.secondary)
        # Asked for longer, dnsmasq has questions queue up: each lease takes it longer than the last.
        await survivor.wait_phase("standby")
        async with asking(hosts, wants) as clients:
            await leaky.wait_ended(-signal.SIGKILL)
            await survivor.wait_phase("active")
            assert await find_violations(hosts, clients)
            # The next clients are told what others were told before.
            await clients.wait_answers(kind, 50)
            assert list(contradictions(clients.answers))
