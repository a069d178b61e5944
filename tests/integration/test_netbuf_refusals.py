"""What can be wrong with a hold: each is named, and leaves the guest without a way out."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from integration.netbuf_frames import numbered
from integration.netbuf_lab import REQUIREMENTS, Lab, by_each_hold, delete, run_with_lab
from pyroute2 import IPRoute

from netbuf import (
    Backend,
    BridgeError,
    GuestTap,
    InterfaceVanishedError,
    KernelModuleError,
    LimitError,
    NameClashError,
    PrivilegeError,
    choose,
)

pytestmark = REQUIREMENTS

AT_FIRST = {"lo", "br0", "host0", "rl0g"}


def assert_closed(lab: Lab) -> None:
    lab.try_to_emit(*numbered(0, 3))
    assert lab.on_lan() == []


@dataclass(frozen=True, slots=True)
class NamedTap:
    """A guest's tap as a caller may name one."""

    name: str
    prefix: str


@by_each_hold()
def test_a_wrong_bridge_is_named_and_leaves_nothing(lab: Lab) -> None:
    for bridge, message in (("br7", "doesn't exist; create it"), ("host0", "of kind 'veth'")):
        with pytest.raises(BridgeError, match=f"bridge='{bridge}'.*{message}"):
            lab.make_hold(bridge=bridge)
        assert lab.interfaces() == AT_FIRST
        assert_closed(lab)


@by_each_hold()
def test_a_guest_tap_that_does_not_exist_is_named(lab: Lab) -> None:
    with pytest.raises(InterfaceVanishedError, match="interface 'rl7g' is gone"):
        lab.make_hold(NamedTap("rl7g", "rl7"))
    assert lab.interfaces() == AT_FIRST


@by_each_hold()
def test_a_limit_or_depth_of_nothing_is_named_and_leaves_nothing(lab: Lab) -> None:
    with pytest.raises(LimitError, match="limit_bytes=0"):
        lab.make_hold(limit_bytes=0)
    assert lab.interfaces() == AT_FIRST
    assert_closed(lab)


@by_each_hold()
def test_a_process_without_the_privilege_is_told_so(lab: Lab) -> None:
    os.setresuid(65534, 65534, 65534)
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        GuestTap.create("rl5")
    with pytest.raises(PrivilegeError, match="CAP_NET_ADMIN"):
        lab.make_hold()
    assert lab.interfaces() == AT_FIRST
    assert_closed(lab)


@by_each_hold()
def test_a_name_clash_is_named_and_the_stranger_left_alone(lab: Lab) -> None:
    with pytest.raises(NameClashError, match="'rl0g' exists already"):
        GuestTap.create("rl0")
    for name in {Backend.TAP: ("rl0h", "rl0o"), Backend.PLUG: ("rl0i",)}[lab.backend]:
        with IPRoute() as netlink:
            netlink.link("add", ifname=name, kind="bridge")
        with pytest.raises(NameClashError, match=f"'{name}' exists already"):
            lab.make_hold()
        assert lab.interfaces() == {*AT_FIRST, name}
        assert_closed(lab)
        delete(name)


@by_each_hold()
async def test_a_second_hold_of_a_tap_is_refused_and_the_first_holds_on(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, 2))
    with pytest.raises(NameClashError):
        lab.make_hold()
    lab.emit(*numbered(2, 2))
    hold.seal(1)
    assert lab.on_lan() == []
    await hold.release(1)
    assert lab.on_lan() == numbered(0, 4)


@by_each_hold()
def test_a_guest_tap_that_vanishes_while_held_is_named(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, 3))
    hold.prepare()
    delete("rl0g")
    with pytest.raises(InterfaceVanishedError, match="guest tap 'rl0g' is gone"):
        trio.run(hold.run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert_closed(lab)


@by_each_hold()
def test_a_hold_that_vanishes_is_named_and_lets_nothing_out(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, 3))
    delete({Backend.TAP: "rl0h", Backend.PLUG: "rl0i"}[lab.backend])
    with pytest.raises(InterfaceVanishedError, match="hold"):
        hold.seal(1)
    assert_closed(lab)
    assert hold.statistics().dropped_items >= 3
    hold.close()
    assert_closed(lab)


def test_a_kernel_without_sch_plug_is_told_what_to_install() -> None:
    """Where it is there, this kernel can't show it: the answers to its lack are in the unit tests."""
    if choose("auto", 1).backend is Backend.PLUG:
        pytest.skip("this kernel has sch_plug")

    def refused(lab: Lab) -> None:
        with pytest.raises(KernelModuleError, match=r"no (sch_plug|ifb); install .*linux-image-amd64"):
            lab.make_hold(backend=Backend.PLUG)
        assert lab.interfaces() == AT_FIRST
        assert_closed(lab)

    run_with_lab(refused)
