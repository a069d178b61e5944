"""From the cells of one or several runs to figures. Pure.

Modes are compared within a run and a round: a cell is divided by the unprotected cell of the same guest and
load, of the same run and the same round. So what drifts on the machine hits both alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from remuslike.bench.report.intervals import Estimate, estimate
from remuslike.bench.report.measures import MEASURES, Measure, latency_name, measure_of, values_of
from remuslike.bench.results import UNPROTECTED, Cell, Mode, Results, Variant

MODES: tuple[Mode, ...] = ("unprotected", "epoch", "event-tap", "adaptive")
"""In the order in which tables and legends name them."""

# What makes two machines different, and what only makes their software so.
_MACHINE = ("cpu", "processors", "accelerator")
_SOFTWARE = ("kernel", "qemu", "commit")
_UNKNOWN = "?"

# What a run was asked for that no variant says: cells that differ in it are no repeats of each other.
_OPTIONS = ("memory_mib", "vcpus", "seconds", "detect_ms")


@dataclass(frozen=True, slots=True)
class Run:
    """A file's results. `name` is what the reader calls it."""

    name: str
    results: Results


@dataclass(frozen=True)
class Figure:
    """One measure of one variant. `values` are those of its rounds, `ratios` to unprotected of the rounds
    that have both; `ratio` is None for unprotected itself."""

    variant: Variant
    measure: Measure
    unit: str
    values: tuple[float, ...]
    ratios: tuple[float, ...]

    @cached_property
    def value(self) -> Estimate:
        """The median over the rounds."""
        return estimate(self.values)

    @cached_property
    def ratio(self) -> Estimate | None:
        """The median of the rounds' ratios to unprotected."""
        return estimate(self.ratios) if self.ratios else None


@dataclass(frozen=True, slots=True)
class Place:
    """What modes are compared on: one panel of a plot."""

    guest: str
    load: str

    def __str__(self) -> str:
        return f"{self.guest}: {self.load}"


def place_of(variant: Variant) -> Place:
    """The variant, whatever its mode."""
    return Place(variant.guest, variant.load)


class Summary:
    """All that a report says of some runs. `cells`: the measured ones by their variant's key; `failed`: the
    others, each with its run's name."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self.failed: tuple[tuple[str, Cell], ...] = tuple(
            (run.name, cell) for run in runs for cell in _failed(run.results)
        )
        cells: dict[str, list[Cell]] = defaultdict(list)
        found: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        variants: dict[str, Variant] = {}
        for run in runs:
            measured = measured_cells(run.results)
            for key, _, values, ratios in _compared(measured):
                for name, value in values.items():
                    entry = found.setdefault((key, name), ([], []))
                    entry[0].append(value)
                    if name in ratios:
                        entry[1].append(ratios[name])
            for cell in measured.values():
                variants[cell.variant.key] = cell.variant
                cells[cell.variant.key].append(cell)
        self.cells: Mapping[str, tuple[Cell, ...]] = {key: tuple(some) for key, some in cells.items()}
        self.variants: tuple[Variant, ...] = tuple(sorted(variants.values(), key=order))
        self.figures: Mapping[tuple[str, str], Figure] = {
            (variant.key, name): self._figure(variant, name, *found[variant.key, name])
            for variant in self.variants
            for name in sorted({name for key, name in found if key == variant.key}, key=_rank)
        }

    def _figure(self, variant: Variant, name: str, values: list[float], ratios: list[float]) -> Figure:
        measure = measure_of(name)
        loads = [cell.load for cell in self.cells[variant.key] if cell.load is not None]
        unit = loads[0].unit if name == "throughput" and loads else measure.unit
        return Figure(variant, measure, unit, tuple(values), tuple(ratios))

    def get(self, variant: Variant, name: str) -> Figure | None:
        """The figure, if the variant has it."""
        return self.figures.get((variant.key, name))

    def places(self, having: Iterable[Variant] | None = None) -> tuple[Place, ...]:
        """Of `having`, or of all variants, in order."""
        chosen = self.variants if having is None else having
        return tuple(dict.fromkeys(place_of(variant) for variant in chosen))

    def at(self, place: Place) -> tuple[Variant, ...]:
        """The variants there, in the order of their modes and epochs."""
        return tuple(variant for variant in self.variants if place_of(variant) == place)


def order(variant: Variant) -> tuple[Any, ...]:
    """A key to sort variants by: guest, load (16 after 1, before 256), mode, epoch."""
    parameters = tuple(
        (name, 0.0 if isinstance(value, str) else float(value), str(value))
        for name, value in variant.parameters.items()
    )
    epoch_ms = variant.epoch_ms if variant.epoch_ms is not None else 0.0
    return variant.guest, variant.workload, parameters, MODES.index(variant.mode), epoch_ms


def measured_cells(results: Results) -> dict[tuple[str, int], Cell]:
    """By variant and round; of one that was measured again, the last."""
    return {(cell.variant.key, cell.round): cell for cell in results.cells if cell.error is None}


def _failed(results: Results) -> Iterator[Cell]:
    """The last failure of each cell that never succeeded."""
    done = results.done()
    last = {(cell.variant.key, cell.round): cell for cell in results.cells if cell.error is not None}
    return (cell for place, cell in last.items() if place not in done)


def _compared(
    measured: Mapping[tuple[str, int], Cell],
) -> Iterator[tuple[str, int, dict[str, float], dict[str, float]]]:
    """Of each cell of a run its variant's key, round, values, and ratios to the unprotected one beside it."""
    own = {place: values_of(cell) for place, cell in measured.items()}
    for (key, number), values in own.items():
        variant = measured[key, number].variant
        ratios: dict[str, float] = {}
        if variant.mode != UNPROTECTED:
            baseline = own.get((baseline_key(variant), number), {})
            ratios = {
                name: value / baseline[name]
                for name, value in values.items()
                if measure_of(name).relative and baseline.get(name)
            }
            for percentile in (50, 99):
                name = latency_name(percentile)
                if name in values and name in baseline:
                    values[f"added_{name}"] = values[name] - baseline[name]
        yield key, number, values, ratios


def baseline_key(variant: Variant) -> str:
    """The key of the same guest and load without protection."""
    return variant.model_copy(update={"mode": UNPROTECTED, "epoch_ms": None}).key


def _rank(name: str) -> tuple[int, str]:
    names = list(MEASURES)
    return (names.index(name) if name in MEASURES else len(names)), name


def machine_of(results: Results) -> dict[str, str]:
    """What absolute figures depend on; "?" for what was not recorded."""
    environment = results.header.environment
    return {name: str(environment.get(name, _UNKNOWN)) for name in _MACHINE}


def same_machine(one: Results, other: Results) -> bool:
    """Whether absolute figures of the two can be compared. Older files don't name their accelerator."""
    a, b = machine_of(one), machine_of(other)
    if _UNKNOWN in (a["accelerator"], b["accelerator"]):
        del a["accelerator"], b["accelerator"]
    return a == b


def software_of(results: Results) -> dict[str, str]:
    """What may differ between two runs on one machine."""
    environment = results.header.environment
    tools = environment.get("tools")
    qemu = tools.get("qemu") if isinstance(tools, Mapping) else None
    values = {**environment, "qemu": qemu}
    return {name: str(values.get(name) or "?") for name in _SOFTWARE}


def forced(runs: Sequence[Run]) -> list[str]:
    """What `--force` went over, run by run."""
    said = {(run.name, cell.forced): None for run in runs for cell in run.results.cells if cell.forced}
    return [f"{name} was gone on with by --force, in part with {what}" for name, what in said]


def differences(runs: Sequence[Run]) -> list[str]:
    """A line for each thing in which the environments of the runs, or what they were asked for, differ."""
    lines = []
    for name in (*_MACHINE, *_SOFTWARE, "image", *_OPTIONS):
        values = {run.name: _known_of(run.results)[name] for run in runs}
        if len(set(values.values())) > 1:
            lines.append(f"{name}: " + "; ".join(f"{value} ({run})" for run, value in values.items()))
    return lines


def _known_of(results: Results) -> dict[str, str]:
    options = {name: str(results.header.options.get(name, "?")) for name in _OPTIONS}
    image = str(results.header.environment.get("image", _UNKNOWN))[:12]
    return {**machine_of(results), **software_of(results), "image": image, **options}
