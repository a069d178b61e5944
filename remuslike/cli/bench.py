"""`remuslike bench`: measures what protection costs, as ratios within one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.group()
def bench() -> None:
    """Measure what holding output costs, as ratios within one run."""


@bench.command()
@click.option(
    "--seconds",
    type=click.IntRange(1, 600),
    default=2,
    show_default=True,
    help="Of traffic for one sample.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, help="Samples of each setting."
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["tcp", "udp", "seal"]),
    help="Measure only this; may be repeated.  [default: all]",
)
@click.option("--qemu/--no-qemu", default=True, show_default=True, help="Measure a real guest, too.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all samples, the figures and the machine's description here.",
)
def net(*, parts: tuple[str, ...], **options: Any) -> None:
    """Compare held taps with a bare one: TCP both ways, small UDP frames, seal and release.

    The guests are real ones, under QEMU, and namespaces behind taps, whose TCP is this kernel's. A hold that
    this kernel can't do is skipped, and the reason said; `remuslike lab run -- remuslike bench net` measures
    the plug on any machine.
    """
    # Late, so that other commands don't wait for what only the benchmark needs.
    from rich.console import Console

    from remuslike.bench.net import PARTS, NetOptions, run_net_bench

    run_net_bench(NetOptions(parts=parts or PARTS, **options), Console())


@bench.command()
@click.option(
    "--seconds",
    type=click.IntRange(1, 600),
    default=2,
    show_default=True,
    help="Of requests for one sample.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, help="Samples of each setting."
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["nbd", "connections", "seal", "guest"]),
    help="Measure only this; may be repeated.  [default: all]",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Guests' disks are files here.  [default: where temporary files are]",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all samples, the figures and the machine's description here.",
)
def disk(*, parts: tuple[str, ...], **options: Any) -> None:
    """Compare disks whose writes are held with nbdkit's memory and with QEMU's own raw files.

    fio drives them, from here and from inside real guests; what a checkpoint's seal takes is timed, too.
    """
    from rich.console import Console

    from remuslike.bench.disk import PARTS, DiskOptions, run_disk_bench

    run_disk_bench(DiskOptions(parts=parts or PARTS, **options), Console())
