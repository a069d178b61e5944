"""The whole system on the kernel's plug and soft-dirty bits, end to end, with the synthetic guest: real ones
don't run in the lab."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from daemon_harness import Daemon, Statistics, run
from synthetic_harness import ADDRESS, Clients, counting, synthetic_cluster

from remuslike.config import Mode
from remuslike.demo import plan
from remuslike.synthetic import Rates
from remuslike.synthetic.history import judge_numbers

pytestmark = [
    pytest.mark.lab,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

RATES = Rates(dirty_pages_s=200, working_set_mib=2, frames_s=20, disk_writes_s=20, address=ADDRESS, seed=3)
"""The lab's processors are emulated: two daemons and two guests share two of them."""

DETECT_MS = 5000

EPOCH_MS = 100
RARE_MS = 10_000
"""In the mode that takes note of outputs: so rare that the clients would wait in vain without that note."""

ANSWERS = 50

FATAL_STEP = "release.begin@20"
"""The epoch is acknowledged, and none of its outputs has left."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Both daemons, and clients at work."""

    primary: Daemon
    secondary: Daemon
    clients: Clients

    async def goes_on(self) -> Statistics:
        """The primary is dead or dying: the survivor, which serves its clients, and no two parts of which
        contradict each other."""
        await self.primary.wait_over(-signal.SIGKILL)
        survivor = await self.secondary.wait_phase("active")
        await self.clients.wait_progress(ANSWERS)
        report = await self.clients.client.verify()
        assert (report.contradictions, report.disk_errors, report.activations) == (0, 0, 1)
        assert min(report.pages, report.frames, report.blocks, report.requests) > 0
        return survivor


def keep_order(namespace: str) -> None:
    """Have one processor receive all that comes to the LAN's ports.

    A veth hands a frame to the processor that sent it, so those of two processors overtake each other, by a
    second in the lab, where a daemon with real-time priority keeps one of them from its softirqs.
    """
    for port in plan.PORTS.values():
        setting = f"/sys/class/net/{port}/queues/rx-0/rps_cpus"
        run("ip", "netns", "exec", namespace, "sh", "-c", f"echo 1 >{setting}")


@asynccontextmanager
async def plugged(mode: Mode, epoch_ms: float, kill_at: str | None = None) -> AsyncIterator[Pair]:
    """In the block the primary's host dies."""
    with synthetic_cluster(RATES, detect_ms=DETECT_MS) as hosts:
        keep_order(hosts.namespaces.client)
        for node in (hosts.primary, hosts.secondary):
            node.document["epoch"] = {"mode": mode, "epoch_ms": epoch_ms}
            node.document["buffers"] = {"hold": "plug"}
            node.document["guest"]["tracker"] = "soft-dirty"
        primary, secondary = hosts.start(hosts.primary, kill_at), hosts.start(hosts.secondary)
        # Beside clients at work both would take longer to start.
        for daemon, what in ((primary, '"phase": "solo"'), (secondary, "secondary.ready")):
            await daemon.wait_logged(what)
        async with counting(hosts) as clients:
            yield Pair(primary, secondary, clients)
        assert clients.findings() == []
        secondary.terminate()
        await secondary.wait_ended(0)
        # A killed holder's interface stays, and lets nothing out.
        if mode == "epoch":  # once: to start Python takes seconds in the lab
            enter = ("ip", "netns", "exec", hosts.primary.namespace)
            assert "primary0i: removed" in run(*enter, sys.executable, "-m", "netbuf", "clean")
        else:
            run("ip", "-n", hosts.primary.namespace, "link", "delete", "primary0i")
        for daemon in (primary, secondary):
            assert await daemon.wait_logged('"backend": "plug"')
        assert await primary.wait_logged('"tracker": "soft-dirty"')


async def test_a_host_dies_and_nothing_acknowledged_is_lost() -> None:
    async with plugged("epoch", EPOCH_MS) as pair:
        await pair.primary.wait_protected()
        await pair.clients.wait_progress(ANSWERS)
        pair.primary.kill()
        survivor = await pair.goes_on()
        assert survivor.takeover is not None
        assert survivor.takeover["replayed_frames"] == 0


async def test_what_was_tapped_comes_from_the_survivor_and_none_is_missing() -> None:
    async with plugged("event-tap", RARE_MS, FATAL_STEP) as pair:
        survivor = await pair.goes_on()
        assert survivor.takeover is not None
        assert survivor.takeover["replayed_frames"] > 0
        assert judge_numbers(pair.clients.frames.numbers).missing == 0
