"""The question that this project began with: why treat TCP differently from DHCP and UDP? One must not.

A guest that leases addresses and counts what it echoes loses its hosts, one after the other, and no client
has ever seen an answer from a state that the survivor doesn't have. `--dead-hosts` says how many die.
"""

from __future__ import annotations

import copy
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
from daemon_harness import Cluster, Node, Shape, cluster, marks, run
from dhcp_client import Clients, Wants, asking, find_violations
from dhcp_history import Answer, Echoed, Leased, contradictions, read_books, violations
from guest_client import stop_guest

from remuslike.demo import plan
from remuslike.image import ECHO_LOG, host_tsc_khz, kernel_command_line

pytestmark = marks

KILL_WITHIN_S = 0.2
"""Of being protected again: eight epochs, in any moment of which the host may die."""

SEATS = 4
"""Two on each host, so that the daemon that is needed next has started when it is."""

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


def succeeding_each_other(hosts: Cluster) -> list[Node]:
    """Secondaries on either host by turns, each with the next for its successor."""
    nodes = []
    for seat in range(SEATS):
        base = hosts.secondary if seat % 2 else hosts.primary
        home = base.directory / str(seat)
        home.mkdir()
        document = copy.deepcopy(base.document)
        document |= {"name": f"seat{seat}", "run_directory": home / "run"}
        disk = document["guest"]["disks"][1]
        disk["store"] = shutil.copy(disk["store"], home)
        document["guest"]["local_arguments"] = ["-serial", f"file:{home / 'console'}"]
        document["link"] |= {"address": address_of(seat), "successor": address_of(seat + 1)}
        nodes.append(Node("secondary", base.namespace, home, document))
    return nodes


def address_of(seat: int) -> str:
    host = plan.PEER_ADDRESSES[plan.ROLES[seat % 2]]
    return f"{host}:{plan.REPLICATION_PORT + seat % SEATS}"


def as_primary(node: Node) -> Node:
    """The first, which finds its secondary where others would find their successor."""
    link = {**node.document["link"]}
    link["address"] = link.pop("successor")
    return replace(node, role="primary", document={**node.document, "link": link})


@pytest.mark.parametrize("seed", [1867])
async def test_dead_hosts_have_told_nothing_that_the_survivor_does_not_know(
    pytestconfig: pytest.Config, seed: int
) -> None:
    kills, moments = pytestconfig.getoption("dead_hosts"), Random(seed)
    with dhcp_cluster() as hosts:
        nodes = succeeding_each_other(hosts)
        line = [hosts.start(as_primary(nodes[0]))]
        await hosts.guest_is_up(nodes[0])
        line += map(hosts.start, nodes[1:])
        await line[0].wait_protected()
        async with asking(hosts) as clients:
            for number in range(kills):
                await clients.wait_answers(Leased)
                await clients.wait_answers(Echoed)
                await trio.sleep(moments.uniform(0, KILL_WITHIN_S))
                active = line.pop(0)
                active.kill()
                await active.wait_over(-signal.SIGKILL)
                if number < kills - 2:
                    line.append(hosts.start(nodes[number % SEATS]))
                await line[0].wait_phase("active")
                await clients.wait_answers(Echoed)
                found = await find_violations(hosts, clients)
                assert not found, f"kill {number}: {found[:5]}"
                await line[0].wait_protected_again()
        await stop_guest(hosts, *line)
        check_disk(line[0].node, clients)


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
