"""The report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure as Picture

from remuslike.bench.report import style, tables
from remuslike.bench.report.plots import draw_crossover, draw_pause, draw_throughput
from remuslike.bench.report.summary import Summary
from remuslike.bench.report.timelines import draw_latency, draw_over_time, draw_takeover


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot in both colour schemes (PNG), or why there is none (`missing`)."""

    name: str
    title: str
    caption: str
    light: bytes = b""
    dark: bytes = b""
    missing: str = ""

    @property
    def light_uri(self) -> str:
        """For an img element."""
        return _data_uri(self.light)

    @property
    def dark_uri(self) -> str:
        """For an img element."""
        return _data_uri(self.dark)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


Draw = Callable[[Summary], Picture | str]

_PLOTS: Sequence[tuple[str, str, str, Draw]] = (
    (
        "throughput",
        "Throughput against epoch length",
        "Median of the ratios to the unprotected guest, round by round; bars and bands are confidence"
        " intervals. A mode without an epoch length is a line across.",
        draw_throughput,
    ),
    (
        "latency",
        "Latency",
        "All rounds' operations together, up to the last percentile with five samples beyond it.",
        draw_latency,
    ),
    (
        "pause",
        "Pause",
        "Mean over all checkpoints. Devices are saved beside scan and copy: shown is what they take longer.",
        draw_pause,
    ),
    (
        "crossover",
        "Crossover of the modes",
        "Loads of one workload whose output rate grows. Marked: where event-tap meets the best epoch length.",
        draw_crossover,
    ),
    ("takeover", "Takeover timeline", "A bar is one kill; its parts add up to the outage.", draw_takeover),
    (
        "over-time",
        "Over time",
        "One round of each setting: above what the workload did, beneath when its checkpoints came.",
        draw_over_time,
    ),
)


def draw_plots(summary: Summary) -> list[Plot]:
    """All of them, in the page's order."""
    return [_plot(summary, *each) for each in _PLOTS]


def _plot(summary: Summary, name: str, title: str, caption: str, draw: Draw) -> Plot:
    images: dict[str, bytes] = {}
    for theme, settings in style.THEMES.items():
        with rc_context(settings):
            picture = draw(summary)
            if isinstance(picture, str):
                return Plot(name, title, caption, missing=picture)
            image = io.BytesIO()
            # No date or version within: the same results give the same bytes.
            picture.savefig(image, format="png", dpi=style.PIXELS_PER_INCH, metadata={"Software": None})
            images[theme] = image.getvalue()
    return Plot(name, title, caption, light=images["light"], dark=images["dark"])


def render_page(summary: Summary, plots: Sequence[Plot]) -> str:
    """HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    source = files("remuslike.bench.report").joinpath("page.html").read_text("utf-8")
    cells = sum(len(some) for some in summary.cells.values())
    names = ", ".join(run.name for run in summary.runs)
    return environment.from_string(source).render(
        title="What protection costs",
        subtitle=f"remuslike bench report of {names}: {cells} cells, {len(summary.variants)} settings.",
        method=tables.method(),
        warnings=tables.warnings(summary),
        plots=plots,
        costs=tables.cost_tables(summary),
        takeovers=tables.takeover_tables(summary),
        environment=tables.environment_table(summary),
        failures=tables.failure_table(summary),
    )
