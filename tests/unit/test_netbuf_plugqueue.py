"""netbuf.plugqueue: what is asked of a kernel that has no such interface; the lab's tests ask the rest."""

from __future__ import annotations

import os

import pytest

from netbuf.errors import InterfaceVanishedError, KernelRefusedError, PrivilegeError
from netbuf.plugqueue import PlugQueue

NO_INDEX = 0x7FFF_FFFF


def test_an_interface_that_is_gone_is_named() -> None:
    queue = PlugQueue("rl0i", NO_INDEX)
    try:
        for _ in range(3):  # each question finds its own answer
            with pytest.raises(InterfaceVanishedError, match="the hold 'rl0i' is gone"):
                queue.waiting()
            with pytest.raises(InterfaceVanishedError, match="the hold 'rl0i' is gone"):
                queue.passage()
        with pytest.raises(InterfaceVanishedError, match="the guest tap 'rl0g' is gone"):
            queue.check("rl0g", NO_INDEX)
    finally:
        queue.close()


def test_a_change_needs_the_interface_or_the_privilege() -> None:
    queue = PlugQueue("rl0i", NO_INDEX)
    expected = InterfaceVanishedError if os.geteuid() == 0 else PrivilegeError
    try:
        for change in (queue.buffer, queue.release_one, queue.release_all):
            with pytest.raises(expected):
                change()
    finally:
        queue.close()


def test_an_interface_that_exists_is_counted() -> None:
    queue = PlugQueue("lo", 1)
    try:
        reading = queue.passage()
        assert reading.given_items >= 0
    finally:
        queue.close()


def test_a_closed_socket_is_one_named_error() -> None:
    queue = PlugQueue("rl0i", NO_INDEX)
    queue.close()
    queue.close()
    with pytest.raises(KernelRefusedError, match="asking the kernel about 'rl0i' failed"):
        queue.waiting()
