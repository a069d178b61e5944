"""Synthetic guests in a benchmark: what the daemons are told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remuslike.bench.options import RunOptions
from remuslike.bench.plan import visits_of
from remuslike.bench.synthetic import SyntheticGuests
from remuslike.bench.workloads.synthetic import WORKLOADS, rates_of
from remuslike.config import parse_settings
from remuslike.demo.plan import ROLES, Directories, configuration
from remuslike.synthetic import program_path
from remuslike.synthetic.rates import parse_append


def options(**changes: Any) -> RunOptions:
    given = {
        "guest": "synthetic",
        "modes": ("unprotected", "epoch"),
        "selection": {"requests": ({"clients": 4, "dirty_pages_s": 10}, {"clients": 1, "dirty_pages_s": 10})},
        "repeat": 1,
    }
    return RunOptions(json_path=Path("r"), **{**given, **changes})


def test_every_variant_has_a_guest_of_its_own() -> None:
    visits = visits_of(options())
    assert [len(visit.variants) for visit in visits] == [1] * 4
    assert [str(visit.setting) for visit in visits] == ["unprotected", "epoch 25 ms"] * 2


def test_the_daemons_start_its_program_with_the_variants_rates() -> None:
    chosen = options(kills=1)
    visits = visits_of(chosen)
    scenes = [SyntheticGuests(chosen).scene(visit) for visit in visits]
    assert [scene.protection for scene in scenes] == ["solo", "pair", "solo", "pair", "pair"]
    for scene in scenes:
        for role in ROLES:
            text = configuration(role, scene.machine, scene.guest, Directories(Path("/d")))
            read = parse_settings(text, role)
            assert read.guest.qemu == str(program_path())
            assert [disk.name for disk in read.guest.disks] == ["data"]
            assert read.guest.kernel is None
            assert parse_append(read.guest.append).address == "10.77.0.2/24"
    assert parse_append(scenes[0].guest.append).dirty_pages_s == 10
    assert parse_append(scenes[-1].guest.append).disk_writes_s > 0, "the kill is under every kind of work"


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_keeps_the_contract(name: str) -> None:
    workload = WORKLOADS[name]
    assert workload.name == name
    for variant in workload.variants:
        assert variant.keys() == workload.limits.keys()
        assert all(low <= variant[key] <= high for key, (low, high) in workload.limits.items())
        rates_of(variant, "10.77.0.2/24")
