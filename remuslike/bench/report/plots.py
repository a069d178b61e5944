"""Throughput against epoch length, the crossover of the modes, and what a pause is made of."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from remuslike.bench.report import style
from remuslike.bench.report.intervals import Estimate
from remuslike.bench.report.measures import PAUSE_PARTS, THROUGHPUT, pause_shares
from remuslike.bench.report.summary import MODES, Place, Summary, place_of
from remuslike.bench.results import UNPROTECTED, Variant

_OUTPUT_UNITS = frozenset(
    f"{what}/s"
    for what in (
        "requests",
        "replies",
        "frames",
        "packets",
        "datagrams",
        "messages",
        "transactions",
        "writes",
    )
)
# Less of a rise from the slowest load to the fastest shows nothing.
_RISE_MIN = 2.0
_TICKS_APART = 1.25


def draw_throughput(summary: Summary) -> Picture | str:
    """Each mode's throughput ratio over the epoch length, a panel a load."""
    chosen = [
        variant
        for variant in summary.variants
        if (figure := summary.get(variant, THROUGHPUT)) is not None and figure.ratio is not None
    ]
    if not chosen:
        return "no load was measured both unprotected and under a mode in one round"
    epochs = sorted({variant.epoch_ms for variant in chosen if variant.epoch_ms})
    places = summary.places(chosen)
    picture, axes = style.panels(len(places), "Throughput against epoch length", share="x")
    for place, each in zip(places, axes, strict=True):
        each.axhline(1, color=style.MODE_COLOURS["unprotected"], linestyle="--", linewidth=1.2)
        here = [variant for variant in chosen if place_of(variant) == place]
        for mode in MODES[1:]:
            _throughput_of_mode(each, summary, [variant for variant in here if variant.mode == mode])
        style.title(each, str(place))
        each.set_ylabel("throughput / unprotected")
        each.set_xlabel("epoch length, ms")
        style.plain_log(each, "x", epochs or None)
        style.ratio_axis(each, (ratio.median for v in here if (ratio := _ratio(summary, v)) is not None))
    if epochs:
        axes[0].set_xlim(epochs[0] / 1.25, epochs[-1] * 1.25)
    handles = [
        Line2D([], [], color=style.MODE_COLOURS[mode], label=mode, marker=style.MODE_MARKERS[mode])
        for mode in MODES[1:]
        if any(variant.mode == mode for variant in chosen)
    ]
    base = Line2D([], [], color=style.MODE_COLOURS["unprotected"], linestyle="--", label="unprotected")
    style.legend(picture, [base, *handles])
    return picture


def _ratio(summary: Summary, variant: Variant) -> Estimate | None:
    figure = summary.get(variant, THROUGHPUT)
    return None if figure is None else figure.ratio


def _throughput_of_mode(axes: Axes, summary: Summary, variants: Sequence[Variant]) -> None:
    points: list[tuple[float, Estimate]] = []
    for variant in variants:
        figure = summary.get(variant, THROUGHPUT)
        assert figure is not None and figure.ratio is not None
        colour, marker = style.MODE_COLOURS[variant.mode], style.MODE_MARKERS[variant.mode]
        if variant.epoch_ms is None:
            # It has no epoch length: a line across, its marker at the edge, where no point of another lies.
            axes.axhline(figure.ratio.median, color=colour)
            axes.plot(
                [0.985],
                [figure.ratio.median],
                transform=axes.get_yaxis_transform(),
                color=colour,
                marker=marker,
            )
            if figure.ratio.low is not None and figure.ratio.high is not None:
                axes.axhspan(figure.ratio.low, figure.ratio.high, color=colour, alpha=0.15, linewidth=0)
        else:
            points.append((variant.epoch_ms, figure.ratio))
    if points:
        look = style.Look(style.MODE_COLOURS[variants[0].mode], style.MODE_MARKERS[variants[0].mode], "-")
        _with_bars(axes, points, look)


def _with_bars(axes: Axes, points: Sequence[tuple[float, Estimate]], look: style.Look) -> None:
    """A line through medians, with their intervals."""
    below = [0.0 if value.low is None else value.median - value.low for _, value in points]
    above = [0.0 if value.high is None else value.high - value.median for _, value in points]
    axes.errorbar(
        [x for x, _ in points],
        [value.median for _, value in points],
        yerr=np.maximum([below, above], 0),
        capsize=2.5,
        elinewidth=1,
        **look.points,
    )


@dataclass(frozen=True, slots=True)
class Rising:
    """Loads of one workload that differ in one parameter, which raises the guest's output. `outputs` are
    those a second when unprotected, by load."""

    guest: str
    name: str
    outputs: dict[str, float]


def rising_loads(summary: Summary) -> list[Rising]:
    """Every family of loads over which the output rate grows at least twofold."""
    families: dict[tuple[str, str, str, str], dict[str, float]] = defaultdict(dict)
    for variant in summary.variants:
        rate = _outputs(summary, variant) if variant.mode == UNPROTECTED else None
        if rate is None:
            continue
        for name, value in variant.parameters.items():
            if not isinstance(value, str | bool):
                rest = " ".join(f"{k}={v}" for k, v in variant.parameters.items() if k != name)
                families[variant.guest, variant.workload, rest, name][variant.load] = rate
    return [
        Rising(guest, " ".join(filter(None, (workload, rest, f"by {name}"))), outputs)
        for (guest, workload, rest, name), outputs in families.items()
        if len(outputs) > 1 and max(outputs.values()) >= _RISE_MIN * min(outputs.values())
    ]


def _outputs(summary: Summary, variant: Variant) -> float | None:
    """Outputs a second: said by the workload (`outputs_s`), or its rate if that counts outputs."""
    rates = [
        load.details.get("outputs_s", load.rate)
        for cell in summary.cells[variant.key]
        if (load := cell.load) is not None and ("outputs_s" in load.details or load.unit in _OUTPUT_UNITS)
    ]
    rate = float(np.median(rates)) if rates else 0.0
    return rate if rate > 0 else None


def draw_crossover(summary: Summary) -> Picture | str:
    """Each setting's throughput ratio over the output rate, a panel a family of loads."""
    families = [
        (family, curves) for family in rising_loads(summary) if (curves := dict(_curves(summary, family)))
    ]
    if not families:
        return (
            "no workload was measured unprotected and under a mode with an output rate (in requests/s,"
            " frames/s or the like, or its detail outputs_s) that a parameter raises at least twofold"
        )
    looks = style.looks(variant for variant in summary.variants if variant.mode != UNPROTECTED)
    picture, axes = style.panels(
        len(families), "Which mode wins as the output rate grows", height=3.6, columns=2
    )
    for (family, curves), each in zip(families, axes, strict=True):
        each.axhline(1, color=style.MODE_COLOURS["unprotected"], linestyle="--", linewidth=1.2)
        for setting, points in curves.items():
            _with_bars(each, points, looks[setting])
        for x, y, text in crossings(curves):
            each.axvline(x, color="#8a8a8a", linewidth=0.9, linestyle=":")
            each.annotate(
                text, (x, y), xytext=(4, 7), textcoords="offset points", fontsize=8, annotation_clip=False
            )
        style.title(each, f"{family.guest}: {family.name}")
        style.plain_log(each, "x", _apart([*family.outputs.values()]))
        each.set_xlabel("outputs a second, unprotected")
        each.set_ylabel("throughput / unprotected")
        style.ratio_axis(each, (value.median for points in curves.values() for _, value in points))
    drawn = {setting: look for setting, look in looks.items() if any(setting in c for _, c in families)}
    style.legend(picture, style.setting_handles(drawn, markers=True))
    return picture


def _apart(values: Sequence[float]) -> list[float]:
    """Of `values`, rounded, those whose numbers don't overlap on a logarithmic axis; the largest is one."""
    found: list[float] = []
    for value in sorted(values, reverse=True):
        if not found or found[-1] / value > _TICKS_APART:
            found.append(float(f"{value:.3g}"))
    return found


def _curves(summary: Summary, family: Rising) -> Iterator[tuple[str, list[tuple[float, Estimate]]]]:
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for variant in summary.variants:
        if variant.guest == family.guest and variant.load in family.outputs:
            figure = summary.get(variant, THROUGHPUT)
            if figure is not None and figure.ratio is not None:
                point = (family.outputs[variant.load], figure.ratio)
                curves.setdefault(variant.setting, []).append(point)
    for setting, points in curves.items():
        if len(points) > 1:
            yield setting, sorted(points, key=lambda point: point[0])


def crossings(curves: dict[str, list[tuple[float, Estimate]]]) -> list[tuple[float, float, str]]:
    """Where event-tap meets the best epoch setting: rate, ratio, and words. Straight lines over log rate."""
    tapped = next((points for setting, points in curves.items() if setting.startswith("event-tap")), None)
    epochs = [points for setting, points in curves.items() if setting.startswith("epoch ")]
    if tapped is None or not epochs:
        return []
    best: dict[float, float] = {}
    for points in epochs:
        for x, value in points:
            best[x] = max(value.median, best.get(x, 0.0))
    tap = {x: value.median for x, value in tapped}
    shared = sorted(best.keys() & tap.keys())
    found = []
    for left, right in pairwise(shared):
        before, after = tap[left] - best[left], tap[right] - best[right]
        if before * after < 0:
            share = before / (before - after)
            x = math.exp(math.log(left) + share * (math.log(right) - math.log(left)))
            y = tap[left] + share * (tap[right] - tap[left])
            found.append((x, y, f"equal at {style.plain(float(f'{x:.2g}'))}/s"))
    return found


def draw_pause(summary: Summary) -> Picture | str:
    """The mean pause in its parts, a bar a setting, a panel a guest and load."""
    shares = {
        variant.key: mean
        for variant in summary.variants
        if (mean := _mean_shares(summary, variant)) is not None
    }
    if not shares:
        return "no cell has checkpoints with a pause"
    chosen = [variant for variant in summary.variants if variant.key in shares]
    places = summary.places(chosen)
    most = max(sum(place_of(variant) == place for variant in chosen) for place in places)
    picture, axes = style.panels(
        len(places), "What a pause is made of", height=0.95 + 0.27 * most, columns=2, share="x"
    )
    parts = [
        part for part in (*PAUSE_PARTS, "commit", "gap") if any(mean[part] > 0 for mean in shares.values())
    ]
    for place, each in zip(places, axes, strict=True):
        here = [variant for variant in chosen if place_of(variant) == place]
        _pause_panel(each, place, here, shares, parts)
        each.set_ylim(most - 0.5, -0.5)  # bars as thick in every panel
    names = {
        "devices": "devices (beyond scan and copy)",
        "commit": "waits for the acknowledgement",
        "gap": "between the parts",
    }
    style.legend(
        picture, [Patch(color=style.PART_COLOURS[part], label=names.get(part, part)) for part in parts]
    )
    return picture


def _mean_shares(summary: Summary, variant: Variant) -> dict[str, float] | None:
    of_cells = [mean for cell in summary.cells[variant.key] if (mean := pause_shares(cell)) is not None]
    if not of_cells:
        return None
    return {part: float(np.mean([mean[part] for mean in of_cells])) for part in of_cells[0]}


def _pause_panel(
    axes: Axes,
    place: Place,
    variants: Sequence[Variant],
    shares: dict[str, dict[str, float]],
    parts: Iterable[str],
) -> None:
    rows = np.arange(len(variants))
    left = np.zeros(len(variants))
    for part in parts:
        widths = np.array([shares[variant.key][part] for variant in variants])
        axes.barh(rows, widths, left=left, height=0.72, color=style.PART_COLOURS[part])
        left += widths
    for row, total in zip(rows, left, strict=True):
        axes.annotate(f" {total:.3g}", (total, row), va="center", fontsize=8)
    axes.set_yticks(rows, [variant.setting for variant in variants])
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean pause, ms")
    style.title(axes, str(place))
