"""The top of the command line: every expected error becomes one line and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from remuslike.cli.bench import bench
from remuslike.cli.daemons import primary, secondary, status
from remuslike.cli.image import image
from remuslike.cli.lab import lab
from remuslike.demo.command import demo_command
from remuslike.engine.effects import ExitStatus
from remuslike.errors import UsageError, expected_errors


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="remuslike")
def cli() -> None:
    """Transparent fault tolerance for stock QEMU guests, in the manner of Remus."""


cli.add_command(primary)
cli.add_command(secondary)
cli.add_command(status)
cli.add_command(image)
cli.add_command(lab)
cli.add_command(demo_command)
cli.add_command(bench)


def main() -> None:
    """Run the command line; a defect of ours keeps its traceback, an expected error is one line."""
    try:
        cli()
    except Exception as error:
        leaves = list(_leaves(error))
        if not all(isinstance(leaf, expected_errors()) for leaf in leaves):
            raise
        for message in dict.fromkeys(str(leaf) for leaf in leaves):
            click.echo(f"remuslike: {message}", err=True)
        usage = all(isinstance(leaf, UsageError) for leaf in leaves)
        sys.exit(ExitStatus.USAGE if usage else ExitStatus.FAILED)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
