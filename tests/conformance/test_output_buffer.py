"""Every OutputBuffer against the suite, and the suite against buffers that are broken on purpose."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fakes.namespace import run_in_namespace
from fakes.output_buffer import FakeBuffer, ReleasesAnyEpoch, ReleasesAtSeal, SealsTwice
from output_buffer_subjects import (
    open_disk_over_file,
    open_disk_over_memory,
    open_fake,
    open_outputs,
    open_plug_in_namespace,
    open_plug_over_model,
    open_tap_in_namespace,
    open_tap_over_sockets,
)
from output_buffer_suite import (
    FAILURE_PROPERTIES,
    PROPERTIES,
    OpenSubject,
    Property,
    many_epochs,
    random_walks_lose_nothing,
)


@dataclass(frozen=True, slots=True)
class Implementation:
    """`epochs` and `walks`: how many of them are cheap enough for a test."""

    name: str
    open_subject: OpenSubject
    epochs: int
    walks: int = 5
    in_namespace: bool = False
    autojump: bool = False  # for an implementation that looks at the kernel from time to time
    outside_can_fail: bool = True

    def run(self, check: Any) -> None:
        """Run `check` to its end, in a namespace of its own if the implementation needs one."""
        clock = trio.testing.MockClock(autojump_threshold=0) if self.autojump else None
        run = partial(trio.run, check, self.open_subject, clock=clock)
        if self.in_namespace:
            run_in_namespace(run)
        else:
            run()


WITHOUT_ROOT = [
    Implementation("fake", open_fake(FakeBuffer), epochs=10_000),
    Implementation("tap hold over sockets", open_tap_over_sockets, epochs=10_000),
    Implementation(
        "plug hold over a model", open_plug_over_model, epochs=10_000, autojump=True, outside_can_fail=False
    ),
    Implementation("disk buffer over memory", open_disk_over_memory, epochs=10_000),
    Implementation("disk buffer over a file", open_disk_over_file, epochs=2_000),
    Implementation("outputs of a tap and two disks", open_outputs(1, 2), epochs=1_000),
    Implementation("outputs of two disks", open_outputs(0, 2), epochs=1_000),
    Implementation("outputs, the first deeper", open_outputs(1, 1, extra_depth=1), epochs=100),
]
IN_NAMESPACE = Implementation("tap hold", open_tap_in_namespace, epochs=500, in_namespace=True)
IN_LAB = Implementation(
    "plug hold",
    open_plug_in_namespace,
    epochs=100,  # ten thousand are `test_netbuf_frames`'s
    walks=2,
    in_namespace=True,
    autojump=True,
    outside_can_fail=False,
)

_ROOT = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]

everywhere = pytest.mark.parametrize(
    "implementation",
    [
        *(pytest.param(implementation, id=implementation.name) for implementation in WITHOUT_ROOT),
        pytest.param(IN_NAMESPACE, id=IN_NAMESPACE.name, marks=_ROOT),
        pytest.param(IN_LAB, id=IN_LAB.name, marks=[pytest.mark.lab, *_ROOT]),
    ],
)


def _name(check: Property) -> str:
    return check.__name__


@everywhere
@pytest.mark.parametrize("check", PROPERTIES, ids=_name)
def test_contract(implementation: Implementation, check: Property) -> None:
    implementation.run(check)


@pytest.mark.parametrize(
    "implementation",
    [implementation for implementation in WITHOUT_ROOT if implementation.outside_can_fail],
    ids=lambda implementation: implementation.name,
)
@pytest.mark.parametrize("check", FAILURE_PROPERTIES, ids=_name)
def test_contract_in_failure(implementation: Implementation, check: Property) -> None:
    implementation.run(check)


@everywhere
def test_random_walks_lose_nothing(implementation: Implementation) -> None:
    implementation.run(partial(random_walks_lose_nothing, count=implementation.walks))


@everywhere
def test_many_epochs(implementation: Implementation) -> None:
    implementation.run(partial(many_epochs, count=implementation.epochs))


@pytest.mark.parametrize(
    ("broken", "catches"),
    [
        (ReleasesAtSeal, {"nothing_leaves_before_its_release", "release_lets_out_its_epoch_and_no_more"}),
        (SealsTwice, {"no_more_than_depth_epochs_are_sealed"}),
        (ReleasesAnyEpoch, {"only_the_oldest_sealed_epoch_is_released"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_buffer_is_caught(broken: type[FakeBuffer], catches: set[str]) -> None:
    caught = {_name(check) for check in PROPERTIES if _fails(check, open_fake(broken))}
    assert catches <= caught


def _fails(check: Any, open_subject: OpenSubject) -> bool:
    try:
        trio.run(check, open_subject)
    except AssertionError:
        return True
    return False
