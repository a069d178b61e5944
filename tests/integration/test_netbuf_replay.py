"""Real frames of an epoch that was sealed and not released, as a survivor would send them again."""

from __future__ import annotations

import os
import random

import pytest
import trio
from integration.netbuf_frames import (
    BROADCAST,
    GUEST_MAC,
    HOST_MAC,
    arp_request,
    ethernet,
    frames_of_every_kind,
    numbered,
    tcp_frame,
)
from integration.netbuf_lab import REQUIREMENTS, Lab, by_each_hold, namespaced, stay_on_one_processor
from pyroute2 import IPRoute

from netbuf import Backend, GuestTap, Hold, PlugHold, SealedFramesError
from netbuf.tap import VNET_HEADER_BYTES

pytestmark = REQUIREMENTS

SEED = 5007
PAYLOAD_BYTES, GSO_BYTES = 32768, 1448


def payload() -> bytes:
    return random.Random(SEED).randbytes(PAYLOAD_BYTES)


def emit_every_kind(lab: Lab, by: GuestTap) -> list[bytes]:
    """A frame of each protocol, a VLAN's among them, and a segment that is still to be cut; the former."""
    frames = list(frames_of_every_kind().values())
    lab.emit(*frames, by=by)
    os.write(by.fileno(), tcp_frame(SEED, payload(), flags=0x18, gso_bytes=GSO_BYTES))
    return frames


def sealed(lab: Lab, hold: Hold, guest: GuestTap) -> list[bytes]:
    """What `hold` says of its first epoch, in which `guest` has sent one of every kind."""
    hold.hold(1)
    emit_every_kind(lab, guest)
    hold.prepare()
    hold.seal(1)
    return hold.sealed_frames(1)


@by_each_hold()
async def test_an_epoch_that_was_never_released_is_replayed_by_another_hold(lab: Lab) -> None:
    hold = lab.make_hold(keep_frames=True)
    frames = sealed(lab, hold, lab.guest)
    hold.close()
    assert lab.on_lan() == []
    second = GuestTap.create("rl1")
    survivor = lab.make_hold(second)
    await survivor.open()
    before = lab.interfaces()
    survivor.replay(frames)
    left = lab.on_lan()
    expected = list(frames_of_every_kind().values())
    assert left[: len(expected)] == expected
    assert b"".join(frame[54:] for frame in left[len(expected) :]) == payload()
    assert lab.interfaces() == before
    survivor.close()


@by_each_hold()
async def test_each_epoch_has_its_own_frames(lab: Lab) -> None:
    hold = lab.make_hold(keep_frames=True)
    lab.try_to_emit(*numbered(0, 2))  # they wait while it is closed, for epoch 1
    hold.hold(1)
    lab.emit(*numbered(2, 2))
    hold.seal(1)
    lab.emit(*numbered(4, 3))
    assert [frame[VNET_HEADER_BYTES:] for frame in hold.sealed_frames(1)] == numbered(0, 4)
    hold.prepare()
    assert [frame[VNET_HEADER_BYTES:] for frame in hold.held_frames()] == numbered(0, 7)
    await hold.release(1)
    hold.seal(2)
    assert [frame[VNET_HEADER_BYTES:] for frame in hold.sealed_frames(2)] == numbered(4, 3)
    for epoch in (1, 3):
        with pytest.raises(SealedFramesError, match=rf"sealed_frames\({epoch}\), but sealed are \[2\]"):
            hold.sealed_frames(epoch)
    await hold.open()
    assert lab.on_lan() == numbered(0, 7)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        lab.emit(*numbered(7, 5))
        assert lab.on_lan() == numbered(7, 5)
        hold.hold(5)
        lab.emit(*numbered(12))
        hold.seal(5)
        assert [frame[VNET_HEADER_BYTES:] for frame in hold.sealed_frames(5)] == numbered(12)
        hold.close()
    if isinstance(hold, PlugHold):
        assert hold.missing_items == 0


@by_each_hold()
async def test_a_hold_that_keeps_none_says_so(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    hold.seal(1)
    for call in (lambda: hold.sealed_frames(1), hold.held_frames):
        with pytest.raises(SealedFramesError, match="without keep_frames"):
            call()


@pytest.mark.lab
@namespaced()
def test_both_holds_keep_the_same_bytes(lab: Lab) -> None:
    stay_on_one_processor()
    second = GuestTap.create("rl1")
    tap = sealed(lab, lab.make_hold(keep_frames=True, backend=Backend.TAP), lab.guest)
    plug = sealed(lab, lab.make_hold(second, keep_frames=True, backend=Backend.PLUG), second)
    assert plug == tap


@by_each_hold()
async def test_a_guest_does_not_hear_its_own_replay(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    for _ in range(2):
        hold.replay([bytes(VNET_HEADER_BYTES) + arp_request()])
        last = ethernet(b"behind it", to=BROADCAST, by=HOST_MAC)
        lab.markers.send(last)
        while (heard := lab.guest_hears()) != last:
            assert heard[6:12] != GUEST_MAC


@pytest.mark.lab
@namespaced(backend=Backend.PLUG)
async def test_a_replay_teaches_the_bridge_nothing(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    hold.replay([bytes(VNET_HEADER_BYTES) + frame for frame in numbered(0, 3)])
    assert lab.on_lan() == numbered(0, 3)
    station = numbered(0)[0][6:12].hex(":")
    with IPRoute() as netlink:
        known = {entry.get_attr("NDA_LLADDR") for entry in netlink.fdb("dump")}
    assert station not in known
