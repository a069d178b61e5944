"""A holder that is killed at any step of its life: nothing gets out, and the next one starts."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

import pytest
import trio
from integration.test_netbuf_command import check_a_life_on_the_command_line
from integration.test_netbuf_namespaces import Lab, namespaced, numbered
from pyroute2 import IPRoute

from netbuf import PlugHold
from netbuf.plugwiring import PlugWiring
from netbuf.redirect import Network

pytestmark = [
    pytest.mark.lab,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
]

LIMIT_BYTES = 1 << 20
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


def live_and_die(lab: Lab, step: int) -> None:
    """In a child: set up, hold, seal, release, hold more, tear down; killed at the change number `step`."""

    def wire(guest: Any, bridge: str, limit_bytes: int) -> PlugWiring:
        return PlugWiring(guest, bridge, limit_bytes, Network(KillsItself(step)))

    hold = PlugHold(lab.guest, "br0", LIMIT_BYTES, wire=wire)
    hold.hold(1)
    lab.emit(*numbered(100, 2))
    hold.seal(1)
    hold.close()


@namespaced()
def test_killed_at_every_step_it_lets_nothing_out_and_the_next_one_starts(lab: Lab) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for step in range(STEPS_MAX):
        child = os.fork()
        if not child:
            try:
                live_and_die(lab, step)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        try_to_emit(lab)
        assert lab.on_lan() == [], f"killed at step {step}"
        survivor = PlugHold(lab.guest, "br0", LIMIT_BYTES)
        try_to_emit(lab)
        assert lab.on_lan() == [], f"closed, after a kill at step {step}"
        survivor.hold(1)
        survivor.seal(1)
        trio.run(survivor.release, 1)
        assert lab.on_lan() == numbered(0, 3), f"after a kill at step {step}"
        survivor.close()
        if not status:
            assert step > 15  # it has lived to its end
            return
    raise AssertionError(f"more than {STEPS_MAX} steps")


def try_to_emit(lab: Lab) -> None:
    """What a guest does; a tap that is down refuses."""
    with suppress(OSError):
        lab.emit(*numbered(0, 3))


def test_a_life_on_the_command_line() -> None:
    check_a_life_on_the_command_line("plug")
