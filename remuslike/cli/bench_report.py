"""`remuslike bench report` and `compare`: what the files of `bench run` say."""

from __future__ import annotations

import sys
from pathlib import Path

import click

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("files", nargs=-1, required=True, type=_FILE, metavar="FILE...")
@click.option(
    "--out",
    "directory",
    required=True,
    type=_FILE,
    help="The directory for report.html, report.md, figures.csv and a PNG of each plot.",
)
def report(files: tuple[Path, ...], directory: Path) -> None:
    """Make a page with plots and tables of what `bench run --json` measured.

    The page needs nothing beside it. What can't be drawn of these files is named on it, with the reason.
    """
    # Late, so that other commands don't wait for what only the report needs.
    from rich.console import Console

    from remuslike.bench.report.command import write_report

    write_report(files, directory, Console(soft_wrap=True))


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 10),
    default=0.05,
    show_default=True,
    help="A change by a smaller share than this doesn't count.",
)
@click.option("--figure", "only", multiple=True, metavar="NAME", help="Compare only this; may be repeated.")
@click.option("--force", is_flag=True, help="Compare absolute figures of different machines, too.")
@click.option("--all", "every", is_flag=True, help="List the figures that are the same, too.")
def compare(a: Path, b: Path, *, threshold: float, only: tuple[str, ...], force: bool, every: bool) -> None:
    """Say whether the run in file B is worse than that in file A, setting by setting and figure by figure.

    Figures that are also measured unprotected are compared as ratios to that; the others only if both files
    are from the same machine. Exit status 0 if nothing is worse, 1 if something is, beyond the threshold and
    beyond chance, 2 if the files can't be compared.
    """
    from rich.console import Console

    from remuslike.bench.report.command import compare_files

    console = Console(soft_wrap=True)
    worse = compare_files(a, b, threshold=threshold, force=force, every=every, only=only, console=console)
    sys.exit(1 if worse else 0)
