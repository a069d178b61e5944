"""`remuslike demo`: arguments only."""

from __future__ import annotations

from pathlib import Path
from random import SystemRandom
from typing import Any

import click

from remuslike.config import MODES
from remuslike.demo.options import DEFAULTS, MACHINES, DemoOptions

SEED_CEILING = 1_000_000  # short enough to be typed again


@click.command(name="demo")
@click.option("--mode", type=click.Choice(MODES), default=DEFAULTS.mode, show_default=True)
@click.option(
    "--epoch-ms", type=float, default=DEFAULTS.epoch_ms, show_default=True, help="Between two checkpoints."
)
@click.option(
    "--duration-s",
    type=float,
    default=DEFAULTS.duration_s,
    show_default=True,
    help="Of load; the kill is in its second half.",
)
@click.option("--seed", type=int, help="Decides the moment of the kill and the values.  [default: random]")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write figures here."
)
@click.option("--keep", is_flag=True, help="Keep logs, disks and histories, and say where.")
@click.option("--runs", default=DEFAULTS.runs, show_default=True, help="Repeat with seeds counting up.")
@click.option("--machine", type=click.Choice(MACHINES), default=DEFAULTS.machine, show_default=True)
@click.option("--vcpus", default=DEFAULTS.vcpus, show_default=True)
@click.option("--memory-mib", default=DEFAULTS.memory_mib, show_default=True)
@click.option(
    "--detect-ms", type=float, default=DEFAULTS.detect_ms, show_default=True, help="Silence that means death."
)
@click.option(
    "--connections",
    default=DEFAULTS.connections,
    show_default=True,
    help="Of the client, all open throughout.",
)
@click.option(
    "--pipeline", default=DEFAULTS.pipeline, show_default=True, help="Unanswered writes per connection."
)
@click.option("--payload-bytes", default=DEFAULTS.payload_bytes, show_default=True, help="Of each value.")
@click.option("--accelerator", type=click.Choice(["kvm", "tcg"]), help="[default: what works here]")
@click.pass_context
def demo_command(context: click.Context, /, seed: int | None, **options: Any) -> None:
    """Protect a guest, kill its host under load, and check that nothing acknowledged is lost."""
    # Late, so that a daemon's command line doesn't wait for what only the demo needs.
    from rich.console import Console

    from remuslike.demo.runner import run_demo

    if seed is None:
        seed = SystemRandom().randrange(SEED_CEILING)
    context.exit(run_demo(DemoOptions(seed=seed, **options), Console()))
