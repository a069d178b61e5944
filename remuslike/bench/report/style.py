"""How the plots look: one colour a mode everywhere, legends outside the data, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from textwrap import fill
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from remuslike.bench.report.measures import PAUSE_PARTS, TAKEOVER_STEPS
from remuslike.bench.report.summary import MODES
from remuslike.bench.results import Mode, Variant

# Okabe and Ito's, which colour-blind readers tell apart; a marker each says it again. The blue is lighter
# than theirs, for dark pages.
MODE_COLOURS: Mapping[Mode, str] = {
    "unprotected": "#8a8a8a",
    "epoch": "#2a85d0",
    "event-tap": "#d55e00",
    "adaptive": "#009e73",
}
MODE_MARKERS: Mapping[Mode, str] = {"unprotected": "D", "epoch": "o", "event-tap": "s", "adaptive": "^"}

# Paul Tol's light scheme: fills that are told apart by the colour-blind, and are nobody's mode.
_FILLS = ("#77aadd", "#99ddff", "#44bb99", "#bbcc33", "#eedd88", "#ee8866", "#ffaabb", "#dddddd")
PART_COLOURS: Mapping[str, str] = dict(zip((*PAUSE_PARTS, "commit", "gap"), _FILLS, strict=True))
STEP_COLOURS: Mapping[str, str] = dict(zip(TAKEOVER_STEPS, (_FILLS[i] for i in (0, 4, 3, 5, 7)), strict=True))

_DASHES: Sequence[Any] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))

PIXELS_PER_INCH = 130
_WIDTH_INCHES = 10.0
# In characters: what fits beneath the panels, and what an entry takes besides its text.
_LEGEND_WIDTH, _LEGEND_HANDLE = 125, 9
_TITLES_WIDTH = 112
_SMALL_RATIO = 0.2
_ONE_TICK_A_DECADE = 2.4  # decades from which on 2 and 5 would crowd an axis

_COMMON: Mapping[str, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
}


def _theme(ground: str, ink: str, grid: str) -> dict[str, Any]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    grounded = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {**_COMMON, **dict.fromkeys(inked, ink), **dict.fromkeys(grounded, ground), "grid.color": grid}


THEMES: Mapping[str, Any] = {
    "light": _theme("#ffffff", "#1f2328", "#e3e6ea"),
    "dark": _theme("#14181d", "#dde3ea", "#2d343c"),
}
"""matplotlib's settings by the page's colour scheme; of its own, closed set of keys, hence Any."""


@dataclass(frozen=True, slots=True)
class Look:
    """The line of a setting: the mode's colour, and a dash for the epoch length."""

    colour: str
    marker: str
    dash: Any

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of a line without markers."""
        return {"color": self.colour, "linestyle": self.dash}

    @property
    def points(self) -> dict[str, Any]:
        """Keywords of a line with markers."""
        return {**self.line, "marker": self.marker}


def looks(variants: Iterable[Variant]) -> dict[str, Look]:
    """A look for each setting; epochs of the same length have the same dash in all modes."""
    some = sorted({(MODES.index(each.mode), each.epoch_ms or 0.0, each.setting) for each in variants})
    epochs = sorted({epoch for _, epoch, _ in some if epoch})
    found = {}
    for mode, epoch, setting in some:
        name = MODES[mode]
        dash = _DASHES[epochs.index(epoch) % len(_DASHES)] if epoch else "-"
        found[setting] = Look(MODE_COLOURS[name], MODE_MARKERS[name], dash)
    return found


def panels(
    count: int, heading: str, *, height: float = 2.9, columns: int = 3, share: str = ""
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `columns` beside each other. `share`: "x", "y" or both, the axes
    that all panels have in common."""
    columns = min(count, 2 if count == 4 and columns == 3 else columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH_INCHES, height * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, sharex="x" in share, sharey="y" in share, squeeze=False)
    every = [each for row in axes for each in row]
    for spare in every[count:]:
        spare.remove()
    for each in every[:count]:
        # A panel may have lost the one below it, which would have had the labels.
        each.tick_params(labelbottom=True, labelleft=True)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, every[:count]


def legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str] | None = None) -> None:
    """Beneath the panels, where it covers nothing."""
    texts = [str(handle.get_label()) for handle in handles] if labels is None else list(labels)
    width = sum(len(text) + _LEGEND_HANDLE for text in texts)
    lines = -(-width // _LEGEND_WIDTH)
    figure.legend(
        handles=list(handles),
        labels=texts,
        loc="outside lower center",
        ncols=-(-len(texts) // lines),
        handlelength=2.6,
    )


def setting_handles(found: Mapping[str, Look], *, markers: bool) -> list[Line2D]:
    """Legend entries of settings."""
    return [
        Line2D([], [], label=setting, **(look.points if markers else look.line))
        for setting, look in found.items()
    ]


def plain_log(axes: Axes, which: str, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis whose numbers are written out; at `ticks` only, where given. After plotting."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    low, high = axis.get_view_interval()
    short = log10(high / low) < _ONE_TICK_A_DECADE
    axis.set_major_locator(
        FixedLocator(list(ticks))
        if ticks is not None
        else LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,), numticks=12)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_locator(NullLocator() if ticks is not None else LogLocator(subs="auto", numticks=12))
    axis.set_minor_formatter(NullFormatter())


def ratio_axis(axes: Axes, values: Iterable[float]) -> None:
    """A vertical axis from zero for ratios to unprotected; logarithmic where it would squeeze some of them
    together at its foot. After plotting."""
    found = [value for value in values if value > 0]
    if found and min(found) < _SMALL_RATIO:
        axes.set_ylim(bottom=min(found) / 1.6)
        plain_log(axes, "y")
    else:
        axes.set_ylim(bottom=0)


def plain(value: float) -> str:
    """A number on an axis: 0.1, 25, 3 000, 40 k."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g} k"
    return f"{value:g}"


def title(axes: Axes, text: str) -> None:
    """Over a panel, on as many lines as it needs there."""
    place = axes.get_subplotspec()
    columns = place.get_gridspec().ncols if place is not None else 1
    axes.set_title(fill(text, _TITLES_WIDTH // columns))
