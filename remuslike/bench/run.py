"""`remuslike bench run`: real guests through the real daemons, a cell after the other, into a result file."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import trio
from rich.console import Console

from remuslike.bench import synthetic
from remuslike.bench.environment import record_environment
from remuslike.bench.errors import MeasurementError
from remuslike.bench.hosts import Hosts, RealGuests
from remuslike.bench.options import RunOptions
from remuslike.bench.output import check_root, check_tools
from remuslike.bench.plan import TAKEOVER, Outlook, Visit, parameters_of, pending, visits_of
from remuslike.bench.resultfile import ResultFile
from remuslike.bench.results import Cell, Header, Load, Variant
from remuslike.bench.runview import RunView
from remuslike.bench.stage import LAST_SAMPLES_S, Window
from remuslike.bench.synthetic import SyntheticGuests
from remuslike.bench.takeover import Takeover, measure_takeover
from remuslike.bench.workloads import workloads_of
from remuslike.bench.workloads.contract import Workload
from remuslike.demo.interruption import Interrupted, cause, run_interruptibly
from remuslike.demo.messages import Sample
from remuslike.errors import expected_errors
from remuslike.image import build_image, probe_accelerator

STATUS_DONE, STATUS_INCOMPLETE = 0, 1

TOOLS = {"ip": "iproute2", "setpriv": "util-linux"}
TOOLS_OF_REAL_GUESTS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "iperf3": "iperf3",
    "mke2fs": "e2fsprogs",
}

SETTLE_S = 1.0  # of a guest that has booted: what it does then is not the workload's
_CELL_LIMIT_S = 300.0  # on top of the load: its own waits have limits, whose sum is far lower


def run_bench(options: RunOptions, console: Console) -> int:
    """Measure what isn't measured yet, and write it to `options.json_path`.

    Returns the exit status: 0 when every cell was measured and nothing lost, 1 otherwise, 128 plus the
    signal's number when it was interrupted. Whatever happens, no process, namespace or file is left but the
    results. Raises BenchError, and what the guest's image raises.
    """
    options.check()
    check_root()
    check_tools(TOOLS if options.guest == "synthetic" else TOOLS | TOOLS_OF_REAL_GUESTS)
    view = RunView(console)
    try:
        cast = _cast(options, view)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    with ResultFile(options, header_of(options, cast)) as file:
        left = pending(visits_of(options), file.found.done())
        view.begin(left, Outlook(options.seconds), earlier=len(file.found.done()))
        if not left:
            return STATUS_DONE
        try:
            bench = Bench(options, cast, file, view)
            with view:
                run_interruptibly(lambda: bench.run(left))
        except Interrupted as interruption:
            view.interrupted(options.json_path)
            return 128 + interruption.number
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    view.end(bench.failed, bench.lost, options.json_path)
    return STATUS_INCOMPLETE if bench.failed or bench.lost else STATUS_DONE


@dataclass(frozen=True, slots=True)
class Cast:
    """A kind of guest: where that of a visit runs, with its files in a directory; what it can do; how its
    host is killed, given a seed; and `facts` for the result file's environment."""

    place: Callable[[Visit, Path], AbstractAsyncContextManager[Hosts]]
    workloads: Mapping[str, Workload]
    kill: Callable[[Hosts, RunOptions, int], Awaitable[tuple[Load, Takeover]]]
    facts: Mapping[str, str] = field(default_factory=dict)


def header_of(options: RunOptions, cast: Cast) -> Header:
    """Of the result file of a run with `cast`."""
    environment = {**asdict(record_environment()), **cast.facts}
    return Header(environment=environment, options=options.recorded())


def _cast(options: RunOptions, view: RunView) -> Cast:
    """May build the guest image, which needs a network."""
    if options.guest == "synthetic":
        return Cast(SyntheticGuests(options), workloads_of("synthetic"), synthetic.measure_takeover)
    image = build_image(progress=view.say)
    workloads = workloads_of(options.guest)
    accelerator = probe_accelerator(image)
    place = RealGuests(options, image, accelerator, workloads)
    return Cast(place, workloads, measure_takeover, {"accelerator": accelerator, "image": image.digest})


class Bench:
    """Makes the visits."""

    def __init__(
        self,
        options: RunOptions,
        cast: Cast,
        file: ResultFile,
        view: RunView,
    ) -> None:
        self._options = options
        self._cast = cast
        self._file = file
        self._view = view
        self._outlook = Outlook(options.seconds)
        self.failed = 0
        self.lost = 0

    async def run(self, visits: Sequence[Visit]) -> None:
        """All of `visits`. A guest that fails takes one cell with it, which is recorded; the rest goes on."""
        left = list(visits)
        while left:
            visit, *later = left
            settled = await self._visit(visit, later)
            rest = visit.variants[settled:]
            left = [replace(visit, variants=rest), *later] if rest else later

    async def _visit(self, visit: Visit, later: Sequence[Visit]) -> int:
        """Boots a guest and measures; how many cells are settled, whether measured or failed."""
        settled = 0
        began = monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="remuslike-bench-") as folder:
                self._view.boot(visit)
                async with self._cast.place(visit, Path(folder)) as running:
                    await trio.sleep(SETTLE_S)
                    self._outlook.note_boot(monotonic() - began)
                    for variant in visit.variants:
                        began = monotonic()
                        cell = await self._cell(running, visit, variant)
                        self._outlook.note_cell(monotonic() - began)
                        settled += 1
                        self._note(cell, visit, settled, later)
        except Exception as error:
            if self._file.broken is not None:
                # No guest's fault, and what comes after it would be measured in vain.
                raise self._file.broken from None
            problem = cause(error) if isinstance(error, BaseExceptionGroup) else error
            if not isinstance(problem, expected_errors()):
                raise
            if settled == len(visit.variants):
                self._view.say(f"after the last cell: {problem}")
                return settled
            failed = Cell(variant=visit.variants[settled], round=visit.round, at=_now(), error=str(problem))
            settled += 1
            self._note(failed, visit, settled, later)
        return settled

    async def _cell(self, running: Hosts, visit: Visit, variant: Variant) -> Cell:
        stage, options = running.stage, self._options
        at = _now()
        takeover = Takeover()
        generation = _generation(running)
        try:
            with trio.fail_after(options.seconds + _CELL_LIMIT_S):
                if visit.workload == TAKEOVER:
                    load, takeover = await self._cast.kill(running, options, visit.round)
                else:
                    workload = self._cast.workloads[visit.workload]
                    load = await workload.measure(stage, parameters_of(variant), options.seconds)
                    await trio.sleep(LAST_SAMPLES_S)
                    _check_protection(running, visit, generation)
        except trio.TooSlowError as error:
            raise MeasurementError(f"not done within {options.seconds + _CELL_LIMIT_S:g} s") from error
        window = stage.take_window()
        # The kill has cut the link.
        is_linked = visit.workload != TAKEOVER
        return Cell(
            variant=variant,
            round=visit.round,
            at=at,
            seconds=round(window.seconds, 3),
            load=load,
            checkpoints=columns(running.observer.samples, window),
            cores=window.cores,
            memory_mib=window.memory_mib,
            link_ms=running.link_round_trip_ms() if is_linked else None,
            takeover_ms=takeover.after_ms,
            lost=takeover.lost,
        )

    def _note(self, cell: Cell, visit: Visit, settled: int, later: Sequence[Visit]) -> None:
        self._file.add(cell)
        self.failed += cell.error is not None
        self.lost += cell.lost or 0
        left = [replace(visit, variants=visit.variants[settled:]), *later]
        # This visit's guest has booted already.
        remaining_s = self._outlook.remaining_s(later) + self._outlook.cells_s(left[:1])
        self._view.cell(cell, remaining_s)


def _generation(running: Hosts) -> int | None:
    said = running.observer.primary_said
    return said.generation if said is not None else None


def _check_protection(running: Hosts, visit: Visit, generation: int | None) -> None:
    """Raises MeasurementError if the primary has run alone since its `generation`: what was measured then is
    no mode's cost."""
    said = running.observer.primary_said
    if visit.setting.protected and (said is None or not said.protected or said.generation != generation):
        raise MeasurementError("protection was lost while it was measured; the daemons' logs say why")


def columns(samples: Sequence[Sample], window: Window) -> dict[str, tuple[float | None, ...]]:
    """The checkpoints within `window`, a column for each of their fields."""
    rows = [sample.model_dump() for sample in samples if window.began <= sample.at <= window.ended]
    return {name: tuple(row[name] for row in rows) for name in rows[0]} if rows else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
