"""The file between `bench run` and `bench report`: JSON Lines, a header and then a cell a line. Pure.

A *cell* is one measurement: a workload under one mode in one round. Lines are only ever appended, so an
interrupted run keeps what it has, and the next one goes on after the last whole line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remuslike.bench.errors import ResultsError

FORMAT: Final = "remuslike-bench-run"
FORMAT_VERSION = 2
"""Counts up when a reader would have to change."""

UNPROTECTED = "unprotected"
"""The mode of the baseline: the same guest on a plain tap and a plain raw file, nobody beside it."""

Mode = Literal["unprotected", "epoch", "event-tap", "adaptive"]
Guest = Literal["q35", "microvm", "synthetic"]
_T = TypeVar("_T", bound=BaseModel)

Parameter = str | int | float | bool


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Header(_Record):
    """The first line: where and how the run was made; `environment` as of `bench.environment`."""

    format: Literal["remuslike-bench-run"] = FORMAT
    version: int = FORMAT_VERSION
    environment: Mapping[str, Any]
    options: Mapping[str, Any]


class Variant(_Record):
    """What a cell measures; cells that differ in nothing but the round are repeats of each other.

    `parameters` are the workload's own (clients, streams, pages_s, …). `epoch_ms` is None where the mode has
    none.
    """

    guest: Guest
    workload: str
    parameters: Mapping[str, Parameter] = Field(default_factory=dict)
    mode: Mode
    epoch_ms: float | None = None

    @property
    def key(self) -> str:
        """The same text for equal variants."""
        return json.dumps(self.model_dump(), sort_keys=True)

    @property
    def load(self) -> str:
        """The workload with its parameters, as a reader sees it: "redis clients=16"."""
        return " ".join([self.workload, *(f"{name}={value}" for name, value in self.parameters.items())])

    @property
    def setting(self) -> str:
        """The mode with its epoch length: "epoch 25 ms"."""
        return self.mode if self.epoch_ms is None else f"{self.mode} {self.epoch_ms:g} ms"


class Load(_Record):
    """What the workload said. `rate` is in `unit` (more is better), the mean over the whole measurement.

    `latencies_ms` are raw samples of single operations, or empty where the workload has none; `series` are
    (seconds since the beginning, rate) of consecutive intervals, for plots over time.
    """

    unit: str
    rate: float
    latencies_ms: tuple[float, ...] = ()
    series: tuple[tuple[float, float], ...] = ()
    details: Mapping[str, float] = Field(default_factory=dict)


class Cell(_Record):
    """One measurement, or why there is none (`error`).

    `checkpoints`: a column (all of the same length) for each field of `remuslike.daemon.samples.Sample`, the
    session's checkpoints within the measurement. `cores`: processors taken on average by each process
    ("primary", "secondary", "qemu", "standby", "client"), 1.0 for a whole one. `memory_mib`: their largest
    resident sets. `link_ms`: there and back over the hosts' link, None where that was cut. `takeover_ms`: of
    a cell that ended with a kill, milliseconds from the kill on until "decided", "granted", "opened",
    "running", "first_reply". `lost`: acknowledged operations that the survivor did not have, None where
    nothing was checked. `forced`: in what the environment differed from the header's (`--force`).
    """

    variant: Variant
    round: int
    at: str
    seconds: float = 0.0
    load: Load | None = None
    checkpoints: Mapping[str, tuple[float | None, ...]] = Field(default_factory=dict)
    cores: Mapping[str, float] = Field(default_factory=dict)
    memory_mib: Mapping[str, float] = Field(default_factory=dict)
    link_ms: float | None = None
    takeover_ms: Mapping[str, float] = Field(default_factory=dict)
    lost: int | None = None
    error: str | None = None
    forced: str | None = None


class Results(_Record):
    """A whole file."""

    header: Header
    cells: tuple[Cell, ...]

    def done(self) -> frozenset[tuple[str, int]]:
        """(variant's key, round) of the cells that were measured; those that failed may be tried again."""
        return frozenset((cell.variant.key, cell.round) for cell in self.cells if cell.error is None)


def encode_line(record: Header | Cell) -> str:
    """A line, with its end."""
    # Left out where nothing was forced: earlier programs don't know it.
    exclude = {"forced"} if isinstance(record, Cell) and record.forced is None else None
    return record.model_dump_json(exclude=exclude) + "\n"


def decode_untrusted(lines: Iterable[str], source: str) -> Results:
    """The results in `lines` of the file `source`. A last line without its end was cut short: it is left out.

    Raises ResultsError, which names the line and what is wrong with it.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.endswith("\n"))
    first = next(numbered, None)
    if first is None:
        raise ResultsError(f"{source}: has no whole line; write results with: remuslike bench run --json")
    return Results(header=_header(first[1], source), cells=tuple(_cells(numbered, source)))


def _header(line: str, source: str) -> Header:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise ResultsError(f"{source}: line 1: is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ResultsError(f"{source}: line 1: format: expected {FORMAT!r}; write it with: bench run --json")
    if document.get("version") != FORMAT_VERSION:
        raise ResultsError(
            f"{source}: line 1: version = {document.get('version')!r}: this program reads version"
            f" {FORMAT_VERSION}; use the one that wrote it, or measure again"
        )
    return _validated(Header, line, f"{source}: line 1")


def _cells(numbered: Iterator[tuple[int, str]], source: str) -> Iterator[Cell]:
    for number, line in numbered:
        cell = _validated(Cell, line, f"{source}: line {number}")
        lengths = {len(column) for column in cell.checkpoints.values()}
        if len(lengths) > 1:
            raise ResultsError(f"{source}: line {number}: checkpoints: columns of {sorted(lengths)} values")
        yield cell


def _validated(model: type[_T], line: str, where: str) -> _T:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"])) or "the line"
        raise ResultsError(f"{where}: {key}: {problem['msg']}") from error
