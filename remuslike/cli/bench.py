"""`remuslike bench`: measures what protection costs, as ratios within one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click

from remuslike.cli.bench_report import compare, report

_Option: TypeAlias = Callable[[Callable[..., None]], Callable[..., None]]


_json = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all samples, the figures and the machine's description here.",
)


def _seconds(least: int, default: int, of: str) -> _Option:
    kind = click.IntRange(least, 600)
    return click.option(
        "--seconds", type=kind, default=default, show_default=True, help=f"Of {of} for one sample."
    )


def _repeat(default: int) -> _Option:
    kind = click.IntRange(1, 1000)
    return click.option(
        "--repeat", type=kind, default=default, show_default=True, help="Samples of each setting."
    )


def _part(*names: str) -> _Option:
    text = "Measure only this; may be repeated.  [default: all]"
    return click.option("--part", "parts", multiple=True, type=click.Choice(names), help=text)


@click.group()
def bench() -> None:
    """Measure what holding output costs, as ratios within one run."""


@bench.command()
@_seconds(1, 2, "traffic")
@_repeat(5)
@_part("tcp", "udp", "seal", "notify")
@click.option("--qemu/--no-qemu", default=True, show_default=True, help="Measure a real guest, too.")
@_json
@click.pass_context
def net(context: click.Context, /, *, parts: tuple[str, ...], **options: Any) -> None:
    """Compare held taps with a bare one: TCP both ways, small UDP frames, seal and release,
    and what it costs to be told of each epoch's first output.

    The guests are real ones, under QEMU, and namespaces behind taps, whose TCP is this kernel's. A hold that
    this kernel can't do is skipped, and the reason said; `remuslike lab run -- remuslike bench net` measures
    the plug on any machine.
    """
    # Late, so that other commands don't wait for what only the benchmark needs.
    from rich.console import Console

    from remuslike.bench.net import PARTS, NetOptions, run_net_bench

    context.exit(run_net_bench(NetOptions(parts=parts or PARTS, **options), Console()))


@bench.command()
@_seconds(2, 5, "checkpoints")
@_repeat(3)
@click.option(
    "--pages",
    type=click.IntRange(1, 100_000),
    default=500,
    show_default=True,
    help="That the guest writes again and again.",
)
@click.option(
    "--epoch-ms",
    type=click.FloatRange(1, 10_000),
    default=25,
    show_default=True,
    help="Between two checkpoints.",
)
@click.option(
    "--guest",
    "guests",
    multiple=True,
    metavar="MACHINE:MIB",
    help="Measure this guest; may be repeated.  [default: q35:256 microvm:256 q35:4096]",
)
@_json
@click.pass_context
def pause(context: click.Context, /, *, guests: tuple[str, ...], **options: Any) -> None:
    """Measure how long a checkpoint stops a guest, part by part, beside QEMU's own stop, save and continue.

    Real guests under real daemons; each round starts all of them anew, in turns.
    """
    from rich.console import Console

    from remuslike.bench.pause import DEFAULT_SUBJECTS, PauseOptions, parse_subject, run_pause_bench

    subjects = tuple(map(parse_subject, guests)) or DEFAULT_SUBJECTS
    context.exit(run_pause_bench(PauseOptions(subjects=subjects, **options), Console()))


@bench.command()
@_seconds(1, 2, "requests")
@_repeat(5)
@_part("nbd", "connections", "seal", "guest")
@click.option(
    "--disk-mib",
    type=click.IntRange(256, 4096),  # so much of it the guests' shorter jobs go over
    default=1024,
    show_default=True,
    help="The size of each disk.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Guests' disks are files here.  [default: where temporary files are]",
)
@_json
@click.pass_context
def disk(context: click.Context, /, *, parts: tuple[str, ...], **options: Any) -> None:
    """Compare disks whose writes are held with nbdkit's memory and with QEMU's own raw files.

    fio drives them, from here and from inside real guests; what a checkpoint's seal takes is timed, too.
    """
    from rich.console import Console

    from remuslike.bench.disk import PARTS, DiskOptions, run_disk_bench

    context.exit(run_disk_bench(DiskOptions(parts=parts or PARTS, **options), Console()))


@bench.command()
@click.option("--modes", default="all", help="Of unprotected, epoch, event-tap, adaptive.  [default: all]")
@click.option(
    "--workloads",
    default="all",
    help="NAME or NAME:PARAMETER=NUMBER[:...], such as redis:clients=16 or, of a synthetic guest,"
    " frames:frames_s=100.  [default: all, in all variants]",
)
@click.option("--epoch-ms", default="25", show_default=True, help="Epoch lengths of the mode epoch.")
@click.option("--guest", default="q35", show_default=True, help="q35, microvm or synthetic.")
@click.option("--seconds", type=int, default=5, show_default=True, help="Of load in each cell.")
@click.option("--repeat", type=int, default=3, show_default=True, help="Rounds.")
@click.option(
    "--kills", type=int, default=0, show_default=True, help="Hosts that die in each protected setting."
)
@click.option("--memory-mib", type=int, default=512, show_default=True, help="Of the guest.")
@click.option("--vcpus", type=int, default=1, show_default=True, help="Of the guest.")
@click.option(
    "--detect-ms",
    type=float,
    default=100,
    show_default=True,
    help="Silence that means death, where hosts die.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("remuslike-bench.jsonl"),
    show_default=True,
    help="The results, a cell a line. If they are there the run goes on with them.",
)
@click.option("--force", is_flag=True, help="Go on with results of another commit or machine, too.")
@click.pass_context
def run(
    context: click.Context, /, *, modes: str, workloads: str, epoch_ms: str, guest: str, **options: Any
) -> None:
    """Run guests under each mode and workload, and write down all that was seen.

    Every mode takes its turn in each round, so that what drifts on the machine hits all alike; the
    unprotected guest is always among them. An interrupted run goes on with the same command.
    """
    from rich.console import Console

    from remuslike.bench.options import RunOptions, parse_epochs, parse_guest, parse_modes, parse_workloads
    from remuslike.bench.run import run_bench
    from remuslike.bench.workloads import workloads_of

    kind = parse_guest(guest)
    chosen = RunOptions(
        modes=parse_modes(modes),
        selection=parse_workloads(workloads, workloads_of(kind)),
        epoch_ms=parse_epochs(epoch_ms),
        guest=kind,
        **options,
    )
    context.exit(run_bench(chosen, Console()))


bench.add_command(report)
bench.add_command(compare)
