"""From what was observed to what is reported: the demo's figures, its JSON and its verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from statistics import median
from typing import Any

from remuslike.demo.messages import Sample, Takeover
from remuslike.demo.workload import Finding

PAUSE_PARTS = ("stop", "scan", "copy", "devices", "resume")

# Replies before the kill that count as "around" it: the last one may have come a little earlier.
OUTAGE_LEAD_S = 0.5
# A gap that begins later than this after the kill has another cause, such as the pause measurement.
OUTAGE_TRAIL_S = 5.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of a figure over all checkpoints; zeros when there were none."""

    median: float
    p99: float
    max: float


def distribution(values: Sequence[float]) -> Distribution:
    """Nearest-rank percentiles."""
    if not values:
        return Distribution(0.0, 0.0, 0.0)
    ordered = sorted(values)
    rank = max(0, -(-99 * len(ordered) // 100) - 1)
    return Distribution(round(median(ordered), 3), round(ordered[rank], 3), round(ordered[-1], 3))


def outage_ms(reply_times: Sequence[float], killed_at: float) -> float | None:
    """The longest gap between two replies around the kill; None when no reply followed it.

    `reply_times` are seconds, of all connections together.
    """
    times = sorted(reply_times)
    gaps = [
        after - before
        for before, after in pairwise(times)
        if after > killed_at - OUTAGE_LEAD_S and before < killed_at + OUTAGE_TRAIL_S
    ]
    if not times or times[-1] <= killed_at or not gaps:
        return None
    return max(gaps) * 1000


@dataclass(frozen=True, slots=True)
class Check:
    """A tool's judgement, and the end of what it said."""

    clean: bool
    output: str


@dataclass(frozen=True, slots=True)
class Examination:
    """Of the survivor's disk. `findings`: the append-only file against the clients' histories."""

    filesystem: Check
    append_only_file: Check
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """All that one run saw. `samples` are those of the load, until the kill; times are seconds of
    CLOCK_MONOTONIC; `timings_s` are the stages by name."""

    seed: int
    acknowledged_writes: int
    acknowledged_before_kill: int
    failures: tuple[str, ...]
    findings: tuple[Finding, ...]
    read_back_complete: bool
    load_limited: bool
    reply_times: tuple[float, ...]
    samples: tuple[Sample, ...]
    load_started_at: float
    killed_at: float
    takeover: Takeover
    baseline_pause_ms: tuple[float, ...]
    examination: Examination
    timings_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One run's figures, named as in the JSON file."""

    seed: int
    acked_writes: int
    lost_acked_writes: int
    connection_resets: int
    duplicated_writes: int
    client_outage_ms: float | None
    detection_ms: float
    activation_ms: float | None
    checkpoints: int
    checkpoint_rate_hz: float
    pause_ms: Distribution
    pause_parts_ms: Mapping[str, float]
    commit_ms: Distribution
    dirty_pages: Distribution
    wire_ratio: float
    wire_bytes: int
    baseline_pause_ms: float | None
    pause_ratio: float | None
    acked_writes_per_s: float
    fsck_clean: bool
    aof_clean: bool
    load_limited: bool
    takeover: Mapping[str, Any]
    timings_s: Mapping[str, float]
    problems: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The JSON object."""
        return asdict(self)


def conclude(seen: Observation) -> Result:
    """The figures of a run, and in `problems` one sentence for each promise that it broke."""
    samples = seen.samples
    span_s = samples[-1].at - samples[0].at if len(samples) > 1 else 0.0
    raw_bytes = sum(sample.raw_bytes for sample in samples)
    wire_bytes = sum(sample.wire_bytes for sample in samples)
    pause = distribution([sample.pause_ms for sample in samples])
    baseline = round(median(seen.baseline_pause_ms), 3) if seen.baseline_pause_ms else None
    found = (*seen.findings, *seen.examination.findings)
    outage = outage_ms(seen.reply_times, seen.killed_at)
    load_s = seen.killed_at - seen.load_started_at
    return Result(
        seed=seen.seed,
        acked_writes=seen.acknowledged_writes,
        lost_acked_writes=len(_places(found, acknowledged=True, kinds=("missing", "changed"))),
        connection_resets=len(seen.failures),
        duplicated_writes=len(_places(found, acknowledged=None, kinds=("duplicate", "unknown"))),
        client_outage_ms=None if outage is None else round(outage, 1),
        detection_ms=round((seen.takeover.decided_at - seen.killed_at) * 1000, 1),
        activation_ms=_rounded(seen.takeover.activation_ms),
        checkpoints=len(samples),
        checkpoint_rate_hz=round((len(samples) - 1) / span_s, 2) if span_s else 0.0,
        pause_ms=pause,
        pause_parts_ms={
            part: distribution([getattr(sample, f"{part}_ms") for sample in samples]).median
            for part in PAUSE_PARTS
        },
        commit_ms=distribution([sample.commit_ms for sample in samples if sample.commit_ms is not None]),
        dirty_pages=distribution([sample.dirty_pages for sample in samples]),
        wire_ratio=round(wire_bytes / raw_bytes, 5) if raw_bytes else 0.0,
        wire_bytes=wire_bytes,
        baseline_pause_ms=baseline,
        pause_ratio=round(pause.median / baseline, 3) if baseline else None,
        acked_writes_per_s=round(seen.acknowledged_before_kill / load_s, 1) if load_s > 0 else 0.0,
        fsck_clean=seen.examination.filesystem.clean,
        aof_clean=seen.examination.append_only_file.clean,
        load_limited=seen.load_limited,
        takeover=seen.takeover.model_dump(),
        timings_s={name: round(time, 2) for name, time in seen.timings_s.items()},
        problems=tuple(_problems(seen, found, outage)),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _places(
    findings: Sequence[Finding], *, acknowledged: bool | None, kinds: Sequence[str]
) -> set[tuple[int, int]]:
    return {
        (finding.connection, finding.number)
        for finding in findings
        if finding.kind in kinds and acknowledged in (None, finding.acknowledged)
    }


def _problems(seen: Observation, found: Sequence[Finding], outage: float | None) -> list[str]:
    """A value that is there but wrong is a problem also when it was never acknowledged."""
    problems: list[str] = []
    examination = seen.examination
    for kind in dict.fromkeys(finding.kind for finding in found):
        places = sorted({(f.connection, f.number, f.acknowledged) for f in found if f.kind == kind})
        shown = ", ".join(
            f"k:{connection}:{number}" + ("" if acknowledged else " (never acknowledged)")
            for connection, number, acknowledged in places[:5]
        )
        problems.append(f"{len(places)} writes {kind}: {shown}" + (" ..." if len(places) > 5 else ""))
    problems += [f"a connection ended: {failure}" for failure in dict.fromkeys(seen.failures)]
    if not seen.read_back_complete:
        problems.append("reading the values back took too long and was given up")
    if not seen.acknowledged_before_kill:
        problems.append("nothing was acknowledged before the kill, so nothing was put to the test")
    if outage is None:
        problems.append("no reply came after the kill")
    if not examination.filesystem.clean:
        problems.append(f"e2fsck complains: {examination.filesystem.output}")
    if not examination.append_only_file.clean:
        problems.append(f"the append-only file isn't whole: {examination.append_only_file.output}")
    return problems


@dataclass(frozen=True, slots=True)
class Summary:
    """Several runs. `medians` has the figures over the runs, nested ones as `pause_ms.median`;
    the sums are what must be zero in all of them."""

    runs: tuple[Result, ...]

    @property
    def medians(self) -> dict[str, float]:
        columns: dict[str, list[float]] = {}
        for result in self.runs:
            for name, figure in _figures(result):
                columns.setdefault(name, []).append(figure)
        return {name: round(median(column), 4) for name, column in columns.items()}

    def document(self) -> dict[str, Any]:
        """The JSON object of several runs: sums over the runs, `medians` of their figures, and the `runs`."""
        return {
            "seed": self.runs[0].seed,
            "acked_writes": sum(run.acked_writes for run in self.runs),
            "lost_acked_writes": sum(run.lost_acked_writes for run in self.runs),
            "connection_resets": sum(run.connection_resets for run in self.runs),
            "fsck_clean": all(run.fsck_clean for run in self.runs),
            "aof_clean": all(run.aof_clean for run in self.runs),
            "medians": self.medians,
            "runs": [run.document() for run in self.runs],
        }


_SUMMED = (
    "seed",
    "acked_writes",
    "lost_acked_writes",
    "connection_resets",
    "duplicated_writes",
    "wire_bytes",
)


def _figures(result: Result) -> list[tuple[str, float]]:
    figures: list[tuple[str, float]] = []
    for field in fields(result):
        item = getattr(result, field.name)
        if field.name in _SUMMED or isinstance(item, bool):
            continue
        if isinstance(item, int | float):
            figures.append((field.name, item))
        elif isinstance(item, Distribution):
            figures += [(f"{field.name}.{name}", number) for name, number in asdict(item).items()]
    return figures
