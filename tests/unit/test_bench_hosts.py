"""What a visit's hosts are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remuslike.bench.hosts import PATIENT_DETECT_MS, RealGuests, Scene
from remuslike.bench.options import RunOptions
from remuslike.bench.plan import Setting, visits_of
from remuslike.bench.workloads import WORKLOADS
from remuslike.config import Settings, parse_settings
from remuslike.demo.plan import ROLES, Directories, configuration
from remuslike.image import GuestImage

IMAGE = GuestImage(Path("/i/kernel"), Path("/i/initrd"), Path("/i/root"), "7")


def scenes(**changes: Any) -> dict[str, Scene]:
    options = RunOptions(json_path=Path("r"), **{"selection": {"redis": ({"clients": 1},)}, **changes})
    place = RealGuests(options, IMAGE, "tcg", WORKLOADS)
    return {f"{visit.workload}, {visit.setting}": place.scene(visit) for visit in visits_of(options)}


def settings(scene: Scene) -> list[Settings]:
    files = Directories(Path("/d"))
    return [parse_settings(configuration(role, scene.machine, scene.guest, files), role) for role in ROLES]


def test_each_setting_is_what_the_daemons_read() -> None:
    found = scenes(modes=("unprotected", "epoch"), epoch_ms=(10.0,), guest="microvm", vcpus=2)
    assert {name: scene.protection for name, scene in found.items()} == {
        "redis, unprotected": "none",
        "redis, epoch 10 ms": "pair",
    }
    for read in settings(found["redis, epoch 10 ms"]):
        assert read.epoch.epoch_ms == 10
        assert read.link.detect_ms == PATIENT_DETECT_MS
        assert (read.guest.machine, read.guest.vcpus, read.guest.memory_mib) == ("microvm", 2, 512)
        assert "remus.service=redis" in read.guest.append


def test_a_mode_that_is_not_the_first_is_named_and_sets_its_own_epochs() -> None:
    scene = scenes(modes=("adaptive",))["redis, adaptive"]
    assert dict(scene.machine.epoch) == {"mode": "adaptive"}


def test_hosts_that_are_killed_count_as_dead_as_soon_as_asked() -> None:
    found = scenes(modes=("epoch",), kills=1, detect_ms=80, selection={"idle": ({},)})
    assert found["takeover, epoch 25 ms"].machine.detect_ms == 80
    assert "remus.service=redis" in found["takeover, epoch 25 ms"].guest.append
    assert found["idle, epoch 25 ms"].machine.detect_ms == PATIENT_DETECT_MS
    assert "remus.service=none" in found["idle, epoch 25 ms"].guest.append


@pytest.mark.parametrize("setting", [Setting("unprotected"), Setting("epoch", 25)])
def test_the_guest_is_the_same_in_every_setting(setting: Setting) -> None:
    found = scenes(modes=("unprotected", "epoch"))
    assert found[f"redis, {setting}"].guest == found["redis, unprotected"].guest
