"""What is measured, in which order, and how long it will still take. Pure.

A *cell* is a variant under a setting in a round; a *setting* is a mode with its epoch length. A *visit* is
one boot of a guest under one setting, and serves the variants of one workload: so nothing of a workload is
left in a guest when another is measured, and the settings of a workload follow each other within a minute. In
each round they begin with another setting.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import TypeVar

from remuslike.bench.options import Parameters, RunOptions
from remuslike.bench.results import UNPROTECTED, Mode, Variant

TAKEOVER = "takeover"
"""The workload of the cells that end with a kill."""

# Until the run itself has shown how long they take, on the development machine's emulated guests.
_BOOT_S = 12.0
_AROUND_LOAD_S = 2.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Setting:
    """A mode, and in "epoch" its epoch length."""

    mode: Mode
    epoch_ms: float | None = None

    @property
    def protected(self) -> bool:
        return self.mode != UNPROTECTED

    def __str__(self) -> str:
        return self.mode if self.epoch_ms is None else f"{self.mode} {self.epoch_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Visit:
    """One boot, and the cells that are measured in it one after another."""

    round: int
    setting: Setting
    workload: str
    variants: tuple[Variant, ...]


def settings_of(options: RunOptions) -> tuple[Setting, ...]:
    """All settings of a run, the baseline first."""
    found: list[Setting] = []
    for mode in options.modes:
        lengths: tuple[float | None, ...] = options.epoch_ms if mode == "epoch" else (None,)
        found += [Setting(mode, length) for length in lengths]
    return tuple(found)


def visits_of(options: RunOptions) -> list[Visit]:
    """The whole run in its order, the kills at the end."""
    settings = settings_of(options)
    protected = tuple(setting for setting in settings if setting.protected)
    visits = [
        Visit(number, setting, name, tuple(_variant(options, name, setting, each) for each in together))
        for number in range(1, options.repeat + 1)
        for name, parameters in options.selection.items()
        for together in _boots(options, parameters)
        for setting in in_turn(settings, number)
    ]
    visits += [
        Visit(number, setting, TAKEOVER, (_variant(options, TAKEOVER, setting, {}),))
        for number in range(1, options.kills + 1)
        for setting in in_turn(protected, number)
    ]
    return visits


def pending(visits: Sequence[Visit], done: Collection[tuple[str, int]]) -> list[Visit]:
    """`visits` without the cells that are `done`: a variant's key and its round."""
    left = (
        replace(visit, variants=tuple(each for each in visit.variants if (each.key, visit.round) not in done))
        for visit in visits
    )
    return [visit for visit in left if visit.variants]


def parameters_of(variant: Variant) -> dict[str, int]:
    """A variant's parameters as a workload takes them."""
    return {name: int(value) for name, value in variant.parameters.items()}


def _boots(options: RunOptions, parameters: Sequence[Parameters]) -> list[Sequence[Parameters]]:
    """What is measured in one boot: a synthetic guest's rates are set when it starts, which is soon done."""
    return [[each] for each in parameters] if options.guest == "synthetic" else [parameters]


def _variant(options: RunOptions, workload: str, setting: Setting, parameters: Mapping[str, int]) -> Variant:
    return Variant(
        guest=options.guest,
        workload=workload,
        parameters=parameters,
        mode=setting.mode,
        epoch_ms=setting.epoch_ms,
    )


def in_turn(items: Sequence[_T], number: int) -> list[_T]:
    """All of them, in the order of the round `number`, from 1: they take turns at being its first."""
    shift = (number - 1) % len(items) if items else 0
    return [*items[shift:], *items[:shift]]


@dataclass(slots=True)
class Outlook:
    """How long the rest takes, learned from what has been done."""

    seconds: float
    _boots_s: list[float] = field(default_factory=list)
    _around_s: list[float] = field(default_factory=list)

    def note_boot(self, seconds: float) -> None:
        """A guest took so long to be ready for its first cell."""
        self._boots_s.append(seconds)

    def note_cell(self, seconds: float) -> None:
        """A cell took so long, its load included."""
        self._around_s.append(max(0.0, seconds - self.seconds))

    def remaining_s(self, left: Sequence[Visit]) -> float:
        """How long the visits in `left` will take, to judge by those before."""
        boot_s = mean(self._boots_s) if self._boots_s else _BOOT_S
        return len(left) * boot_s + self.cells_s(left)

    def cells_s(self, left: Sequence[Visit]) -> float:
        """The same without the boots."""
        around_s = mean(self._around_s) if self._around_s else _AROUND_LOAD_S
        return sum(len(visit.variants) for visit in left) * (self.seconds + around_s)
