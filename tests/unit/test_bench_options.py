"""What `bench run` may be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from remuslike.bench.errors import BenchOptionError
from remuslike.bench.options import (
    RunOptions,
    parse_epochs,
    parse_guest,
    parse_modes,
    parse_workloads,
    refuse_others,
)
from remuslike.bench.results import Header


@dataclass(frozen=True)
class Described:
    name: str
    variants: tuple[Mapping[str, int], ...] = ({},)
    limits: Mapping[str, tuple[int, int]] = field(default_factory=dict)


KNOWN = {
    "redis": Described("redis", ({"clients": 1}, {"clients": 16}), {"clients": (1, 1000)}),
    "cpu": Described(
        "cpu",
        ({"pages": 0, "mib": 1}, {"pages": 9, "mib": 1}, {"pages": 9, "mib": 8}),
        {"pages": (0, 99), "mib": (1, 8)},
    ),
    "idle": Described("idle"),
}
OPTIONS = RunOptions(json_path=Path("/tmp/r.jsonl"), selection={"redis": ({"clients": 1},)})
ENVIRONMENT = {"at": "now", "commit": "abcdef", "cpu": "Y", "kernel": "6.1", "tools": {"qemu": "7.2"}}
HEADER = Header(environment=ENVIRONMENT, options=OPTIONS.recorded())


def test_the_baseline_is_always_measured_and_first() -> None:
    assert parse_modes("adaptive,epoch") == ("unprotected", "epoch", "adaptive")
    assert parse_modes("epoch, unprotected") == ("unprotected", "epoch")
    assert parse_modes("all") == ("unprotected", "epoch", "event-tap", "adaptive")


def test_epochs_are_a_list_without_doubles() -> None:
    assert parse_epochs("50,12.5,50") == (50.0, 12.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("idle", {"idle": ({},)}),
        ("redis:clients=16", {"redis": ({"clients": 16},)}),
        ("redis:clients=3", {"redis": ({"clients": 3},)}),
        ("cpu:pages=9", {"cpu": ({"pages": 9, "mib": 1}, {"pages": 9, "mib": 8})}),
        ("cpu:pages=9:mib=8", {"cpu": ({"pages": 9, "mib": 8},)}),
        ("redis:clients=1,idle,redis", {"redis": ({"clients": 1}, {"clients": 16}), "idle": ({},)}),
    ],
)
def test_values_choose_a_workloads_variants_or_make_one(text: str, expected: object) -> None:
    assert parse_workloads(text, KNOWN) == expected


def test_all_is_every_variant_of_every_workload() -> None:
    assert parse_workloads("all", KNOWN) == {name: each.variants for name, each in KNOWN.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mysql", "'mysql' is unknown; the known ones are redis, cpu, idle"),
        ("", "'' is unknown"),
        ("redis:clients", "redis:clients: give PARAMETER=NUMBER; its parameters: clients"),
        ("redis:streams=4", "its parameters: clients"),
        ("idle:x=1", "its parameters: none"),
        ("redis:clients=0", "redis:clients=0 is out of range; give 1 to 1000"),
    ],
)
def test_what_no_workload_is_called_is_refused(text: str, message: str) -> None:
    with pytest.raises(BenchOptionError, match=message):
        parse_workloads(text, KNOWN)


def test_unknown_modes_and_guests_are_answered_with_the_known_ones() -> None:
    with pytest.raises(BenchOptionError, match="'remus' is unknown; the known ones are unprotected, epoch, "):
        parse_modes("epoch,remus")
    with pytest.raises(BenchOptionError, match="'arm' is unknown; the known ones are q35, microvm"):
        parse_guest("arm")
    with pytest.raises(BenchOptionError, match="no list of milliseconds"):
        parse_epochs("25,fast")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epoch_ms": (25.0, 0.0)}, "--epoch-ms 0"),
        ({"seconds": 0}, "--seconds 0"),
        ({"repeat": -1}, "--repeat -1"),
        ({"memory_mib": 64}, "--memory-mib 64"),
        ({"detect_ms": 49.0}, "--detect-ms 49"),
        ({"json_path": Path("/nowhere/at/all.jsonl")}, "its directory doesn't exist"),
    ],
)
def test_values_out_of_range_are_named(changes: dict[str, Any], named: str) -> None:
    OPTIONS.check()
    with pytest.raises(BenchOptionError, match=named):
        replace(OPTIONS, **changes).check()


def test_a_file_of_the_same_options_is_gone_on_with() -> None:
    read_again = Header.model_validate_json(HEADER.model_dump_json())
    refuse_others(read_again, HEADER, replace(OPTIONS, json_path=Path("/tmp/moved.jsonl")))


@pytest.mark.parametrize(
    ("name", "value"), [("commit", "fedcba"), ("cpu", "Z"), ("tools", {"qemu": "8.0"}), ("kernel", None)]
)
def test_a_file_of_another_program_or_machine_is_refused_unless_forced(name: str, value: Any) -> None:
    now = HEADER.model_copy(update={"environment": {**ENVIRONMENT, name: value}})
    with pytest.raises(BenchOptionError, match=f"was begun with {name} = .*--force"):
        refuse_others(HEADER, now, OPTIONS)
    refuse_others(HEADER, now, replace(OPTIONS, force=True))


def test_when_it_was_begun_does_not_matter() -> None:
    refuse_others(HEADER, HEADER.model_copy(update={"environment": {**ENVIRONMENT, "at": "later"}}), OPTIONS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seconds": 9}, "--seconds: /tmp/r.jsonl was begun with 5, this asks for 9"),
        ({"selection": {"redis": ({"clients": 2},)}}, "--workloads: "),
        ({"epoch_ms": (25.0, 50.0)}, "--epoch-ms: "),
        ({"guest": "microvm"}, "--guest: "),
    ],
)
def test_a_file_of_other_options_is_refused_by_the_first(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(BenchOptionError, match=named):
        refuse_others(HEADER, HEADER, replace(OPTIONS, force=True, **changes))


def test_a_file_with_options_unheard_of_is_refused() -> None:
    header = Header(environment={}, options={**OPTIONS.recorded(), "colour": "blue"})
    with pytest.raises(BenchOptionError, match=r"--colour: .* 'blue'"):
        refuse_others(header, HEADER, OPTIONS)
