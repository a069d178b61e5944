"""Figures as tables: rows for readers, shared by the page and Markdown; and all of them as CSV. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from remuslike.bench.report.intervals import LEVEL, SEED, Estimate
from remuslike.bench.report.measures import LATENCY_MULTIPLE, LOST
from remuslike.bench.report.summary import (
    Figure,
    Place,
    Summary,
    differences,
    forced,
    machine_of,
    software_of,
)
from remuslike.bench.results import Variant

NOTHING = "–"
CSV_COLUMNS = (
    *("guest", "workload", "parameters", "mode", "epoch_ms", "figure", "unit", "better", "rounds"),
    *("median", "low", "high", "ratio", "ratio_low", "ratio_high"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` have as many texts as `head`; the first is the setting."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_COST_HEAD = (
    *("setting", "throughput", "ratio", "median latency, ms", "99 %, ms", "added median, ms"),
    *(
        "pause, ms",
        "99 %, ms",
        "pause + commit, ms",
        "latency / (pause + link)",
        "checkpoints a second",
        "dirty pages",
        "wire / dirty",
    ),
    *("cores", "MiB"),
)
_TAKEOVER_HEAD = ("setting", "kills", "guest runs after, ms", "longest, ms", "first reply after, ms", "lost")


def cost_tables(summary: Summary) -> list[Table]:
    """What protection costs, a table for each guest and load."""
    return [
        Table(str(place), _COST_HEAD, tuple(_cost_row(summary, variant) for variant in summary.at(place)))
        for place in summary.places()
    ]


def _cost_row(summary: Summary, variant: Variant) -> tuple[str, ...]:
    def middle(name: str) -> str:
        figure = summary.get(variant, name)
        return NOTHING if figure is None else number(figure.value.median)

    throughput = summary.get(variant, "throughput")
    return (
        variant.setting,
        NOTHING if throughput is None else f"{number(throughput.value.median)} {throughput.unit}",
        NOTHING if throughput is None else interval(throughput.ratio),
        *(middle(name) for name in ("latency_p50", "latency_p99", "added_latency_p50")),
        *(middle(name) for name in ("pause_p50", "pause_p99", "output_wait_p50", LATENCY_MULTIPLE)),
        *(middle(name) for name in ("checkpoint_rate", "dirty_pages", "wire_ratio")),
        _each_process(summary, variant, "cores_"),
        _each_process(summary, variant, "memory_"),
    )


def _each_process(summary: Summary, variant: Variant, prefix: str) -> str:
    parts = [
        f"{name.removeprefix(prefix)} {number(figure.value.median)}"
        for (key, name), figure in summary.figures.items()
        if key == variant.key and name.startswith(prefix)
    ]
    return ", ".join(parts) or NOTHING


def takeover_tables(summary: Summary) -> list[Table]:
    """What the kills came to, a table for each guest and load that had any."""
    tables = []
    for place in summary.places():
        rows = tuple(row for variant in summary.at(place) if (row := _takeover_row(summary, variant)))
        if rows:
            tables.append(Table(str(place), _TAKEOVER_HEAD, rows))
    return tables


def _takeover_row(summary: Summary, variant: Variant) -> tuple[str, ...] | None:
    killed = [cell for cell in summary.cells[variant.key] if cell.takeover_ms]
    if not killed:
        return None
    took, lost = summary.get(variant, "takeover"), summary.get(variant, LOST)
    replies = [cell.takeover_ms["first_reply"] for cell in killed if "first_reply" in cell.takeover_ms]
    return (
        variant.setting,
        str(len(killed)),
        NOTHING if took is None else interval(took.value),
        NOTHING if took is None else number(max(took.values)),
        number(sorted(replies)[len(replies) // 2]) if replies else NOTHING,
        NOTHING if lost is None else number(sum(lost.values)),
    )


def failure_table(summary: Summary) -> Table | None:
    """The cells that have no figures, with the reason; None if all were measured."""
    if not summary.failed:
        return None
    rows = tuple(
        (cell.variant.setting, str(_place(cell.variant)), str(cell.round), run, cell.error or "")
        for run, cell in summary.failed
    )
    return Table("Not measured", ("setting", "guest and load", "round", "file", "why"), rows)


def _place(variant: Variant) -> Place:
    return Place(variant.guest, variant.load)


def environment_table(summary: Summary) -> Table:
    """Where each run was made."""
    rows = []
    for run in summary.runs:
        environment = run.results.header.environment
        known = {**machine_of(run.results), **software_of(run.results)}
        rows.append((run.name, str(environment.get("at", "?")), *known.values()))
    head = ("file", "at", "processor", "processors", "accelerator", "kernel", "QEMU", "commit")
    return Table("Where it was measured", head, tuple(rows))


def warnings(summary: Summary) -> list[str]:
    """What a reader must know before he believes a figure."""
    lines = [f"The runs differ in {line}" for line in differences(summary.runs)]
    lines += forced(summary.runs)
    if any(run.results.header.environment.get("emulated") for run in summary.runs):
        lines.append("The processor was emulated: times mean nothing by themselves, ratios do.")
    if summary.failed:
        lines.append(f"{len(summary.failed)} of the cells could not be measured; they are listed at the end.")
    return lines


def method() -> str:
    """How the figures came about, in a sentence or three."""
    return (
        "Each figure is the median over the rounds. Ratios are to the unprotected cell of the same round of "
        "the same run. In brackets are "
        f"{LEVEL:.0%} confidence intervals of the median, by bootstrap (seed {SEED}); of up to five rounds "
        "they are the whole range."
    )


def markdown(summary: Summary) -> str:
    """The tables as GitHub renders them."""
    parts = ["# What protection costs", method()]
    parts += [f"**{line}**" for line in map(_escaped, warnings(summary))]
    parts += ["\n\n".join(_markdown_table(table, "##")) for table in cost_tables(summary)]
    if tables := takeover_tables(summary):
        parts.append("## Takeovers")
        parts += ["\n\n".join(_markdown_table(table, "###")) for table in tables]
    last = [environment_table(summary), failure_table(summary)]
    parts += ["\n\n".join(_markdown_table(table, "##")) for table in last if table is not None]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table, level: str) -> Iterator[str]:
    yield f"{level} {_escaped(table.title)}"
    lines = [table.head, tuple("---" for _ in table.head), *table.rows]
    yield "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(text: str) -> str:
    """So that no text of a file becomes markup or ends its cell."""
    for character in "\\`*_<>|[]#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def comma_separated(summary: Summary) -> str:
    """Every figure of every variant."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(_csv_row(figure) for figure in summary.figures.values())
    return text.getvalue()


def _csv_row(figure: Figure) -> Sequence[object]:
    variant, value, ratio = figure.variant, figure.value, figure.ratio
    return (
        variant.guest,
        variant.workload,
        json.dumps(dict(variant.parameters)),
        variant.mode,
        "" if variant.epoch_ms is None else f"{variant.epoch_ms:g}",
        figure.measure.name,
        figure.unit,
        figure.measure.better,
        value.count,
        *_exact(value),
        *(("", "", "") if ratio is None else _exact(ratio)),
    )


def _exact(value: Estimate) -> tuple[str, str, str]:
    """Six digits: more than there are, fewer than confuse."""
    texts = ("" if part is None else f"{part:.6g}" for part in (value.median, value.low, value.high))
    first, second, third = texts
    return first, second, third


def interval(value: Estimate | None) -> str:
    """The median, and its interval where there is one: "0.87 (0.85 to 0.9)"."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return number(value.median)
    return f"{number(value.median)} ({number(value.low)} to {number(value.high)})"


def number(value: float) -> str:
    """Three significant digits, thousands apart: what comes after is noise."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}".replace(",", " ")
    return f"{value:.3g}"
