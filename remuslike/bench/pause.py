"""`remuslike bench pause`: how long a checkpoint stops a real guest, part by part.

Real guests under real daemons (both hosts on this machine) write a set number of pages over and over. Each
round starts every guest anew, one after the other, and takes two series of it while it is protected and
busy: pauses of checkpoints, and between checkpoints QEMU's own `stop`, save of its devices, and `cont`, with
nothing captured. The latter is the floor of any checkpoint that asks QEMU for these three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

import trio
from rich.console import Console

from remuslike.bench.environment import record_environment
from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError, MeasurementError
from remuslike.bench.figures import Measure, Of, Report, Sample, Wanted
from remuslike.bench.output import check_json_path, check_root, check_tools, take_samples
from remuslike.bench.pair import ProtectedGuest, guest_files, protected_guest
from remuslike.bench.plan import in_turn
from remuslike.bench.view import View
from remuslike.demo.messages import Sample as Checkpoint
from remuslike.demo.options import MACHINES, DemoOptions
from remuslike.demo.plan import GuestFiles
from remuslike.demo.runner import TOOLS

PARTS = ("stop", "seal", "scan", "copy", "devices", "resume", "gap")
"""Of a pause: devices go beside scan and copy; `gap` is what passes between the parts."""

PAGES, EPOCH_MS = 500, 25.0
"""For these there are limits."""

SETTLE_S = 1.5
OWN_PAUSES = 60
_CHECKPOINTS_MIN = 20
_DETECT_MS = 2000  # no host dies here, however busy the machine is

# Writes one byte of each page of a string, over and over. A counter, so that no page stays as it was.
_WRITER = (
    '$s = "\\1" x ($ARGV[0] * 4096); $c = 0;'
    "for (;;) { $c = ($c + 1) & 255;"
    "for ($i = 0; $i < length $s; $i += 4096) { vec($s, $i, 8) = $c } }"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A guest to measure."""

    machine: str
    memory_mib: int

    @property
    def name(self) -> str:
        return f"{self.machine}, {self.memory_mib} MiB"


Q35, MICROVM, LARGE = Subject("q35", 256), Subject("microvm", 256), Subject("q35", 4096)
DEFAULT_SUBJECTS = (Q35, MICROVM, LARGE)


def parse_subject(text: str) -> Subject:
    """MACHINE:MIB. Raises BenchOptionError."""
    machine, _, memory = text.partition(":")
    if machine not in MACHINES or not memory.isdecimal() or not 128 <= int(memory) <= 65536:
        raise BenchOptionError(
            f"--guest {text}: give MACHINE:MIB, such as q35:256, with a machine of {', '.join(MACHINES)}"
        )
    return Subject(machine, int(memory))


@dataclass(frozen=True, slots=True)
class PauseOptions:
    """One invocation: `repeat` rounds; in each, `seconds` of checkpoints of every guest of `subjects`, which
    writes `pages` pages again and again."""

    seconds: int = 5
    repeat: int = 3
    pages: int = PAGES
    epoch_ms: float = EPOCH_MS
    subjects: tuple[Subject, ...] = DEFAULT_SUBJECTS
    json_path: Path | None = None

    def check(self) -> None:
        """Raises BenchOptionError."""
        check_json_path(self.json_path)
        for subject in self.subjects:
            if self.pages * 4096 > subject.memory_mib << 18:  # a quarter
                raise BenchOptionError(
                    f"--pages {self.pages} are over a quarter of {subject.name}; give fewer, or more memory"
                )


def measures(options: PauseOptions) -> list[Measure]:
    """What is measured; limits are set where the options are those they were set for."""
    usual = (options.pages, options.epoch_ms) == (PAGES, EPOCH_MS)
    limits = {Q35.name: 4.5, MICROVM.name: 3.3} if usual else {}
    found = [
        Measure(
            "pause",
            f"pause, {options.pages} pages",
            "ms",
            wanted={name: Wanted(Of.MEDIAN, at_most=limit) for name, limit in limits.items()},
        ),
        Measure("pause_p99", "... its 99th percentile", "ms"),
        *(Measure(part, f"... {part}", "ms") for part in PARTS),
        Measure("own", "QEMU alone", "ms"),
    ]
    found += [
        Measure(f"over_own {subject.name}", f"pause over QEMU alone, {subject.name}", "ms", "QEMU alone")
        for subject in options.subjects
    ]
    if {Q35, LARGE} <= set(options.subjects):
        wanted = {LARGE.name: Wanted(Of.RATIO, at_most=1.3)} if usual else {}
        found.append(Measure("memory", "pause and the size of RAM", "ms", Q35.name, wanted))
    return [
        *found,
        Measure("dirty", "dirty pages a checkpoint", "pages", counted=True),
        Measure("rate", "checkpoints", "a second"),
        Measure("commit", "from capture to acknowledgement", "ms"),
        Measure("wire", "RAM bytes on the wire over dirty bytes", "", counted=True),
    ]


def to_samples(
    subject: Subject, number: int, checkpoints: Sequence[Checkpoint], own_ms: Sequence[float]
) -> list[Sample]:
    """The values of one round of one guest. Raises MeasurementError where there are too few of them."""
    if len(checkpoints) < _CHECKPOINTS_MIN or not own_ms:
        raise MeasurementError(
            f"{subject.name}: {len(checkpoints)} checkpoints are too few; give more --seconds"
        )
    pauses = [checkpoint.pause_ms for checkpoint in checkpoints]
    pause = median(pauses)
    own = median(own_ms)
    values = {
        "pause": pause,
        "pause_p99": quantiles(pauses, n=100)[98],
        **{part: median(getattr(each, f"{part}_ms") for each in checkpoints) for part in PARTS},
        "own": own,
        "dirty": median(checkpoint.dirty_pages for checkpoint in checkpoints),
        "rate": 1 / median(later.at - sooner.at for sooner, later in pairwise(checkpoints)),
        "commit": median(each.commit_ms for each in checkpoints if each.commit_ms is not None),
        "wire": sum(each.wire_bytes for each in checkpoints) / sum(each.raw_bytes for each in checkpoints),
    }
    samples = [Sample(measure, subject.name, number, value) for measure, value in values.items()]
    samples.append(Sample(f"over_own {subject.name}", "QEMU alone", number, own))
    samples.append(Sample(f"over_own {subject.name}", "protected", number, pause))
    if subject in (Q35, LARGE):
        samples.append(Sample("memory", subject.name, number, pause))
    return samples


async def _measure(subject: Subject, options: PauseOptions, files: GuestFiles, number: int) -> list[Sample]:
    settings = DemoOptions(
        seed=0,
        machine=subject.machine,
        memory_mib=subject.memory_mib,
        epoch_ms=options.epoch_ms,
        detect_ms=_DETECT_MS,
    )
    async with protected_guest(settings, files) as guest:
        await guest.start("perl", "-e", _WRITER, str(options.pages))
        await trio.sleep(SETTLE_S)
        checkpoints, own_ms = await _take(guest, options)
    return to_samples(subject, number, checkpoints, own_ms)


async def _take(guest: ProtectedGuest, options: PauseOptions) -> tuple[list[Checkpoint], list[float]]:
    checkpoints = await guest.samples(options.seconds / 2)
    own_ms = await guest.own_pauses(OWN_PAUSES)
    return [*checkpoints, *await guest.samples(options.seconds / 2)], own_ms


def run_pause_bench(options: PauseOptions, console: Console) -> int:
    """Measure, and report on `console` and in `options.json_path`.

    Returns the exit status, see `take_samples`. Raises BenchError, or what starting the daemons does;
    whatever happens, no process or namespace is left.
    """
    options.check()
    check_root()
    check_tools(TOOLS)
    environment = record_environment()
    if environment.emulated:
        raise BenchEnvironmentError("this processor is emulated already: a guest would not boot in time")
    files = guest_files()
    view = View(console, measures(options))
    samples: list[Sample] = []

    async def measure() -> None:
        for number in range(1, options.repeat + 1):
            for subject in in_turn(options.subjects, number):
                taken = await _measure(subject, options, files, number)
                samples.extend(taken)
                view.say(_said(subject, taken, options.repeat))

    report = Report(
        benchmark="pause",
        environment=asdict(environment),
        options={
            "seconds": options.seconds,
            "repeat": options.repeat,
            "pages": options.pages,
            "epoch_ms": options.epoch_ms,
            "guests": [subject.name for subject in options.subjects],
        },
        measures=measures(options),
        skipped={},
        samples=samples,
        timely=True,
    )
    return take_samples(measure, report, view, options.json_path)


def _said(subject: Subject, taken: Sequence[Sample], rounds: int) -> str:
    """A round of one guest in a line."""
    values = {sample.measure: sample.value for sample in taken}
    return (
        f"round {taken[0].round} of {rounds}: {subject.name}: pause {values['pause']:.2f} ms,"
        f" QEMU alone {values['own']:.2f} ms, {values['dirty']:.0f} pages, {values['rate']:.1f} a second"
    )
