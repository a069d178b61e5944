"""`python -m netbuf` on a tap that somebody else made: hold, kill, status, clean."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click.testing
import pytest
from integration.test_netbuf_namespaces import Lab, namespaced, numbered
from pyroute2 import IPRoute

from netbuf.__main__ import cli
from netbuf.errors import BridgeError, NameClashError, TapError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]


def make_port(lab: Lab) -> None:
    """The guest's tap as any other tool would leave it: up, a port of the bridge."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
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


def check_a_life_on_the_command_line(backend: str) -> None:
    @namespaced()
    def scenario(lab: Lab) -> None:
        make_port(lab)
        lab.emit(*numbered(0))
        assert lab.on_lan() == numbered(0)

        holder = started(["hold", "--tap", lab.guest.name, "--every", "20", "--hold", backend])
        deadline = time.monotonic() + 20
        while not is_held(lab.guest.name):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        seen = wait_for_frames(lab, 5)
        assert seen == sorted(seen)
        with pytest.raises(NameClashError, match="running process"):
            cli.main(["hold", "--tap", lab.guest.name, "--every", "20"], standalone_mode=False)

        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        lab.on_lan()
        lab.emit(*numbered(0, 5))
        assert lab.on_lan() == []
        if backend == "plug":
            (line,) = invoked("status").output.splitlines()
            status = json.loads(line)
            assert (status["hold"], status["in_use"]) == (lab.guest.name + "i", False)
            assert status["waiting_items"] >= 5

        holder = started(["hold", "--tap", lab.guest.name, "--every", "20", "--hold", backend])
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

    scenario()


def test_a_life_on_the_command_line_with_the_tap_hold() -> None:
    check_a_life_on_the_command_line("tap")


@namespaced()
def test_a_tap_that_is_none_is_named(lab: Lab) -> None:
    for tap, message in (("rl7", "doesn't exist"), ("host0", "of kind 'veth'")):
        with pytest.raises(TapError, match=f"tap='{tap}'.*{message}"):
            cli.main(["hold", "--tap", tap, "--every", "20", "--hold", "tap"], standalone_mode=False)


@namespaced()
def test_a_tap_in_no_bridge_needs_one_named(lab: Lab) -> None:
    with pytest.raises(BridgeError, match="tap='rl0g' is in no bridge"):
        cli.main(["hold", "--tap", "rl0g", "--every", "20", "--hold", "tap"], standalone_mode=False)
    with pytest.raises(BridgeError, match="bridge='br7' doesn't exist"):
        cli.main(
            ["hold", "--tap", "rl0g", "--every", "20", "--hold", "tap", "--bridge", "br7"],
            standalone_mode=False,
        )
