"""`bench report` and `bench compare`, from the files' names to what the reader gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from remuslike.bench.errors import BenchOptionError, ResultsError
from remuslike.bench.report.compare import ROUNDS_MIN, Comparison, Outcome, Verdict, compare
from remuslike.bench.report.files import read_runs, write_all
from remuslike.bench.report.intervals import LEVEL, SEED
from remuslike.bench.report.summary import Summary, place_of
from remuslike.bench.report.tables import NOTHING, comma_separated, interval, markdown, number, warnings

PAGE, MARKDOWN, CSV = "report.html", "report.md", "figures.csv"

_COLOURS = {Verdict.WORSE: "red", Verdict.BETTER: "green", Verdict.UNCLEAR: "yellow", Verdict.SAME: ""}


def write_report(paths: Sequence[Path], directory: Path, console: Console) -> None:
    """Page, plots, Markdown and CSV of the runs in `paths`. Raises ResultsError, BenchEnvironmentError."""
    runs = read_runs(paths)
    write_all(directory, {})  # before the work: it may not be possible
    summary = Summary(runs)
    write_all(directory, {MARKDOWN: markdown(summary).encode(), CSV: comma_separated(summary).encode()})
    # matplotlib takes half a second to import.
    from remuslike.bench.report.page import draw_plots, render_page

    plots = draw_plots(summary)
    images = {f"{plot.name}.png": plot.light for plot in plots if not plot.missing}
    write_all(directory, {**images, PAGE: render_page(summary, plots).encode()})
    for line in warnings(summary):
        console.print(f"[yellow]{escape(line)}[/]")
    for plot in plots:
        if plot.missing:
            console.print(f"{plot.name}: left out: {escape(plot.missing)}")
    names = ", ".join((PAGE, MARKDOWN, CSV, *images))
    console.print(escape(f"{directory}: {names}"))


def compare_files(
    a: Path, b: Path, *, threshold: float, force: bool, every: bool, only: Sequence[str], console: Console
) -> bool:
    """Whether B is worse than A; says what, or `every` figure. Raises ResultsError, BenchOptionError."""
    before, after = read_runs([a, b])
    known = {name for run in (before, after) for _, name in Summary([run]).figures}
    if unknown := set(only) - known:
        raise BenchOptionError(
            f"--figure {min(unknown)}: neither file has it; they have {', '.join(sorted(known))}"
        )
    outcome = compare(before, after, threshold, force=force, only=only)
    if not (outcome.comparisons or outcome.broken or outcome.missing):
        hint = "; --force compares absolute figures of different machines" if outcome.withheld else ""
        raise ResultsError(f"{a} and {b}: have no figures that can be compared{hint}")
    _say(outcome, threshold, console, every=every)
    return outcome.worse


def _say(outcome: Outcome, threshold: float, console: Console, *, every: bool) -> None:
    for line in outcome.differences:
        console.print(f"[yellow]The runs differ in {escape(line)}[/]")
    for line in outcome.forced:
        console.print(f"[yellow]{escape(line)}[/]")
    if outcome.withheld:
        said = f"{outcome.withheld} absolute figures of different machines are not compared; --force does it"
        console.print(f"[yellow]{said}[/]")
    for variant in outcome.broken:
        console.print(f"[red]failed in B: {escape(f'{place_of(variant)}, {variant.setting}')}[/]")
    for variant in outcome.faltering:
        said = escape(f"{place_of(variant)}, {variant.setting}")
        console.print(f"[yellow]failed in some rounds of B: {said}[/]")
    for figure in outcome.missing:
        said = escape(f"{place_of(figure.variant)}, {figure.variant.setting}: {figure.measure.title}")
        console.print(f"[{'red' if figure in outcome.silent else 'yellow'}]only A has: {said}[/]")
    for variant in outcome.unmatched:
        console.print(f"only in one of the two: {escape(f'{place_of(variant)}, {variant.setting}')}")
    shown = [each for each in outcome.comparisons if every or each.verdict is not Verdict.SAME]
    if shown:
        console.print(_table(shown))
    counts = {verdict: sum(each.verdict is verdict for each in outcome.comparisons) for verdict in Verdict}
    counts[Verdict.WORSE] += len(outcome.broken) + len(outcome.silent)
    console.print(
        ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        + f" (beyond {threshold:.1%}; {LEVEL:.0%} intervals, bootstrap seed {SEED};"
        " of three rounds their ranges; unclear: the interval includes 1, or there are fewer than"
        f" {ROUNDS_MIN} rounds)",
        highlight=False,
    )
    console.print(
        f"Of {len(outcome.comparisons)} figures {outcome.by_chance:.1f} lie apart by chance alone, not all of"
        " them beyond the threshold: measure more rounds, or name a --figure.",
        highlight=False,
    )


def _table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("guest and load", "setting", "figure"):
        table.add_column(name, overflow="fold")
    for name in ("A", "B", "B / A", ""):
        table.add_column(name, justify="right")
    for each in comparisons:
        kind = f"{each.measure.title}, ratio to unprotected" if each.relative else each.measure.title
        table.add_row(
            *(escape(text) for text in (str(place_of(each.variant)), each.variant.setting, kind)),
            number(each.a),
            number(each.b),
            NOTHING if each.ratio is None else interval(each.ratio),
            each.verdict,
            style=_COLOURS[each.verdict],
        )
    return table
