"""The modes with real guests, and what a survivor replays of a host that died between ack and release."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence

import pytest
import trio
from daemon_harness import Cluster, Shape, cluster, marks
from dhcp_client import Wants, asking, find_violations
from dhcp_history import Echoed, Leased
from guest_client import stop_guest, writing
from test_dhcp import dhcp_cluster

from remuslike.config import Mode

pytestmark = marks

FATAL_EPOCH = 12
"""Behind the base and some ordinary epochs."""

BEFORE, BEHIND = f"release.begin@{FATAL_EPOCH}", f"release.end@{FATAL_EPOCH}"
"""The epoch is acknowledged, and none of its outputs has left; or all have, unknown to the secondary."""

SLOW_EPOCH_MS = 100
"""Long enough for tens of questions to be answered in each epoch of the mode that takes no note of frames."""


IDLE_S = 2
"""In which the checkpoints of an idle guest are counted."""


def in_mode(hosts: Cluster, mode: Mode, epoch_ms: float, taps: Sequence[str] = ("net", "disk")) -> None:
    for node in (hosts.primary, hosts.secondary):
        node.document["epoch"] = {"mode": mode, "epoch_ms": epoch_ms, "taps": list(taps)}


@pytest.mark.parametrize(
    ("mode", "fatal_step", "missing", "twice"),
    [
        pytest.param("event-tap", BEFORE, False, False, id="replayed"),
        pytest.param("event-tap", BEHIND, False, True, id="sent and replayed"),
        pytest.param("epoch", BEFORE, True, False, id="lost, as on any network"),
    ],
)
async def test_a_tapped_udp_reply_comes_from_the_survivor(
    mode: Mode, fatal_step: str, missing: bool, twice: bool
) -> None:
    """The guest numbers its answers, and no question is asked twice: a number that is missing between others
    is an answer that was lost. What comes twice is the same both times, and hurts nobody.

    Who is to be told twice leases nothing: dnsmasq probes what it offers, and a probe might be all that the
    fatal epoch sent."""
    wants = Wants(leases_per_s=0 if twice else 5)
    with dhcp_cluster() as hosts:
        in_mode(hosts, mode, SLOW_EPOCH_MS, taps=["net"])  # so that each epoch has a frame
        primary = hosts.start(hosts.primary, kill_at=fatal_step)
        await hosts.guest_is_up(hosts.primary)
        async with asking(hosts, wants) as clients:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await secondary.wait_phase("active")
            await clients.wait_answers(Echoed, 20)
            if wants.leases_per_s:
                await clients.wait_answers(Leased)
            assert await find_violations(hosts, clients) == []
        assert survivor.takeover is not None
        assert (survivor.takeover["replayed_frames"] > 0) is (mode == "event-tap")
        numbers = Counter(answer.number for answer in clients.answers if isinstance(answer, Echoed))
        lost = set(range(min(numbers), max(numbers))) - numbers.keys()
        assert bool(lost) is missing, f"answers that nobody got: {sorted(lost)}"
        assert (max(numbers.values()) > 1) is twice


async def test_what_a_checkpoint_does_itself_taps_nothing() -> None:
    """QEMU flushes the disks when it saves its devices: were that the guest's output, each checkpoint would
    start the next."""
    with cluster(Shape()) as hosts:
        in_mode(hosts, "event-tap", 25)
        primary, _ = await hosts.protect()
        before = await primary.statistics()
        await trio.sleep(IDLE_S)
        after = await primary.statistics()
        assert before is not None
        assert after is not None
        assert after.epoch - before.epoch < IDLE_S * 20  # what its kernel and redis do by the way


@pytest.mark.parametrize(
    ("mode", "taps", "fatal_step"),
    [
        ("event-tap", ["net"], BEHIND),
        ("event-tap", ["disk"], BEFORE),
        ("adaptive", ["net", "disk"], BEFORE),
    ],
)
async def test_a_guest_outlives_its_host_in_every_mode(mode: Mode, taps: list[str], fatal_step: str) -> None:
    """As `test_failover_primary` tries for the mode "epoch": TCP replies, which may come twice, and a disk
    that fits them."""
    with cluster(Shape(disks=2, nics=2)) as hosts:
        in_mode(hosts, mode, 25, taps)
        primary = hosts.start(hosts.primary, kill_at=fatal_step)
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            secondary = hosts.start(hosts.secondary)
            await primary.wait_ended(-signal.SIGKILL)
            survivor = await secondary.wait_phase("active")
            assert survivor.mode == mode
            assert survivor.takeover is not None
            if mode == "event-tap":
                assert (survivor.takeover["replayed_frames"] > 0) is ("net" in taps)
            assert FATAL_EPOCH - 1 <= survivor.takeover["epoch"] <= FATAL_EPOCH + (fatal_step == BEHIND)
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)
