"""`remuslike lab`: runs commands under Debian's kernel."""

from __future__ import annotations

import sys

import click

from remuslike.lab.image import build_lab_image
from remuslike.lab.lab import Lab
from remuslike.lab.wire import Kind

SIGNAL_STATUS = 128
"""Added to the number of the signal that ended a command, as the shells do."""

TIMEOUT_LIMIT_S = 86_400
"""A day: nobody looks at a lab for longer."""


@click.group()
def lab() -> None:
    """Run commands under Debian's kernel, on this machine's own files."""


@lab.command()
@click.option("--refresh", is_flag=True, help="Take the archive's newest kernel.")
def build(*, refresh: bool) -> None:
    """Fetch the lab's kernel, unless it is there."""
    build_lab_image(refresh=refresh, progress=_tell)


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--timeout-s",
    type=click.IntRange(1, TIMEOUT_LIMIT_S),
    default=600,
    show_default=True,
    help="Kill COMMAND, and end, after so many seconds.",
)
@click.argument("command", nargs=-1, required=True)
def run(command: tuple[str, ...], *, timeout_s: int) -> None:
    """Boot the lab, run COMMAND in it as root, and end with its output and exit status.

    It sees this machine's files, in this directory and with this environment; what it writes is gone when it
    ends. Put -- before it. A lab that fails ends with status 1 and says so.
    """
    with Lab.boot(progress=_tell) as booted:
        running = booted.start(command, timeout_s)
        for kind, written in running:
            stream = sys.stdout if kind is Kind.OUTPUT else sys.stderr
            stream.buffer.write(written)
            stream.buffer.flush()
    assert running.status is not None
    sys.exit(running.status if running.status >= 0 else SIGNAL_STATUS - running.status)


def _tell(line: str) -> None:
    click.echo(line, err=True)
