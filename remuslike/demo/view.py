"""How the demo looks: stages with their times, a live view of the load, tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import monotonic

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from remuslike.demo.load import Progress
from remuslike.demo.messages import Held, Sample
from remuslike.demo.observer import Observer
from remuslike.demo.report import Result, Summary

REDRAW_S = 0.25
PLAIN_LINE_S = 2.0
RECENT_S = 2.0
PLAIN_WIDTH = 120  # of tables in a file or a pipe, which has no width of its own


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment of the load, as shown. Rates are over the last RECENT_S."""

    elapsed_s: float
    primary: str
    secondary: str
    checkpoints: int
    epochs_per_s: float
    pause_last_ms: float
    pause_median_ms: float
    dirty_pages: float
    wire_bytes_per_s: float
    wire_ratio: float
    held_network: tuple[int, int]
    held_disk: tuple[int, int]
    acknowledged: int
    acknowledged_per_s: float

    def rows(self) -> list[tuple[str, str]]:
        """Labels and values, in the order to show."""
        return [
            ("elapsed", f"{self.elapsed_s:.1f} s"),
            ("primary / secondary", f"{self.primary} / {self.secondary}"),
            ("epochs", f"{self.epochs_per_s:.1f}/s ({self.checkpoints} so far)"),
            ("pause", f"median {self.pause_median_ms:.1f} ms, last {self.pause_last_ms:.1f} ms"),
            ("dirty pages", f"{self.dirty_pages:.0f}"),
            ("on the wire", f"{self.wire_bytes_per_s / 1e6:.2f} MB/s, ratio {self.wire_ratio:.4f}"),
            ("held frames", f"{self.held_network[0]} ({self.held_network[1]} bytes)"),
            ("held disk writes", f"{self.held_disk[0]} ({self.held_disk[1]} bytes)"),
            ("acknowledged writes", f"{self.acknowledged} ({self.acknowledged_per_s:.0f}/s)"),
        ]


@dataclass(slots=True)
class Gauges:
    """Turns what observer and client know into snapshots."""

    observer: Observer
    started_at: float
    _counts: list[tuple[float, int]] = field(default_factory=list)

    def read(self, now: float, progress: Progress) -> Snapshot:
        recent: list[Sample] = []
        for sample in reversed(self.observer.samples):
            if sample.at < now - RECENT_S:
                break
            recent.append(sample)
        raw_bytes = sum(sample.raw_bytes for sample in recent)
        wire_bytes = sum(sample.wire_bytes for sample in recent)
        window_s = min(RECENT_S, max(now - self.started_at, 0.1))
        primary, secondary = self.observer.primary_said, self.observer.secondary_said
        dead = self.observer.primary is not None and self.observer.primary.may_end
        held = {} if dead or primary is None else primary.held
        return Snapshot(
            elapsed_s=now - self.started_at,
            primary="dead" if dead else primary.phase if primary else "-",
            secondary=secondary.phase if secondary else "-",
            checkpoints=len(self.observer.samples),
            epochs_per_s=len(recent) / window_s,
            pause_last_ms=recent[0].pause_ms if recent else 0.0,
            pause_median_ms=median(sample.pause_ms for sample in recent) if recent else 0.0,
            dirty_pages=median(sample.dirty_pages for sample in recent) if recent else 0.0,
            wire_bytes_per_s=wire_bytes / window_s,
            wire_ratio=wire_bytes / raw_bytes if raw_bytes else 0.0,
            held_network=_held(held, "network"),
            held_disk=_held(held, "disk"),
            acknowledged=progress.acknowledged,
            acknowledged_per_s=self._rate(now, progress),
        )

    def _rate(self, now: float, progress: Progress) -> float:
        if progress.at:
            self._counts.append((progress.at, progress.acknowledged))
        while len(self._counts) > 2 and self._counts[0][0] < now - RECENT_S:
            self._counts.pop(0)
        if not self._counts or self._counts[-1][0] <= self._counts[0][0]:
            return 0.0
        (first_at, first), (last_at, last) = self._counts[0], self._counts[-1]
        return (last - first) / (last_at - first_at)


def _held(held: Mapping[str, Held], kind: str) -> tuple[int, int]:
    buffers = [buffer for name, buffer in held.items() if name.startswith(kind)]
    return sum(buffer.held_items for buffer in buffers), sum(buffer.held_bytes for buffer in buffers)


class View:
    """On a terminal things move; elsewhere the same is said in plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        if not console.is_terminal:
            console.width = max(console.width, PLAIN_WIDTH)
        self.timings_s: dict[str, float] = {}
        self._live: Live | None = None
        self._plain_at = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], None]]:
        """Says that a stage is under way, and how long it took; yields what tells how far it is."""
        began = monotonic()
        if self.console.is_terminal:
            with self.console.status(name) as status:
                yield lambda detail: status.update(f"{name}: {detail}")
        else:
            yield lambda detail: None
        self.timings_s[name] = monotonic() - began
        self.say(f"{name}: done in {self.timings_s[name]:.1f} s")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(Text(line), soft_wrap=True)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Around the load: `show` updates what is seen."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, transient=True) as self._live:
            yield
        self._live = None

    def show(self, snapshot: Snapshot) -> None:
        """The present moment of the load."""
        if self._live is not None:
            table = Table.grid(padding=(0, 2))
            for label, text in snapshot.rows():
                table.add_row(Text(label, style="bold"), Text(text))
            self._live.update(Group(table), refresh=True)
        elif snapshot.elapsed_s >= self._plain_at + PLAIN_LINE_S:
            self._plain_at = snapshot.elapsed_s
            self.say("; ".join(f"{label} {text}" for label, text in snapshot.rows()))

    def result(self, result: Result) -> None:
        """One run's table and verdict."""
        table = Table(title=f"Result of the run with seed {result.seed}", title_justify="left")
        table.add_column("figure")
        table.add_column("value")
        for label, text in _result_rows(result):
            table.add_row(Text(label), Text(text))
        self.console.print(table)
        for problem in result.problems:
            self.console.print(Text(problem, style="bold red"))
        if not result.problems:
            self.console.print(Text("Nothing that was acknowledged is lost.", style="bold green"))

    def summary(self, summary: Summary) -> None:
        """The table of several runs, and the medians over them."""
        table = Table(title=f"{len(summary.runs)} runs", title_justify="left", box=SIMPLE_HEAD)
        names = ("seed", "acked", "lost", "resets", "outage ms", "detect ms", "activate ms")
        for name in (*names, "epochs/s", "pause ms", "ratio", "pages", "wire", "clean"):
            table.add_column(name, justify="right")
        for run in summary.runs:
            table.add_row(*_summary_row(run))
        self.console.print(table)
        medians = summary.medians
        shown = ["client_outage_ms", "detection_ms", "activation_ms", "checkpoint_rate_hz", "pause_ms.median"]
        shown += ["pause_ratio", "dirty_pages.median", "wire_ratio"]
        self.say("medians: " + ", ".join(f"{name} {medians[name]:g}" for name in shown if name in medians))


def _result_rows(result: Result) -> list[tuple[str, str]]:
    pause, parts = result.pause_ms, result.pause_parts_ms
    return [
        ("acknowledged writes", f"{result.acked_writes} ({result.acked_writes_per_s:.0f}/s while protected)"),
        ("of these lost", str(result.lost_acked_writes)),
        ("done twice", str(result.duplicated_writes)),
        ("connections reset", str(result.connection_resets)),
        ("outage seen by the client", _milliseconds(result.client_outage_ms)),
        ("kill until takeover decided", _milliseconds(result.detection_ms)),
        ("decision until guest runs", _milliseconds(result.activation_ms)),
        ("checkpoints under load", f"{result.checkpoints}, {result.checkpoint_rate_hz:.1f}/s"),
        ("pause", f"median {pause.median:.1f} ms, p99 {pause.p99:.1f} ms, max {pause.max:.1f} ms"),
        ("its parts", ", ".join(f"{name} {value:.1f}" for name, value in parts.items()) + " ms"),
        ("pause without capture", _milliseconds(result.baseline_pause_ms)),
        ("ratio of the two", "-" if result.pause_ratio is None else f"{result.pause_ratio:.2f}"),
        ("commit", f"median {result.commit_ms.median:.1f} ms, max {result.commit_ms.max:.1f} ms"),
        ("dirty pages", f"median {result.dirty_pages.median:.0f}, max {result.dirty_pages.max:.0f}"),
        ("wire bytes over dirty bytes", f"{result.wire_ratio:.4f}"),
        ("file system check", "clean" if result.fsck_clean else "NOT CLEAN"),
        ("append-only file", "clean" if result.aof_clean else "NOT CLEAN"),
    ]


def _summary_row(run: Result) -> list[str]:
    clean = run.fsck_clean and run.aof_clean and not run.problems
    figures: list[tuple[float | None, int]] = [
        *((figure, 1) for figure in (run.client_outage_ms, run.detection_ms, run.activation_ms)),
        *((run.checkpoint_rate_hz, 1), (run.pause_ms.median, 1), (run.pause_ratio, 2)),
        (run.dirty_pages.median, 0),
    ]
    counts = (run.seed, run.acked_writes, run.lost_acked_writes, run.connection_resets)
    return [
        *(str(count) for count in counts),
        *("-" if figure is None else f"{figure:.{digits}f}" for figure, digits in figures),
        f"{run.wire_ratio:.4f}",
        "yes" if clean else "NO",
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
