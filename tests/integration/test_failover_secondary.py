"""The secondary dies: its primary goes on, alone or paused, and is protected again by the next one."""

from __future__ import annotations

import signal

import trio
from daemon_harness import Shape, cluster, marks
from guest_client import stop_guest, writing

from remuslike.engine.ports import BACKUP_STEPS

pytestmark = marks

EPOCHS_BEFORE_DEATH = 10
STALL_OBSERVED_S = 1.0
SLOW_EPOCH_MS = 100


async def test_a_primary_outlives_secondaries_that_die_at_each_step_and_is_survived_in_the_end() -> None:
    with cluster() as hosts:
        hosts.secondary.document["link"]["ack"] = "durable"  # so that the journal's step is one of them
        primary = hosts.start(hosts.primary)
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            epoch = 0
            for step in BACKUP_STEPS:
                secondary = hosts.start(hosts.secondary, kill_at=f"{step}@{epoch + EPOCHS_BEFORE_DEATH}")
                await secondary.wait_ended(-signal.SIGKILL)
                alone = await primary.wait_phase("solo")
                assert epoch + EPOCHS_BEFORE_DEATH <= alone.epoch, step
                assert hosts.holder == "primary"
                epoch = alone.epoch
                await client.wait_progress()

            secondary = hosts.start(hosts.secondary)
            await primary.wait_protected()
            await client.wait_progress()
            primary.kill()
            await secondary.wait_phase("active")
            assert hosts.holder == "secondary"
            await client.wait_progress()
        await stop_guest(hosts, secondary)
        await client.check_disk(hosts, hosts.secondary)


async def test_a_stalling_primary_keeps_everything_back_until_a_secondary_joins() -> None:
    with cluster(Shape(on_secondary_loss="stall")) as hosts:
        for node in (hosts.primary, hosts.secondary):
            # It boots protected, and writes all its RAM in that: fewer checkpoints let it get there sooner.
            node.document["epoch"]["epoch_ms"] = SLOW_EPOCH_MS
        primary = hosts.start(hosts.primary)
        await primary.wait_phase("stalled")
        secondary = hosts.start(hosts.secondary)
        await primary.wait_protected()
        await hosts.guest_is_up(hosts.primary)
        async with writing(hosts) as client:
            await client.wait_progress()
            secondary.kill()
            await primary.wait_phase("stalled")

            acknowledged, before = client.acknowledged, await primary.statistics()
            await trio.sleep(STALL_OBSERVED_S)
            after = await primary.statistics()
            assert client.acknowledged == acknowledged
            assert before is not None
            assert after is not None
            assert [held["released_items"] for held in after.held.values()] == [
                held["released_items"] for held in before.held.values()
            ]

            secondary = hosts.start(hosts.secondary)
            await primary.wait_protected()
            await client.wait_progress()
        await stop_guest(hosts, primary, secondary)
        assert not hosts.disks_differ()
        await client.check_disk(hosts, hosts.secondary)


async def test_a_secondary_that_is_asked_to_stop_leaves_its_primary_alone() -> None:
    with cluster() as hosts:
        primary, secondary = await hosts.protect()
        async with writing(hosts) as client:
            await client.wait_progress()
            secondary.terminate()
            await secondary.wait_ended(0)
            await primary.wait_phase("solo")
            await client.wait_progress()
        # Alone, there is no last checkpoint to wait for.
        primary.terminate()
        await primary.wait_ended(0)
