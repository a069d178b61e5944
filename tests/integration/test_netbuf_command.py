"""`python -m netbuf` on a tap that somebody else made: hold, kill, status, clean."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click.testing
import pytest
from integration.netbuf_frames import numbered
from integration.netbuf_lab import REQUIREMENTS, Lab, by_each_hold, namespaced, stay_on_one_processor
from pyroute2 import IPRoute

from netbuf import Backend
from netbuf.__main__ import cli
from netbuf.errors import BridgeError, NameClashError, TapError
from netbuf.redirect import RING_FRAMES

pytestmark = REQUIREMENTS


def make_port(lab: Lab) -> None:
    """The guest's tap as any other tool would leave it: up, a port of the bridge."""
    stay_on_one_processor()
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=lab.guest.name)[0]
        netlink.link("set", index=index, master=netlink.link_lookup(ifname="br0")[0])
        netlink.link("set", index=index, state="up")


def started(arguments: Sequence[str]) -> int:
    """The process id of a child that runs the command."""
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            cli.main(list(arguments), standalone_mode=False)
        finally:
            os._exit(0)
    return child


def invoked(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(cli, arguments)


def wait_for_frames(lab: Lab, count: int) -> list[bytes]:
    """Emit one again and again until the hold has let some out; what came."""
    deadline = time.monotonic() + 20
    seen: list[bytes] = []
    for number in range(1_000_000):
        with suppress(OSError):  # the tap is down for a moment while it is attached
            lab.emit(*numbered(number))
        seen += lab.on_lan()
        if len(seen) >= count:
            return seen
        assert time.monotonic() < deadline, f"{len(seen)} frames in 20 s"
        time.sleep(0.005)
    raise AssertionError


def is_held(tap: str) -> bool:
    """Whether its frames are redirected, so that `hold` has got that far."""
    with IPRoute() as netlink:
        index = netlink.link_lookup(ifname=tap)[0]
        return any(netlink.get_filters(index=index, parent=0xFFFFFFF2))


@by_each_hold()
def test_a_life_on_the_command_line(lab: Lab) -> None:
    make_port(lab)
    lab.emit(*numbered(0))
    assert lab.on_lan() == numbered(0)

    holder = started(["hold", "--tap", lab.guest.name, "--every", "20", "--hold", lab.backend.value])
    deadline = time.monotonic() + 20
    while not is_held(lab.guest.name):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    seen = wait_for_frames(lab, 5)
    assert seen == sorted(seen)
    with pytest.raises(NameClashError, match="running process"):
        cli.main(["hold", "--tap", lab.guest.name, "--every", "20"], standalone_mode=False)
    status = status_of_the_only_hold()
    suffix = {Backend.TAP: "h", Backend.PLUG: "i"}[lab.backend]
    assert status["hold"] == lab.guest.name + suffix
    assert (status["backend"], status["in_use"], status["refused_items"]) == (lab.backend, True, 0)
    assert (status["waiting_items"] is None) == (lab.backend is Backend.TAP)

    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    lab.on_lan()
    lab.emit(*numbered(0, 5))
    assert lab.on_lan() == []
    if lab.backend is Backend.PLUG:
        status = status_of_the_only_hold()
        assert not status["in_use"]
        assert status["waiting_items"] >= 5
    else:
        assert invoked("status").output == ""

    holder = started(["hold", "--tap", lab.guest.name, "--every", "20", "--hold", lab.backend.value])
    wait_for_frames(lab, 5)
    os.kill(holder, signal.SIGINT)
    assert os.waitpid(holder, 0)[1] == 0
    lab.on_lan()
    lab.emit(*numbered(0, 5))
    assert lab.on_lan() == []

    assert f"{lab.guest.name}: a port of br0 again, unheld" in invoked("clean").output
    lab.emit(*numbered(7, 3))
    assert lab.on_lan() == numbered(7, 3)
    assert invoked("clean").output == invoked("status").output == ""


@by_each_hold()
def test_a_refused_hold_and_clean_leave_a_living_one_alone(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    with pytest.raises(NameClashError, match="held by a running process"):
        cli.main(["hold", "--tap", lab.guest.name, "--every", "20", "--bridge", "br0"], standalone_mode=False)
    said = invoked("clean").output
    assert "unheld" not in said
    assert "removed" not in said
    lab.emit(*numbered(0, 5))
    assert lab.on_lan() == []
    hold.seal(1)
    assert lab.on_lan() == []


@namespaced()
def test_what_a_tap_hold_could_not_take_is_shown(lab: Lab) -> None:
    hold = lab.make_hold()
    hold.hold(1)
    lab.emit(*numbered(0, RING_FRAMES + 7))
    assert status_of_the_only_hold()["refused_items"] == 7
    assert hold.statistics().dropped_items == 7


@by_each_hold()
def test_a_tap_that_is_none_is_named(lab: Lab) -> None:
    for tap, message in (("rl7", "doesn't exist"), ("host0", "of kind 'veth'")):
        with pytest.raises(TapError, match=f"tap='{tap}'.*{message}"):
            hold_by_command(lab, "--tap", tap)


@by_each_hold()
def test_a_tap_in_no_bridge_needs_one_named(lab: Lab) -> None:
    with pytest.raises(BridgeError, match="tap='rl0g' is in no bridge"):
        hold_by_command(lab, "--tap", "rl0g")
    with pytest.raises(BridgeError, match="bridge='br7' doesn't exist"):
        hold_by_command(lab, "--tap", "rl0g", "--bridge", "br7")


def hold_by_command(lab: Lab, *arguments: str) -> None:
    cli.main(["hold", "--every", "20", "--hold", lab.backend.value, *arguments], standalone_mode=False)


def status_of_the_only_hold() -> dict[str, Any]:
    (line,) = invoked("status").output.splitlines()
    status: dict[str, Any] = json.loads(line)
    return status
