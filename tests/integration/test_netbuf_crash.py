"""A holder that is killed at any step of its life: nothing gets out, and the next one starts."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any

import pytest
import trio
from integration.netbuf_frames import numbered
from integration.netbuf_lab import HOLDS, LIMIT_BYTES, REQUIREMENTS, Lab, by_each_hold, run_with_lab
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netbuf import Backend, Hold, PlugHold, TapHold
from netbuf.leftovers import AttachedTap, attach
from netbuf.plugwiring import PlugWiring
from netbuf.redirect import Network
from netbuf.wiring import TapWiring

pytestmark = REQUIREMENTS

STEPS_MAX = 60


class KillsItself:
    """pyroute2's `IPRoute`; at the change number `step` the process dies, before the kernel hears of it."""

    def __init__(self, step: int) -> None:
        self._netlink = IPRoute()
        self._left = step

    def link(self, command: str, **what: Any) -> Any:
        return self._change(command, self._netlink.link, **what)

    def tc(self, command: str, *kind: str, **what: Any) -> Any:
        return self._change(command, self._netlink.tc, *kind, **what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._netlink, name)

    def _change(self, command: str, call: Any, *arguments: str, **what: Any) -> Any:
        if command != "get":
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        return call(command, *arguments, **what)


class RefusesToCut:
    """pyroute2's `IPRoute` to a kernel with no memory to delete an interface or part it from its bridge."""

    def __init__(self) -> None:
        self._netlink = IPRoute()
        self.refuses = False

    def link(self, command: str, **what: Any) -> Any:
        if self.refuses and (command == "del" or what.get("master") == 0):
            raise NetlinkError(errno.ENOMEM)
        return self._netlink.link(command, **what)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._netlink, name)


def make_hold(backend: Backend, guest: AttachedTap, network: Network) -> Hold:
    """A hold that makes its interfaces through `network`."""
    if backend is Backend.PLUG:
        return PlugHold(
            guest,
            guest.bridge,
            LIMIT_BYTES,
            wire=lambda guest, bridge, limit_bytes: PlugWiring(guest, bridge, limit_bytes, network),
        )
    return TapHold(
        guest, guest.bridge, LIMIT_BYTES, wire=lambda guest, bridge: TapWiring(guest, bridge, network)
    )


def live_and_die(lab: Lab, step: int) -> None:
    """In a child: set up, hold, seal, hold more, tear down; killed at the change number `step`."""
    network = Network(KillsItself(step))
    hold = make_hold(lab.backend, attach(network, "rl0g", "br0"), network)
    hold.hold(1)
    lab.emit(*numbered(100, 2))
    hold.seal(1)
    lab.emit(*numbered(200, 2))
    hold.close()


@by_each_hold()
def test_killed_at_every_step_it_lets_nothing_out_and_the_next_one_starts(lab: Lab) -> None:
    for step in range(STEPS_MAX):
        child = os.fork()
        if not child:
            status = 1
            try:
                live_and_die(lab, step)
                status = 0
            finally:
                os._exit(status)
        _, wait_status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(wait_status)
        assert ended in (0, -signal.SIGKILL), f"it failed at step {step}, and was not killed"
        lab.try_to_emit(*numbered(0, 3))
        assert lab.on_lan() == [], f"killed at step {step}"
        network = Network()
        survivor = lab.make_hold(attach(network, "rl0g", "br0"))
        network.close()
        lab.try_to_emit(*numbered(0, 3))
        assert lab.on_lan() == [], f"closed, after a kill at step {step}"
        survivor.hold(1)
        survivor.seal(1)
        trio.run(survivor.release, 1)
        assert lab.on_lan() == numbered(0, 3), f"after a kill at step {step}"
        survivor.close()
        if ended == 0:
            assert step > 15, "it has lived to its end, but there are more steps in a life"
            return
    raise AssertionError(f"more than {STEPS_MAX} steps")


@by_each_hold()
def test_an_open_hold_that_the_kernel_does_not_take_down_lets_nothing_out_once_discarded(lab: Lab) -> None:
    netlink = RefusesToCut()
    network = Network(netlink)
    hold = make_hold(lab.backend, attach(network, "rl0g", "br0"), network)
    trio.run(hold.open)
    netlink.refuses = True
    hold.discard()
    lab.try_to_emit(*numbered(0, 3))
    assert lab.on_lan() == []


@by_each_hold()
def test_killed_while_it_holds_after_having_been_open_it_lets_nothing_out(lab: Lab) -> None:
    reader, writer = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            hold = lab.make_hold()
            trio.run(hold.open)
            hold.hold(1)
            os.write(writer, b"h")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 1) == b"h"
        lab.emit(*numbered(0, 5))
        assert lab.on_lan() == []
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    lab.emit(*numbered(5, 5))
    assert lab.on_lan() == []


@pytest.mark.lab
@pytest.mark.parametrize("successor", [hold.values[0] for hold in HOLDS])
def test_whatever_holds_next_finds_what_a_killed_plug_left(successor: Backend) -> None:
    def scenario(lab: Lab) -> None:
        child = os.fork()
        if not child:
            try:
                lab.make_hold(attach(Network(), "rl0g", "br0")).hold(1)
                lab.emit(*numbered(0, 5))
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert "rl0gi" in lab.interfaces()
        network = Network()
        hold = lab.make_hold(attach(network, "rl0g", "br0"), backend=successor)
        network.close()
        assert ("rl0gi" in lab.interfaces()) == (successor is Backend.PLUG)
        hold.hold(1)
        lab.emit(*numbered(5, 2))
        hold.seal(1)
        trio.run(hold.release, 1)
        assert lab.on_lan() == numbered(5, 2)
        hold.close()

    run_with_lab(scenario, backend=Backend.PLUG)
