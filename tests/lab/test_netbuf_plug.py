"""The plug hold with the kernel's plug and real frames: what the tap hold doesn't share."""

from __future__ import annotations

import pytest
from integration.netbuf_frames import numbered
from integration.netbuf_lab import LIMIT_BYTES, REQUIREMENTS, Lab, delete, namespaced
from pyroute2 import IPRoute

from netbuf import (
    Backend,
    HoldBrokenError,
    HoldState,
    InterfaceVanishedError,
    PlugHold,
    choose,
    make_hold,
)
from netbuf.leftovers import clean
from netbuf.redirect import Network

pytestmark = [pytest.mark.lab, *REQUIREMENTS]


# --- limits and tampering -----------------------------------------------------------------------


@namespaced(backend=Backend.PLUG)
async def test_what_exceeds_the_kernels_limit_is_counted_once(lab: Lab) -> None:
    hold = lab.make_hold(limit_bytes=600)
    hold.hold(1)
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname="rl0i")[0]
        netlink.tc("change", "plug", index=index, handle=0x9B0F0000, action="TCQ_PLUG_LIMIT", limit=600)
    lab.emit(*numbered(0, 13))
    hold.seal(1)
    figures = hold.statistics()
    assert (figures.held_items, figures.held_bytes, figures.dropped_items) == (10, 600, 3)
    assert hold.pressure.value == "full"
    await hold.release(1)
    assert lab.on_lan() == numbered(0, 10)


@namespaced(backend=Backend.PLUG)
async def test_a_hold_that_somebody_deletes_is_named_and_lets_nothing_out(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, 3))
    hold.seal(1)
    delete("rl0i")
    with pytest.raises(InterfaceVanishedError, match="'rl0i' is gone"):
        await hold.release(1)
    lab.emit(*numbered(3, 2))
    assert lab.on_lan() == []
    assert hold.statistics().state is HoldState.DISCARDED
    assert hold.statistics().dropped_items >= 2


@pytest.mark.parametrize("act", ["down", "unplug", "replace"])
def test_a_plug_that_somebody_changes_is_cut(act: str) -> None:
    @namespaced(backend=Backend.PLUG)
    async def scenario(lab: Lab) -> None:
        hold = lab.make_hold()
        hold.hold(1)
        lab.emit(*numbered(0, 3))
        hold.prepare()
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname="rl0i")[0]
            if act == "down":
                netlink.link("set", index=index, state="down")
                netlink.link("set", index=index, state="up")
            elif act == "unplug":
                netlink.tc("del", index=index, parent=0xFFFFFFFF)
            else:
                netlink.tc("replace", "pfifo_fast", index=index, parent=0xFFFFFFFF, handle=0x10000)
        with pytest.raises(HoldBrokenError):
            hold.seal(1)
        lab.on_lan()
        lab.emit(*numbered(9, 3))
        assert lab.on_lan() == []

    scenario()


@namespaced(backend=Backend.PLUG)
async def test_a_redirect_that_somebody_deletes_cuts_the_guest_off(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    with IPRoute() as netlink:
        netlink.tc("del", "clsact", index=netlink.link_lookup(ifname="rl0g")[0])
    with pytest.raises(HoldBrokenError, match="somebody has changed its filters"):
        await hold.run()
    lab.on_lan()
    lab.emit(*numbered(9, 3))
    assert lab.on_lan() == []


# --- leftovers ----------------------------------------------------------------------------------


@namespaced(backend=Backend.PLUG)
async def test_an_end_in_order_leaves_no_interface(lab: Lab) -> None:
    hold = lab.make_hold()
    await hold.open()
    hold.close()
    with IPRoute() as netlink:
        assert netlink.link_lookup(ifname="rl0i") == []


@namespaced(backend=Backend.PLUG)
def test_clean_leaves_a_living_hold_alone(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    network = Network()
    assert clean(network) == ["rl0i: in use, left alone"]
    network.close()
    lab.emit(*numbered(0))
    hold.seal(1)


# --- choice -------------------------------------------------------------------------------------


@namespaced(backend=Backend.PLUG)
def test_auto_takes_the_plug_here(lab: Lab) -> None:
    choice = choose("auto", LIMIT_BYTES)
    assert choice.backend is Backend.PLUG
    with IPRoute() as netlink:
        assert netlink.link_lookup(ifname="probe") == []
    made = make_hold(choice.backend, lab.guest, "br0", LIMIT_BYTES, depth=2)
    assert isinstance(made, PlugHold)
    made.close()
