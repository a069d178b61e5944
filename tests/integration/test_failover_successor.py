"""The survivor is protected again by the host of the first primary, and dies in turn: nothing is lost."""

from __future__ import annotations

import signal

from daemon_harness import FIRST_HOST, cluster, marks
from guest_client import stop_guest, writing

pytestmark = marks


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

            returned = hosts.as_secondary()
            successor = hosts.start(returned)
            await survivor.wait_protected_again()
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
