"""The whole system on the kernel's plug and soft-dirty bits, end to end, with the synthetic guest: real ones
don't run in the lab."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from daemon_harness import run
from synthetic_harness import ADDRESS, counting, synthetic_cluster

from remuslike.synthetic import Rates

pytestmark = [
    pytest.mark.lab,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

RATES = Rates(dirty_pages_s=200, working_set_mib=2, frames_s=20, disk_writes_s=20, address=ADDRESS, seed=3)
"""The lab's processors are emulated: two daemons and two guests share two of them."""

EPOCH_MS = 100
DETECT_MS = 5000


async def test_a_host_dies_and_nothing_acknowledged_is_lost() -> None:
    with synthetic_cluster(RATES, detect_ms=DETECT_MS) as hosts:
        for node in (hosts.primary, hosts.secondary):
            node.document["epoch"]["epoch_ms"] = EPOCH_MS
            node.document["buffers"] = {"hold": "plug"}
            node.document["guest"]["tracker"] = "soft-dirty"
        primary, secondary = hosts.start(hosts.primary), hosts.start(hosts.secondary)
        async with counting(hosts) as clients:
            await primary.wait_protected()
            await clients.wait_progress(50)
            primary.kill()
            await primary.wait_over(-signal.SIGKILL)
            await secondary.wait_phase("active")
            await clients.wait_progress(50)
            report = await clients.client.verify()
        assert clients.findings() == []
        assert (report.contradictions, report.disk_errors, report.activations) == (0, 0, 1)
        assert min(report.pages, report.frames, report.blocks, report.requests) > 0
        secondary.terminate()
        await secondary.wait_ended(0)
        # A killed holder's interface stays, and lets nothing out.
        enter = ("ip", "netns", "exec", hosts.primary.namespace)
        assert "primary0i: removed" in run(*enter, sys.executable, "-m", "netbuf", "clean")
        for daemon in (primary, secondary):
            assert await daemon.wait_logged('"backend": "plug"')
        assert await primary.wait_logged('"tracker": "soft-dirty"')
