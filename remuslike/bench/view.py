"""A benchmark on the terminal: samples as they come, and a table at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remuslike.bench.figures import Figure, Measure, Report, Sample

PLAIN_WIDTH = 150
"""Columns where there is no terminal: a table is not to be cut for a file's sake."""


class View:
    """Says what is measured on `console`; `part` is whose processor time is shown beside that of all."""

    def __init__(self, console: Console, measures: Sequence[Measure], part: str = "hold") -> None:
        self.console = console
        self._part = part
        self._measures = {measure.name: measure for measure in measures}
        if not console.is_terminal:
            console.width = max(console.width, PLAIN_WIDTH)

    def sample(self, sample: Sample, rounds: int) -> None:
        """One value has been measured."""
        measure = self._measures[sample.measure]
        self.say(
            f"round {sample.round} of {rounds}: {measure.title}, {sample.setting}: "
            f"{_number(sample.value)} {measure.unit}{_cores(sample.cores)}"
        )

    def report(self, report: Report) -> None:
        """The medians and ratios of a run."""
        table = Table(title=f"remuslike bench {report.benchmark}", title_justify="left")
        table.add_column("measured", no_wrap=True)
        table.add_column("setting", no_wrap=True)
        for name in ("median", "ratio (lowest to highest)", "wanted", f"processors ({self._part})"):
            table.add_column(name, justify="right")
        for name, figures in groupby(report.figures, key=lambda figure: figure.measure):
            measure = self._measures[name]
            title = measure.title
            for figure in figures:
                table.add_row(Text(title), *_cells(figure, measure, self._part))
                title = ""
            table.add_section()
        self.console.print(table)
        for setting, reason in report.skipped.items():
            self.say(f"{setting} was skipped: {reason}")
        if not report.timely:
            self.say("The processor is emulated: compare ratios only, times mean nothing.")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(Text(line), soft_wrap=True)


def _cells(figure: Figure, measure: Measure, part: str) -> list[Text]:
    ratio = ""
    if figure.ratio is not None:
        other = f" of {figure.baseline}" if figure.baseline != measure.baseline else ""
        ratio = f"{figure.ratio:.3f} ({figure.ratio_min:.3f} to {figure.ratio_max:.3f}){other}"
    style = {True: "green", False: "bold red", None: ""}[figure.met]
    verdict = {True: " met", False: " missed", None: " can't tell" if figure.wanted else ""}[figure.met]
    return [
        Text(figure.setting),
        Text(f"{_number(figure.median)} {figure.unit}"),
        Text(ratio, style=style),
        Text((figure.wanted or "") + verdict, style=style),
        Text(_taken(figure.cores, part)),
    ]


def _taken(cores: Mapping[str, float], part: str) -> str:
    """What all took together, and `part` of it."""
    return f"{sum(cores.values()):.2f} ({cores.get(part, 0.0):.2f})" if cores else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _cores(cores: Mapping[str, float]) -> str:
    return "".join(f"  {part} {share:.2f}" for part, share in cores.items())
