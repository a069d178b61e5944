"""The synthetic guest is protected like any other: hosts that die, and a hold that leaks. At the other steps
of an epoch real guests do (`test_failover_primary`)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import trio
from daemon_harness import marks, wait_for
from synthetic_harness import ADDRESS, Frames, counting, synthetic_cluster

from remuslike.synthetic import Rates
from remuslike.synthetic.history import judge_numbers

pytestmark = marks

RATES = Rates(
    dirty_pages_s=5000, working_set_mib=16, frames_s=200, disk_writes_s=200, address=ADDRESS, seed=77
)
FATAL_EPOCH = 20
LEAKY = (sys.executable, str(Path(__file__).with_name("leaky_daemon.py")))
LEAKY_EPOCH_MS = 200


@pytest.mark.parametrize("step", ["checkpoint.sealed", "send.half"])
async def test_it_outlives_its_host_and_contradicts_nothing(step: str) -> None:
    with synthetic_cluster(RATES) as hosts:
        primary = hosts.start(hosts.primary, kill_at=f"{step}@{FATAL_EPOCH}")
        async with counting(hosts) as clients:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            await secondary.wait_phase("active")
            await clients.wait_progress()
            report = await clients.client.verify()
        assert clients.findings() == []
        assert (report.contradictions, report.disk_errors, report.activations) == (0, 0, 1)
        assert report.passes >= 2
        assert min(report.pages, report.frames, report.blocks, report.requests) > 0
        assert len(clients.frames.numbers) > 0


async def test_what_a_stalled_guest_had_sent_comes_from_the_next_host() -> None:
    """Its first secondary dies before it acknowledges an epoch, its host before that may leave."""
    with synthetic_cluster(RATES, on_secondary_loss="stall") as hosts:
        for node in (hosts.primary, hosts.secondary):
            node.document["epoch"]["mode"] = "event-tap"
        primary = hosts.start(hosts.primary, kill_at=f"release.begin@{FATAL_EPOCH}")
        first = hosts.start(hosts.secondary, kill_at=f"receive.complete@{FATAL_EPOCH}")
        frames = Frames()
        async with trio.open_nursery() as nursery:
            await nursery.start(frames.listen, hosts.namespaces.client)
            await first.wait_ended(-signal.SIGKILL)
            await primary.wait_phase("stalled")
            second = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await second.wait_phase("active")
            before = len(frames.numbers)
            await wait_for("more frames", lambda: len(frames.numbers) >= before + 50)
            nursery.cancel_scope.cancel()
        assert survivor.takeover is not None
        assert survivor.takeover["epoch"] > FATAL_EPOCH, "the second session's base"
        assert survivor.takeover["replayed_frames"] > 0
        numbered = judge_numbers(frames.numbers)
        assert (numbered.missing, numbered.findings()) == (0, [])


async def test_a_hold_that_releases_at_the_seal_is_found_out() -> None:
    with synthetic_cluster(Rates(address=ADDRESS)) as hosts:
        hosts.primary.document["epoch"]["epoch_ms"] = LEAKY_EPOCH_MS
        leaky = hosts.start(hosts.primary, command=LEAKY)
        survivor = hosts.start(hosts.secondary)
        async with counting(hosts, durable=False) as clients:
            await leaky.wait_ended(-signal.SIGKILL)
            await survivor.wait_phase("active")
            await clients.wait_progress(1)
        found = clients.findings()
        assert found
        assert all(" lost: " in finding for finding in found), found


async def test_a_bad_word_is_named_by_the_daemon() -> None:
    with synthetic_cluster(RATES) as hosts:
        hosts.primary.document["guest"]["append"] = "synthetic.dirty_pages_s=many"
        primary = hosts.start(hosts.primary)
        await primary.wait_ended(1)
        assert "synthetic.dirty_pages_s = 'many': must be a whole number" in primary.log
