"""A run on the terminal: a line for each cell, and how much is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from remuslike.bench.plan import Outlook, Visit
from remuslike.bench.results import Cell


class RunView:
    """Says what is measured on `console`. Within its context a terminal also has a bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=0, left="")
        self._cells = 0
        self._done = 0

    def __enter__(self) -> RunView:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, visits: Sequence[Visit], outlook: Outlook, *, earlier: int) -> None:
        """These visits are to be made; `earlier` cells are in the file already."""
        self._cells = sum(len(visit.variants) for visit in visits)
        left = duration(outlook.remaining_s(visits))
        self._progress.update(self._task, total=self._cells, left=left)
        if earlier:
            self.say(f"{earlier} cells were measured before")
        if not visits:
            self.say("nothing is left to measure; give another --json to measure again")
        else:
            self.say(f"{self._cells} cells with {len(visits)} boots, about {left}")

    def boot(self, visit: Visit) -> None:
        """A guest is about to be started."""
        self._progress.update(
            self._task, description=f"round {visit.round}: {visit.workload}, {visit.setting}"
        )

    def cell(self, cell: Cell, remaining_s: float) -> None:
        """One is done, or has failed."""
        self._done += 1
        left = duration(remaining_s)
        self._progress.update(self._task, completed=self._done, left=left)
        what = f"round {cell.round}: {cell.variant.load}, {cell.variant.setting}"
        style = "bold red" if cell.error or cell.lost else ""
        self.say(f"{self._done}/{self._cells}, {left} left: {what}: {described(cell)}", style)

    def interrupted(self, path: Path) -> None:
        """The user has had enough."""
        self.say(f"interrupted; {self._done} cells more are in {path}: the same command goes on from there")

    def end(self, failed: int, lost: int, path: Path) -> None:
        """All is done: so many cells failed, and so many acknowledged writes were lost."""
        tell = f"; {failed} failed, and the same command tries these again" if failed else ""
        self.say(f"{self._done} cells more are in {path}{tell}")
        if lost:
            self.say(f"LOST: {lost} acknowledged writes", "bold red")

    def say(self, line: str, style: str = "") -> None:
        """A line that stays."""
        self._console.print(Text(line, style=style), soft_wrap=True)


def described(cell: Cell) -> str:
    """The gist of a cell in a few words."""
    if cell.error is not None:
        return f"failed: {cell.error.splitlines()[0] if cell.error else 'for no given reason'}"
    words: list[str] = []
    if cell.load is not None:
        words.append(f"{number(cell.load.rate)} {cell.load.unit}")
        if cell.load.latencies_ms:
            words.append(f"median {number(median(cell.load.latencies_ms))} ms")
    pauses = [value for value in cell.checkpoints.get("pause_ms", ()) if value is not None]
    if pauses:
        words.append(f"{len(pauses) / cell.seconds:.3g} checkpoints/s, pause {median(pauses):.2f} ms")
    if cell.takeover_ms:
        words.append(f"first reply {number(cell.takeover_ms.get('first_reply', 0.0))} ms after the kill")
    if cell.lost is not None:
        words.append(f"{cell.lost} acknowledged writes lost")
    return ", ".join(words)


def number(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time to come, as exact as it can be known."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
