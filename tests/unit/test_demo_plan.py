"""Names, files and configurations of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from remuslike.config import parse_settings
from remuslike.demo.options import DEFAULTS
from remuslike.demo.plan import (
    ROLES,
    Directories,
    GuestFiles,
    Namespaces,
    Role,
    abandoned,
    configuration,
    kill_after_s,
)

GUEST = GuestFiles(
    Path("/images/kernel"), Path("/images/initrd"), Path('/images/a "b" é/root'), "quiet", "tcg"
)


@pytest.mark.parametrize("role", ROLES)
def test_a_configuration_is_what_the_daemons_read(role: Role) -> None:
    options = replace(DEFAULTS, mode="adaptive", epoch_ms=12.5, detect_ms=80, machine="microvm", vcpus=2)
    settings = parse_settings(configuration(role, options, GUEST, Directories(Path("/tmp/demo"))), "test")
    assert settings.name == role
    assert (settings.epoch.mode, settings.epoch.epoch_ms) == ("adaptive", 12.5)
    assert settings.link.detect_ms == 80
    assert (settings.guest.machine, settings.guest.vcpus, settings.guest.accelerator) == ("microvm", 2, "tcg")
    assert [disk.read_only for disk in settings.guest.disks] == [True, False]
    assert settings.guest.disks[0].image == GUEST.root
    assert str(settings.control_path) == f"/tmp/demo/{role}/run/control.sock"


def test_both_sides_have_the_same_guest_but_for_their_own_files() -> None:
    texts = [configuration(role, DEFAULTS, GUEST, Directories(Path("/d"))) for role in ROLES]
    assert texts[0].replace("primary", "secondary") == texts[1]


def test_only_namespaces_of_dead_demos_are_abandoned() -> None:
    names = ["rl-10-a", "rl-10-c", "rl-11-b", "rl-x-a", "rl-10-d", "other", "xrl-10-a", "rl-10-a-x"]
    assert abandoned(names, frozenset({11})) == ["rl-10-a", "rl-10-c"]
    assert set(Namespaces(10).all) <= set(abandoned(Namespaces(10).all, frozenset()))


@pytest.mark.parametrize("seed", range(200))
def test_the_host_dies_in_the_second_half_at_a_moment_of_the_seed(seed: int) -> None:
    moment = kill_after_s(seed, 10)
    assert 5 <= moment < 10
    assert moment == kill_after_s(seed, 10)


def test_different_seeds_give_different_moments() -> None:
    assert len({kill_after_s(seed, 10) for seed in range(100)}) == 100
