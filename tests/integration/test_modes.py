"""The modes with real guests, and what a survivor replays of a host that died between ack and release."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import pytest
from daemon_harness import Cluster, Shape, cluster, marks
from dhcp_client import Wants, asking
from dhcp_history import Echoed
from guest_client import stop_guest, writing
from test_dhcp import dhcp_cluster

from remuslike.config import MODES, Mode

pytestmark = marks

FATAL_EPOCH = 12
"""Behind the base and some ordinary epochs."""

FATAL_STEP = f"release.begin@{FATAL_EPOCH}"
"""The epoch is acknowledged, and none of its outputs has left."""

SLOW_EPOCH_MS = 100
"""Long enough for tens of questions to be answered in each epoch of the mode that takes no note of frames."""


def in_mode(hosts: Cluster, mode: Mode, epoch_ms: float, taps: Sequence[str] = ("net", "disk")) -> None:
    for node in (hosts.primary, hosts.secondary):
        node.document["epoch"] = {"mode": mode, "epoch_ms": epoch_ms, "taps": list(taps)}


@pytest.mark.parametrize(("mode", "all_told"), [("event-tap", True), ("epoch", False)])
async def test_a_tapped_udp_reply_comes_from_the_survivor(mode: Mode, all_told: bool) -> None:
    """The guest numbers its answers, and no question is asked twice: a number that is missing between others
    is an answer that was lost. In the mode "epoch" some are, as on any network; so the test can fail."""
    with dhcp_cluster() as hosts:
        in_mode(hosts, mode, SLOW_EPOCH_MS, taps=["net"])  # so that each epoch has a frame
        primary = hosts.start(hosts.primary, kill_at=FATAL_STEP)
        await hosts.guest_is_up(hosts.primary)
        async with asking(hosts, Wants(leases_per_s=0)) as clients:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await secondary.wait_phase("active")
            await clients.wait_answers(Echoed, 20)
        assert survivor.takeover is not None
        assert (survivor.takeover["replayed_frames"] > 0) is all_told
        numbers = {answer.number for answer in clients.answers if isinstance(answer, Echoed)}
        missing = set(range(min(numbers), max(numbers))) - numbers
        assert (not missing) is all_told, f"answers that nobody got: {sorted(missing)}"


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "epoch"])
async def test_a_guest_outlives_its_host_in_every_mode(mode: Mode) -> None:
    """As `test_failover_primary` tries for the mode "epoch": TCP replies, and a disk that fits them."""
    with cluster(Shape(disks=2, nics=2)) as hosts:
        in_mode(hosts, mode, 25)
        primary = hosts.start(hosts.primary, kill_at=FATAL_STEP)
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await secondary.wait_phase("active")
            assert survivor.mode == mode
            assert survivor.takeover is not None
            assert FATAL_EPOCH - 1 <= survivor.takeover["epoch"] <= FATAL_EPOCH
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)
