"""The tap hold with real interfaces and real frames: what the plug hold doesn't share."""

from __future__ import annotations

import fcntl
import os

import pytest
import trio
import trio.testing
from integration.netbuf_frames import numbered
from integration.netbuf_lab import REQUIREMENTS, Lab, delete, namespaced, until

from netbuf import GuestTap, InterfaceVanishedError, NameClashError, Pressure
from netbuf.redirect import RING_FRAMES
from netbuf.tap import VNET_HEADER_BYTES

pytestmark = REQUIREMENTS


@namespaced()
async def test_frames_sent_before_a_seal_and_not_yet_read_are_in_it(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, 500))  # nobody runs: they are in the ring when seal comes
    hold.seal(1)
    lab.emit(*numbered(500, 500))
    hold.seal(2)
    assert hold.statistics().held_items == 1000
    assert lab.on_lan() == []
    await hold.release(1)
    assert lab.on_lan() == numbered(0, 500)
    await hold.release(2)
    assert lab.on_lan() == numbered(500, 500)


@namespaced()
async def test_beyond_the_limit_frames_wait_and_what_the_ring_drops_is_counted(lab: Lab) -> None:
    frame_bytes = VNET_HEADER_BYTES + 60
    hold = lab.make_hold(limit_bytes=10 * frame_bytes)
    levels: list[Pressure] = []
    hold.on_pressure(levels.append)
    hold.hold(1)

    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        lab.emit(*numbered(0, 10))
        await until(lambda: hold.pressure is Pressure.FULL)
        assert levels[-1] is Pressure.FULL
        lab.emit(*numbered(10, RING_FRAMES + 123))
        dropped = hold.statistics().dropped_items
        assert 123 <= dropped < 200  # the ring gives the slots of frames that were read back in batches
        assert hold.statistics().held_items == 10
        hold.seal(1)
        kept = 10 + RING_FRAMES + 123 - dropped
        assert hold.statistics().held_items == kept
        assert lab.on_lan() == []
        await hold.release(1)
        assert lab.on_lan() == numbered(0, kept)
        assert hold.pressure is Pressure.NONE
        assert hold.statistics().dropped_items == dropped
        hold.close()
    assert hold.statistics().dropped_items >= 123


@namespaced()
def test_names_of_our_own_are_counted_up(lab: Lab) -> None:
    taps = [GuestTap.create() for _ in range(2)]
    assert [tap.name for tap in taps] == ["rl1g", "rl2g"]
    assert all(not os.get_inheritable(tap.fileno()) for tap in taps)
    assert all(fcntl.fcntl(tap.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK for tap in taps)


@namespaced()
def test_a_guest_tap_serves_one_hold(lab: Lab) -> None:
    lab.make_hold().close()
    with pytest.raises(NameClashError, match="create a new guest tap"):
        lab.make_hold()


@namespaced()
async def test_a_deleted_outlet_keeps_what_is_held_and_is_named(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0))
    hold.seal(1)
    delete("rl0o")
    with pytest.raises(InterfaceVanishedError, match="outlet of rl0g"):
        await hold.release(1)
    assert hold.statistics().sealed_epochs == (1,)
    hold.close()


@namespaced()
async def test_a_deleted_hold_ends_run_by_name_and_seals_nothing(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    caught: list[InterfaceVanishedError] = []

    async def run() -> None:
        with pytest.raises(InterfaceVanishedError, match="hold of rl0g") as failure:
            await hold.run()
        caught.append(failure.value)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            delete("rl0h")
    assert caught
    with pytest.raises(InterfaceVanishedError):
        hold.seal(1)
    lab.emit(*numbered(0))
    assert lab.on_lan() == []
    assert hold.statistics().dropped_items == 1
    hold.close()
