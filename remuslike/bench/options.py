"""What `bench run` can be asked for, and how workloads are named on its command line. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from remuslike.bench.errors import BenchOptionError
from remuslike.bench.results import UNPROTECTED, Guest, Header, Mode
from remuslike.config import DETECT_MS_MIN

MODES: tuple[Mode, ...] = get_args(Mode)
GUESTS: tuple[Guest, ...] = get_args(Guest)

Parameters = Mapping[str, int]
Selection = Mapping[str, tuple[Parameters, ...]]
"""Names of workloads, and in which variants each is to be measured."""

_PARAMETER = re.compile(r"([a-z_]+)=(\d{1,9})")


class Described(Protocol):
    """What has to be known of a workload to choose its variants: `limits` are of each parameter's values."""

    @property
    def name(self) -> str: ...
    @property
    def variants(self) -> tuple[Parameters, ...]: ...
    @property
    def limits(self) -> Mapping[str, tuple[int, int]]: ...


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One invocation of `bench run`; `check` refuses what can't be run.

    Each cell's load takes `seconds`, each variant gives `repeat` of them; `kills` is how many hosts die in
    each protected setting. `detect_ms` is of those cells only: the others end nothing on purpose, and a
    machine that is as busy as a benchmark makes it shall not be taken for dead. `force` goes on with a file
    of another program or machine.
    """

    json_path: Path
    selection: Selection
    modes: tuple[Mode, ...] = MODES
    epoch_ms: tuple[float, ...] = (25.0,)
    guest: Guest = "q35"
    seconds: int = 5
    repeat: int = 3
    kills: int = 0
    memory_mib: int = 512
    vcpus: int = 1
    detect_ms: float = 100
    force: bool = False

    def check(self) -> None:
        """Raises BenchOptionError for the first value out of range. Widths follow `remuslike.config`."""
        ranges: tuple[tuple[str, float, float, float], ...] = (
            *(("--epoch-ms", value, 1, 10_000) for value in self.epoch_ms),
            ("--seconds", self.seconds, 1, 60),
            ("--repeat", self.repeat, 0, 1_000),
            ("--kills", self.kills, 0, 1_000),
            ("--memory-mib", self.memory_mib, 256, 65_536),
            ("--vcpus", self.vcpus, 1, 255),
            ("--detect-ms", self.detect_ms, DETECT_MS_MIN, 60_000),
        )
        for name, value, low, high in ranges:
            if not low <= value <= high:
                raise BenchOptionError(f"{name} {value:g} is out of range; give {low:g} to {high:g}")
        if not self.json_path.absolute().parent.is_dir():
            raise BenchOptionError(f"--json {self.json_path}: its directory doesn't exist; create it first")

    def recorded(self) -> dict[str, Any]:
        """What the header of a result file says of them; all but the file's own path and `force`."""
        return {
            "guest": self.guest,
            "modes": list(self.modes),
            "epoch_ms": list(self.epoch_ms),
            "workloads": {name: [dict(each) for each in found] for name, found in self.selection.items()},
            "seconds": self.seconds,
            "repeat": self.repeat,
            "kills": self.kills,
            "memory_mib": self.memory_mib,
            "vcpus": self.vcpus,
            "detect_ms": self.detect_ms,
        }


_SAME_ENVIRONMENT = ("commit", "cpu", "processors", "kernel", "packages", "tools", "accelerator", "image")
"""What a round's cells must have in common, lest a ratio of two of them be of two programs or machines. The
last two are of real guests only."""


def refuse_others(found: Header, now: Header, options: RunOptions) -> None:
    """Raises BenchOptionError when a file was begun under other options, by another program or on another
    machine than this run, and names the first difference."""
    _refuse_other_options(found, options)
    if options.force:
        return
    for name, before, here in _differing(found, now):
        raise BenchOptionError(
            f"--json {options.json_path}: was begun with {name} = {before!r}, this is {here!r}, and a"
            " ratio of the two would mean nothing; give another --json, or --force to go on nevertheless"
        )


def forced_over(found: Header, now: Header) -> str | None:
    """In what the environment differs from that in which a file was begun; None if in nothing."""
    return (
        "; ".join(f"{name}: {here!r}, not {before!r}" for name, before, here in _differing(found, now))
        or None
    )


def _differing(found: Header, now: Header) -> Iterator[tuple[str, Any, Any]]:
    for name in _SAME_ENVIRONMENT:
        before, here = found.environment.get(name), now.environment.get(name)
        if before != here:
            yield name, before, here


def _refuse_other_options(header: Header, options: RunOptions) -> None:
    now = options.recorded()
    for name in (*now, *(name for name in header.options if name not in now)):
        before, asked = header.options.get(name), now.get(name)
        if before != asked:
            raise BenchOptionError(
                f"--{name.replace('_', '-')}: {options.json_path} was begun with {before!r}, this asks"
                f" for {asked!r}; ask for the same to go on with it, or give another --json"
            )


def parse_modes(text: str) -> tuple[Mode, ...]:
    """The modes of a comma-separated list, or "all"; the unprotected baseline is always the first of them."""
    words = list(MODES) if text == "all" else [word.strip() for word in text.split(",")]
    for word in words:
        if word not in MODES:
            raise BenchOptionError(f"--modes: {word!r} is unknown; the known ones are {', '.join(MODES)}")
    return tuple(mode for mode in MODES if mode in words or mode == UNPROTECTED)


def parse_guest(text: str) -> Guest:
    """What kind of guest is measured."""
    for guest in GUESTS:
        if guest == text:
            return guest
    raise BenchOptionError(f"--guest: {text!r} is unknown; the known ones are {', '.join(GUESTS)}")


def parse_epochs(text: str) -> tuple[float, ...]:
    """The epoch lengths of a comma-separated list, in its order, each once."""
    try:
        return tuple(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise BenchOptionError(
            f"--epoch-ms {text!r} is no list of milliseconds; give one such as 10,25,50,100"
        ) from None


def parse_workloads(text: str, known: Mapping[str, Described]) -> dict[str, tuple[Parameters, ...]]:
    """The workloads of a comma-separated list of NAME or NAME:PARAMETER=VALUE[:...]; "all" is every one.

    Values choose among the variants that a workload is measured in; where none has them, they make one.
    """
    selection: dict[str, tuple[Parameters, ...]] = {}
    for word in list(known) if text == "all" else text.split(","):
        name, *settings = word.strip().split(":")
        if name not in known:
            raise BenchOptionError(f"--workloads: {name!r} is unknown; the known ones are {', '.join(known)}")
        found = _variants(known[name], settings)
        before = selection.get(name, ())
        selection[name] = (*before, *(each for each in found if each not in before))
    return selection


def _variants(workload: Described, settings: Sequence[str]) -> tuple[Parameters, ...]:
    wanted: dict[str, int] = {}
    for setting in settings:
        match = _PARAMETER.fullmatch(setting)
        if match is None or match[1] not in workload.limits:
            names = ", ".join(workload.limits) or "none"
            raise BenchOptionError(
                f"--workloads: {workload.name}:{setting}: give PARAMETER=NUMBER; its parameters: {names}"
            )
        low, high = workload.limits[match[1]]
        if not low <= int(match[2]) <= high:
            raise BenchOptionError(
                f"--workloads: {workload.name}:{setting} is out of range; give {low} to {high}"
            )
        wanted[match[1]] = int(match[2])
    matching = tuple(each for each in workload.variants if wanted.items() <= each.items())
    return matching or ({**workload.variants[0], **wanted},)
