"""Both hosts live and don't hear each other: the witness leaves one of them active (P3)."""

from __future__ import annotations

import signal

import pytest
from daemon_harness import Daemon, cluster, marks
from guest_client import stop_guest, writing

from remuslike.demo import plan

pytestmark = marks

FENCED = 3


def freeze(daemon: Daemon) -> None:
    """Let it notice nothing until `thaw`: who asks the witness first is then no race."""
    daemon.process.popen.send_signal(signal.SIGSTOP)


def thaw(daemon: Daemon) -> None:
    daemon.process.popen.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("lan", ["lan up", "lan cut"])
async def test_a_primary_that_is_cut_off_is_fenced_and_its_output_never_gets_out(lan: str) -> None:
    with cluster() as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            if lan == "lan cut":
                hosts.set_link(hosts.namespaces.client, plan.PORTS["primary"], "down")
            hosts.set_peer_link("down")
            freeze(primary)
            await secondary.wait_phase("active")
            thaw(primary)
            await primary.wait_ended(FENCED)
            assert hosts.holder == "secondary"
            hosts.set_link(hosts.namespaces.client, plan.PORTS["primary"], "up")
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)


async def test_a_secondary_that_is_cut_off_waits_and_protects_again_when_the_link_is_back() -> None:
    with cluster() as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            hosts.set_peer_link("down")
            freeze(secondary)
            await primary.wait_phase("solo")
            thaw(secondary)
            refused = await secondary.wait_phase("waiting")
            assert refused.takeover is None
            assert hosts.holder == "primary"
            await client.wait_progress()
            hosts.set_peer_link("up")
            await primary.wait_protected()
            await client.wait_progress()
        await stop_guest(hosts, primary, secondary)
        assert not hosts.disks_differ()
        await client.check_disk(hosts, hosts.primary)


async def test_without_an_answer_of_the_witness_nobody_goes_on() -> None:
    with cluster() as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            record = hosts.witness.read_bytes()
            hosts.witness.write_bytes(b"no record")
            primary.kill()
            await secondary.wait_logged("witness.unreachable")
            acknowledged = client.acknowledged
            # Asked for again five times a second.
            await secondary.wait("asking again", lambda _: secondary.log.count("witness.unreachable") >= 3)
            waiting = await secondary.wait_phase("contending")
            assert waiting.applied == waiting.acknowledged
            assert client.acknowledged == acknowledged
            hosts.witness.write_bytes(record)
            await secondary.wait_phase("active")
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)
