"""What one cell comes to, by name: the figures of a report before rounds are put together. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from remuslike.bench.report.intervals import Floats
from remuslike.bench.results import Cell, Mode

Better = Literal["more", "less", "neither"]

THROUGHPUT = "throughput"
LOST = "lost"
LATENCY_MULTIPLE = "latency_multiple"
"""What an operation takes, over the least that a checkpoint of its own would cost it."""

RELATIVE_PERCENTILES = (50.0, 95.0, 99.0, 99.9)
PAUSE_PARTS = ("stop", "seal", "scan", "copy", "devices", "resume")
"""In the order in which they come; devices are saved beside scan and copy."""
TAKEOVER_STEPS = ("decided", "granted", "opened", "running", "first_reply")
"""In the order in which they are reached."""

# In these modes the guest stands still until the acknowledgement, so a pause has the commit in it.
_SYNCHRONOUS: frozenset[Mode] = frozenset({"event-tap"})

# Samples that must lie beyond a percentile, lest it be just another name for the largest.
_BEYOND_MIN = 1


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure's meaning. `relative`: it is also given as a ratio to unprotected, round by round."""

    name: str
    title: str
    unit: str
    better: Better
    relative: bool = False


def latency_name(percentile: float) -> str:
    """Of the workload's operations."""
    return f"latency_p{percentile:g}"


_FIXED = (
    Measure(THROUGHPUT, "throughput", "", "more", relative=True),
    *(
        Measure(latency_name(each), f"latency, {each:g}th percentile", "ms", "less", relative=True)
        for each in RELATIVE_PERCENTILES
    ),
    Measure("added_latency_p50", "median latency beyond unprotected", "ms", "less"),
    Measure("added_latency_p99", "99th percentile of latency beyond unprotected", "ms", "less"),
    Measure("output_wait_p50", "median of pause and commit", "ms", "less"),
    Measure("link_round_trip", "round trip of the hosts' link", "ms", "neither"),
    Measure(LATENCY_MULTIPLE, "median latency over (median pause + link round trip)", "", "less"),
    Measure("pause_p50", "median pause", "ms", "less"),
    Measure("pause_p99", "99th percentile of pause", "ms", "less"),
    Measure("pause_max", "longest pause", "ms", "less"),
    *(Measure(f"pause_{part}", f"median of pause: {part}", "ms", "less") for part in PAUSE_PARTS),
    Measure("commit_p50", "median commit", "ms", "less"),
    Measure("dirty_pages", "median dirty pages", "pages", "neither"),
    Measure("checkpoint_rate", "checkpoints", "1/s", "neither"),
    Measure("wire_rate", "RAM on the wire", "MiB/s", "less"),
    Measure("wire_ratio", "RAM bytes on the wire over dirty bytes", "", "less"),
    Measure("takeover", "kill until the guest runs", "ms", "less"),
    *(Measure(f"takeover_{step}", f"takeover: until {step}", "ms", "less") for step in TAKEOVER_STEPS),
    Measure(LOST, "acknowledged operations lost", "", "less"),
)
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _FIXED}


def measure_of(name: str) -> Measure:
    """Of any name that `values_of` gives: those of processes are made up as they come."""
    if name in MEASURES:
        return MEASURES[name]
    kind, _, process = name.partition("_")
    if kind == "cores":
        return Measure(name, f"processor time of {process}", "cores", "less")
    assert kind == "memory", name
    return Measure(name, f"memory of {process}", "MiB", "less")


def values_of(cell: Cell) -> dict[str, float]:
    """All that a measured cell says by itself; what it can't say is left out."""
    assert cell.error is None, "a failed cell has no figures"
    values = dict(_of_load(cell))
    values.update(_of_checkpoints(cell))
    values.update(_of_takeover(cell))
    if cell.link_ms is not None:
        values["link_round_trip"] = cell.link_ms
        if "pause_p50" in values and latency_name(50) in values:
            values[LATENCY_MULTIPLE] = values[latency_name(50)] / (values["pause_p50"] + cell.link_ms)
    values.update({f"cores_{process}": share for process, share in cell.cores.items()})
    values.update({f"memory_{process}": size for process, size in cell.memory_mib.items()})
    if cell.lost is not None:
        values[LOST] = float(cell.lost)
    return values


def column_of(cell: Cell, name: str) -> Floats:
    """A column of the cell's checkpoints, NaN where a value is missing; empty without the column."""
    return np.array(cell.checkpoints.get(name, ()), dtype=float)


def pause_shares(cell: Cell) -> dict[str, float] | None:
    """The mean pause in parts that add up to it, in ms; None if no pause was noted.

    Devices are saved beside scan and copy, so only what they take longer than these counts; "commit" is until
    the acknowledgement, where the guest waits for it, and "gap" what passes between the parts.
    """
    pause = column_of(cell, "pause_ms")
    if not pause.size:
        return None
    columns = {part: column_of(cell, f"{part}_ms") for part in PAUSE_PARTS}
    parts = {part: column if column.size else np.zeros_like(pause) for part, column in columns.items()}
    parts["devices"] = np.maximum(parts["devices"] - parts["scan"] - parts["copy"], 0)
    rest = np.maximum(pause - np.sum(list(parts.values()), axis=0), 0)
    commit = column_of(cell, "commit_ms")
    waits = cell.variant.mode in _SYNCHRONOUS and commit.size
    parts["commit"] = np.minimum(rest, np.nan_to_num(commit)) if waits else np.zeros_like(pause)
    parts["gap"] = rest - parts["commit"]
    return {part: float(np.mean(column)) for part, column in parts.items()}


def _of_load(cell: Cell) -> Iterator[tuple[str, float]]:
    if cell.load is None:
        return
    yield THROUGHPUT, cell.load.rate
    if cell.load.latencies_ms:
        found = np.percentile(np.array(cell.load.latencies_ms), RELATIVE_PERCENTILES)
        for percentile, value in zip(RELATIVE_PERCENTILES, found, strict=True):
            if round(len(cell.load.latencies_ms) * (100 - percentile) / 100, 6) >= _BEYOND_MIN:
                yield latency_name(percentile), float(value)


def _of_checkpoints(cell: Cell) -> Iterator[tuple[str, float]]:
    pause = column_of(cell, "pause_ms")
    commit = column_of(cell, "commit_ms")
    if pause.size:
        p50, p99, longest = np.percentile(pause, (50, 99, 100))
        yield from (("pause_p50", float(p50)), ("pause_p99", float(p99)), ("pause_max", float(longest)))
        if cell.seconds > 0:
            yield "checkpoint_rate", pause.size / cell.seconds
    for part in PAUSE_PARTS:
        if (column := column_of(cell, f"{part}_ms")).size:
            yield f"pause_{part}", float(np.median(column))
    if np.isfinite(commit).any():
        yield "commit_p50", float(np.nanmedian(commit))
        if pause.size:
            waits = pause if cell.variant.mode in _SYNCHRONOUS else pause + commit
            yield "output_wait_p50", float(np.nanmedian(waits))
    if (dirty := column_of(cell, "dirty_pages")).size:
        yield "dirty_pages", float(np.median(dirty))
    raw, wire = (float(np.sum(column_of(cell, name))) for name in ("raw_bytes", "wire_bytes"))
    if raw:
        yield "wire_ratio", wire / raw
        if cell.seconds > 0:
            yield "wire_rate", wire / cell.seconds / 2**20


def _of_takeover(cell: Cell) -> Iterator[tuple[str, float]]:
    if "running" in cell.takeover_ms:
        yield "takeover", cell.takeover_ms["running"]
    for step, took in takeover_parts(cell).items():
        yield f"takeover_{step}", took


def takeover_parts(cell: Cell) -> dict[str, float]:
    """Milliseconds from one step that was noted to the next; they add up to the last one."""
    parts, before = {}, 0.0
    for step in TAKEOVER_STEPS:
        if step in cell.takeover_ms:
            parts[step] = cell.takeover_ms[step] - before
            before = cell.takeover_ms[step]
    return parts
