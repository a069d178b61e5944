"""netbuf.leftovers: what is removed, in which order, what is refused, and what is put back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from netbuf.errors import BridgeError, InterfaceVanishedError, NameClashError, TapError
from netbuf.leftovers import HoldLock, attach, clean, clear, is_locked, tap_holds
from netbuf.redirect import HOLD_ADDRESS, Bridge, Link


@dataclass(slots=True)
class FakeTap:
    """What is known of the tap beside its link."""

    targets: list[int]
    up: bool = True


class FakeNetwork:
    """`netbuf.redirect.Network` over a bridge, a tap in it, and whatever a test adds."""

    def __init__(self, *links: Link) -> None:
        self.known = {link.name: link for link in (BRIDGE, TAP, *links)}
        self.tap = FakeTap([])
        self.asked: list[str] = []

    def link(self, name: str) -> Link | None:
        return self.known.get(name)

    def links(self) -> list[Link]:
        return list(self.known.values())

    def index(self, name: str) -> int:
        if name not in self.known:
            raise InterfaceVanishedError(f"interface {name!r} is gone; find out who deletes it")
        return self.known[name].index

    def bridge(self, name: str) -> Bridge:
        if name != BRIDGE.name:
            raise BridgeError(f"bridge={name!r} doesn't exist; create it")
        return Bridge(name, BRIDGE.index, 1500)

    def redirects(self, index: int) -> list[int]:
        alive = {link.index for link in self.known.values()}
        return [target if target in alive else 0 for target in self.tap.targets] if index == TAP.index else []

    def describe(self, name: str, alias: str) -> None:
        self.asked.append(f"describe {name} {alias!r}")
        self.known[name] = replace(self.known[name], alias=alias)

    def down(self, name: str) -> None:
        self.asked.append(f"down {name}")
        self.tap.up = False

    def up(self, name: str) -> None:
        self.asked.append(f"up {name}")
        self.tap.up = True

    def part(self, name: str) -> None:
        self.asked.append(f"part {name}")
        self.known[name] = replace(self.known[name], master=0)

    def enslave(self, name: str, bridge: Bridge) -> None:
        self.asked.append(f"enslave {name}")
        self.known[name] = replace(self.known[name], master=bridge.index)

    def delete(self, name: str) -> None:
        if self.known.pop(name, None):
            self.asked.append(f"delete {name}")

    def unhook(self, name: str) -> None:
        assert not self.tap.up, "the filters of a tap that is up are what holds its frames"
        self.asked.append(f"unhook {name}")
        self.tap.targets = []


BRIDGE = Link("br0", 2, "bridge", "0a:00:00:00:00:01", "", 0)
TAP = Link("unit0", 3, "tun", "0a:00:00:00:00:02", "", BRIDGE.index)
HOLD = Link("unit0i", 4, "ifb", HOLD_ADDRESS, "netbuf: holds what unit0 sends", 0)


def test_a_leftover_goes_while_the_tap_is_down_and_its_filters_last() -> None:
    network = FakeNetwork(HOLD)
    network.tap.targets = [HOLD.index]
    clear(network, "unit0", "unit0i")  # type: ignore[arg-type]
    assert network.asked == ["down unit0", "part unit0", "delete unit0i", "unhook unit0"]


def test_nothing_is_deleted_where_nothing_was_left() -> None:
    network = FakeNetwork()
    clear(network, "unit0", "unit0i")  # type: ignore[arg-type]
    assert network.asked == ["down unit0", "part unit0", "unhook unit0"]


@pytest.mark.parametrize("stranger", [replace(HOLD, kind="veth"), replace(HOLD, address="0a:00:00:00:00:03")])
def test_an_interface_that_is_no_hold_is_left_alone(stranger: Link) -> None:
    network = FakeNetwork(stranger)
    with pytest.raises(NameClashError, match="'unit0i' exists already and is no hold"):
        clear(network, "unit0", "unit0i")  # type: ignore[arg-type]
    assert network.asked == []


def test_a_redirect_to_somebody_else_is_left_alone() -> None:
    network = FakeNetwork()
    network.tap.targets = [BRIDGE.index]
    with pytest.raises(NameClashError, match="'unit0' is redirected to interface 2"):
        clear(network, "unit0", "unit0i")  # type: ignore[arg-type]
    assert network.asked == []


def test_an_attached_tap_remembers_its_bridge() -> None:
    network = FakeNetwork()
    attached = attach(network, "unit0", None)  # type: ignore[arg-type]
    assert (attached.name, attached.prefix, attached.bridge) == ("unit0", "unit0", "br0")
    assert network.asked[0] == "describe unit0 'netbuf: port of br0'"
    assert not network.tap.up
    assert attach(network, "unit0", None).bridge == "br0"  # type: ignore[arg-type]


def test_what_cannot_be_attached_is_named() -> None:
    network = FakeNetwork(
        Link("veth0", 5, "veth", "", "", 0),
        Link("unit1", 6, "tun", "0a:00:00:00:00:04", "", 0),
        Link("fifteen-letters", 7, "tun", "0a:00:00:00:00:05", "", 2),
        Link("tun0", 8, "tun", "", "", 0),
    )
    for tap, error, message in (
        ("none", TapError, "doesn't exist"),
        ("veth0", TapError, "kind 'veth'"),
        ("tun0", TapError, "without Ethernet"),
        ("fifteen-letters", TapError, "no hold can be named after it, so rename it: "),
        ("unit1", BridgeError, "in no bridge"),
    ):
        with pytest.raises(error, match=f"tap='{tap}'.*{message}"):
            attach(network, tap, None)  # type: ignore[arg-type]
    with pytest.raises(BridgeError, match="bridge='br7'"):
        attach(network, "unit0", "br7")  # type: ignore[arg-type]
    assert network.asked == []


def test_a_tap_that_is_held_is_not_attached() -> None:
    network = FakeNetwork(HOLD)
    lock = HoldLock("unit0")
    try:
        assert is_locked("unit0")
        with pytest.raises(NameClashError, match="'unit0' is held by a running process"):
            attach(network, "unit0", None)  # type: ignore[arg-type]
    finally:
        lock.close()
    assert not is_locked("unit0")
    assert network.asked == []


def test_a_living_hold_of_the_same_name_is_left_alone() -> None:
    """A daemon's guest tap unit0g is held by unit0i, and so would be somebody's tap unit0."""
    network = FakeNetwork(HOLD)
    lock = HoldLock("unit0g")
    try:
        with pytest.raises(
            NameClashError, match="'unit0i' holds what 'unit0g' sends; rename the tap 'unit0'"
        ):
            attach(network, "unit0", None)  # type: ignore[arg-type]
    finally:
        lock.close()
    assert network.asked == []


def test_a_refused_tap_is_not_taken_for_a_leftover_later() -> None:
    network = FakeNetwork(Link("rl0h", 8, "tun", "", "", 0))
    network.tap.targets = [8]
    with pytest.raises(NameClashError, match="redirected to interface 8"):
        attach(network, "unit0", None)  # type: ignore[arg-type]
    network.known["unit0"] = replace(network.known["unit0"], alias="netbuf: port of br0")
    assert clean(network) == []  # type: ignore[arg-type]
    assert network.asked == []


def test_names_that_no_interface_can_have_are_refused() -> None:
    for name, bridge in (("\udcff", None), ("unit0", "br\udcff")):
        with pytest.raises(TapError, match="not ASCII"):
            attach(FakeNetwork(), name, bridge)  # type: ignore[arg-type]


def test_tap_holds_are_known_by_their_redirects_and_names() -> None:
    held, stranger = Link("unit0h", 8, "tun", "", "", 0), Link("vpn0", 9, "tun", "", "", 0)
    network = FakeNetwork(held, stranger)
    assert tap_holds(network) == []  # type: ignore[arg-type]
    network.tap.targets = [stranger.index]
    assert tap_holds(network) == []  # type: ignore[arg-type]
    network.tap.targets = [held.index]
    assert tap_holds(network) == [(TAP, held)]  # type: ignore[arg-type]


def test_clean_puts_an_attached_tap_back() -> None:
    network = FakeNetwork()
    attach(network, "unit0", None)  # type: ignore[arg-type]
    network.known["unit0i"] = HOLD
    network.tap.targets = [HOLD.index]
    network.asked.clear()
    assert clean(network) == [  # type: ignore[arg-type]
        "unit0i: removed, with all that it held",
        "unit0: a port of br0 again, unheld",
    ]
    assert network.asked == [
        "delete unit0i",
        "down unit0",
        "unhook unit0",
        "enslave unit0",
        "up unit0",
        "describe unit0 ''",
    ]
    assert clean(network) == []  # type: ignore[arg-type]


def test_clean_goes_on_behind_a_tap_whose_bridge_is_gone() -> None:
    network = FakeNetwork(Link("unit1", 9, "tun", "0a:00:00:00:00:09", "netbuf: port of br0", 0))
    network.known["unit0"] = replace(TAP, master=0, alias="netbuf: port of br7")
    for _ in range(2):
        left_down, *others = clean(network)  # type: ignore[arg-type]
        assert left_down.startswith("unit0: left down: bridge='br7' doesn't exist")
        assert network.known["unit0"].alias == "netbuf: port of br7"
        assert others in (["unit1: a port of br0 again, unheld"], [])
    assert network.known["unit1"].master == BRIDGE.index


@pytest.mark.parametrize("master", [0, BRIDGE.index])
def test_clean_leaves_a_daemons_tap_down(master: int) -> None:
    """Also one that a plug hold had made a port of the LAN: its guest may still send."""
    network = FakeNetwork()
    network.known["unit0"] = replace(TAP, master=master)
    network.tap.targets = [99]
    assert clean(network) == ["unit0: no longer redirected, left down"]  # type: ignore[arg-type]
    assert not network.tap.up
    assert network.known["unit0"].master == 0


def test_clean_leaves_what_is_in_use_alone() -> None:
    network = FakeNetwork(HOLD)
    network.tap.targets = [HOLD.index]
    network.known["unit0"] = replace(TAP, alias="netbuf: port of br0")
    lock = HoldLock("unit0")
    try:
        assert clean(network) == ["unit0i: in use, left alone"]  # type: ignore[arg-type]
    finally:
        lock.close()
    assert network.asked == []
