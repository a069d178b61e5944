"""Distributions of latency, takeovers step by step, and what a changing load does to the checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from remuslike.bench.report import style
from remuslike.bench.report.intervals import Floats
from remuslike.bench.report.measures import TAKEOVER_STEPS, column_of, takeover_parts
from remuslike.bench.report.summary import Place, Summary, place_of
from remuslike.bench.results import Cell, Variant

# A percentile needs so many samples beyond it to be more than an accident.
_BEYOND = 5
_CURVE_POINTS = 300
_FIRST = 0.05  # the 11th percentile: the few fastest would stretch the axis
_PERCENTILES = (50, 90, 99, 99.9, 99.99, 99.999)

# More are drawn as every so manieth, the fastest and the slowest among them.
_KILLS_A_VARIANT = 30
_GAP = 1.2

# The fastest tenth of a load's intervals over the slowest: less is noise, no change of load.
_CHANGE_MIN = 2.0
_INTERVALS_MIN = 6
_LOADS_OVER_TIME = 3
_RATE_LINEAR = 10.0  # where the logarithmic axis of rates goes over into a linear one
_MEDIAN_OF = 9  # intervals between checkpoints
_INTERVAL_MIN_MS = 0.1  # a logarithmic axis has no zero


def draw_latency(summary: Summary) -> Picture | str:
    """Latency over percentiles, both axes logarithmic, a panel a load."""
    curves = {
        variant.key: curve
        for variant in summary.variants
        if (curve := _latency_curve(summary.cells[variant.key])) is not None
    }
    if not curves:
        return f"no workload gave latencies of at least {2 * _BEYOND} operations"
    chosen = [variant for variant in summary.variants if variant.key in curves]
    places = summary.places(chosen)
    looks = style.looks(chosen)
    picture, axes = style.panels(len(places), "Latency of the workload's operations", height=3.1, share="x")
    deepest = max(nines[-1] for nines, _ in curves.values())
    ticks = [each for each in _PERCENTILES if _nines(each) <= deepest + 0.01]
    for place, each in zip(places, axes, strict=True):
        for variant in chosen:
            if place_of(variant) == place:
                each.plot(*curves[variant.key], **looks[variant.setting].line)
        style.title(each, str(place))
        style.plain_log(each, "y")
        each.set_xticks([_nines(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        each.set_xlim(_FIRST, deepest)
        each.set_xlabel("percentile")
        each.set_ylabel("latency, ms")
    style.legend(picture, style.setting_handles(looks, markers=False))
    return picture


def _nines(percentile: float) -> float:
    """Where a percentile lies: 90 at 1, 99 at 2, 99.9 at 3."""
    return float(-np.log10(1 - percentile / 100)) + 0.0


def _latency_curve(cells: Sequence[Cell]) -> tuple[Floats, Floats] | None:
    """Of all rounds' operations together."""
    loads = [cell.load for cell in cells if cell.load is not None]
    samples = np.array([each for load in loads for each in load.latencies_ms], dtype=float)
    samples = samples[samples > 0]
    if samples.size < 2 * _BEYOND:
        return None
    nines = np.linspace(_FIRST, np.log10(samples.size / _BEYOND), _CURVE_POINTS)
    return nines, np.quantile(samples, 1 - 10**-nines)


def draw_takeover(summary: Summary) -> Picture | str:
    """Every kill as a bar of its steps, the variants beneath each other."""
    kills = {
        variant.key: found for variant in summary.variants if (found := _kills(summary.cells[variant.key]))
    }
    if not kills:
        return "no cell ended with a kill"
    chosen = [variant for variant in summary.variants if variant.key in kills]
    bars = sum(len(kills[variant.key]) for variant in chosen)
    height = 0.9 + max(0.11 * bars, 0.36 * len(chosen))
    picture, (axes,) = style.panels(1, "Takeovers, from the kill on", height=height)
    top, ticks = 0.0, []
    for variant in chosen:
        _takeover_bars(axes, kills[variant.key], top)
        ticks.append(top + (len(kills[variant.key]) - 1) / 2)
        top += len(kills[variant.key]) + _GAP
    axes.set_yticks(ticks, [_kill_label(variant, summary) for variant in chosen])
    axes.set_ylim(top - _GAP, -1)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ms since the kill")
    seen = [
        step for step in TAKEOVER_STEPS if any(step in kill for found in kills.values() for kill in found)
    ]
    words = {"first_reply": "first reply at the client", "running": "guest runs", "opened": "buffers opened"}
    style.legend(
        picture, [Patch(color=style.STEP_COLOURS[step], label=words.get(step, step)) for step in seen]
    )
    return picture


def _kills(cells: Sequence[Cell]) -> list[dict[str, float]]:
    """The parts of each, the fastest first; at most _KILLS_A_VARIANT."""
    every = sorted(
        (takeover_parts(cell) for cell in cells if cell.takeover_ms), key=lambda it: sum(it.values())
    )
    if len(every) <= _KILLS_A_VARIANT:
        return every
    return [every[round(place)] for place in np.linspace(0, len(every) - 1, _KILLS_A_VARIANT)]


def _takeover_bars(axes: Axes, kills: Sequence[dict[str, float]], top: float) -> None:
    rows = top + np.arange(len(kills))
    left = np.zeros(len(kills))
    for step in TAKEOVER_STEPS:
        widths = np.array([kill.get(step, 0.0) for kill in kills])
        axes.barh(rows, widths, left=left, height=0.86, color=style.STEP_COLOURS[step])
        left += widths


def _kill_label(variant: Variant, summary: Summary) -> str:
    count = sum(bool(cell.takeover_ms) for cell in summary.cells[variant.key])
    shown = f"{count} kills" if count <= _KILLS_A_VARIANT else f"{_KILLS_A_VARIANT} of {count} kills"
    return f"{place_of(variant)}\n{variant.setting} ({shown if count > 1 else '1 kill'})"


def draw_over_time(summary: Summary) -> Picture | str:
    """Rates over time above, intervals between checkpoints beneath, for the loads that change most."""
    cells = {
        variant.key: cell
        for variant in summary.variants
        if (cell := _with_series(summary.cells[variant.key])) is not None
    }
    changes: dict[Place, float] = {}
    for variant in summary.variants:
        # What is asked of an unprotected guest is the load itself; the first variant of a place is that.
        if variant.key in cells:
            changes.setdefault(place_of(variant), _change(cells[variant.key]))
    places = sorted((p for p in changes if changes[p] >= _CHANGE_MIN), key=lambda p: -changes[p])
    places = places[:_LOADS_OVER_TIME]
    if not places:
        return f"no load's rate changed {_CHANGE_MIN:g}-fold or more over {_INTERVALS_MIN} intervals or more"
    shown = {place: _one_epoch([v for v in summary.at(place) if v.key in cells]) for place in places}
    looks = style.looks(variant for some in shown.values() for variant in some)
    picture, axes = style.panels(
        2 * len(places),
        "A changing load, and when checkpoints are taken",
        columns=len(places),
        height=2.6,
    )
    for place, upper, lower in zip(places, axes, axes[len(places) :], strict=False):
        for variant in shown[place]:
            _over_time(upper, lower, cells[variant.key], looks[variant.setting])
        style.title(upper, str(place))
        lower.sharex(upper)
    style.legend(picture, style.setting_handles(looks, markers=False))
    return picture


def running_median(values: Floats) -> Floats:
    """Of each value and its neighbours, fewer of them at the ends."""
    half = _MEDIAN_OF // 2
    return np.array([np.median(values[max(0, n - half) : n + half + 1]) for n in range(values.size)])


def _with_series(cells: Sequence[Cell]) -> Cell | None:
    """The last round that has one: rounds put together would blur what happens when."""
    return next(
        (cell for cell in reversed(cells) if cell.load and len(cell.load.series) >= _INTERVALS_MIN), None
    )


def _change(cell: Cell) -> float:
    assert cell.load is not None
    low, high = np.quantile([rate for _, rate in cell.load.series], (0.1, 0.9))
    return float(high / low) if low > 0 else float("inf") if high > 0 else 1.0


def _one_epoch(variants: Sequence[Variant]) -> list[Variant]:
    """Of the settings of mode epoch the middle one: several would hide what the others do."""
    epochs = [variant for variant in variants if variant.mode == "epoch"]
    kept = epochs[len(epochs) // 2 : len(epochs) // 2 + 1]
    return [variant for variant in variants if variant.mode != "epoch" or variant in kept]


def _over_time(upper: Axes, lower: Axes, cell: Cell, look: style.Look) -> None:
    assert cell.load is not None
    upper.plot([at for at, _ in cell.load.series], [rate for _, rate in cell.load.series], **look.line)
    upper.set_ylabel(cell.load.unit)
    # Logarithmic, for one client beside many, but with a zero: a guest may stand still.
    upper.set_yscale("symlog", linthresh=_RATE_LINEAR)
    upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.plain(value)))
    upper.set_ylim(bottom=0)
    at = column_of(cell, "at")
    if at.size > 1:
        # The first checkpoint is taken to be at the beginning; it is at most one interval later.
        seconds, intervals = at[1:] - at[0], np.maximum(np.diff(at) * 1e3, _INTERVAL_MIN_MS)
        lower.plot(seconds, intervals, ".", color=look.colour, markersize=3, alpha=0.35)
        lower.plot(seconds, running_median(intervals), **look.line)
    style.plain_log(lower, "y")
    lower.set_xlabel("s since the measurement began")
    lower.set_ylabel("ms since the last checkpoint")
