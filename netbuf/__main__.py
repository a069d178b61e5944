"""`python -m netbuf`: hold a running guest's frames on a timer, see what is held, clean up after a crash."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass

import click
import trio

from netbuf.choice import Hold, Wish, choose, make_hold
from netbuf.errors import NameClashError, NetbufError
from netbuf.leftovers import HoldLock, attach, clean, is_hold
from netbuf.plugqueue import PlugQueue
from netbuf.redirect import Network
from netbuf.sizing import limit_bytes


@dataclass(frozen=True, slots=True)
class HoldStatus:
    """One plug of this package in the current network namespace; figures are None if it is none any more."""

    hold: str
    about: str
    in_use: bool
    waiting_items: int | None
    waiting_bytes: int | None
    refused_items: int | None
    left_items: int | None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hold what a guest sends to the network, and let it out in bursts."""


@cli.command()
@click.option("--tap", required=True, help="The guest's tap, as the running QEMU has it.")
@click.option("--every", "every_ms", required=True, type=click.FloatRange(min=1), help="Let out every MS.")
@click.option("--bridge", help="The LAN; the bridge in which the tap is, unless given.")
@click.option("--link-mbit", default=1000, show_default=True, type=click.IntRange(min=1), help="Link rate.")
@click.option("--hold", "wish", default="auto", type=click.Choice(["auto", "plug", "tap"]), show_default=True)
def hold(tap: str, every_ms: float, bridge: str | None, link_mbit: int, wish: Wish) -> None:
    """Hold what the guest sends, and let it out every MS milliseconds, until interrupted.

    What is held at the end is dropped, and the guest stays cut off: `clean` puts its tap back.
    """
    limit = limit_bytes(link_mbit, every_ms)
    choice = choose(wish, limit)
    network = Network()
    try:
        attached = attach(network, tap, bridge)
    finally:
        network.close()
    click.echo(f"{tap}: held by {choice.backend} ({choice.reason}), a port of {attached.bridge}", err=True)
    made = make_hold(choice.backend, attached, attached.bridge, limit, depth=1)
    try:
        trio.run(_release_on_a_timer, made, every_ms / 1e3)
    finally:
        made.close()
        click.echo(json.dumps(asdict(made.statistics())))
        click.echo(f"{tap}: cut off; to put it back: python -m netbuf clean", err=True)


async def _release_on_a_timer(made: Hold, every_s: float) -> None:
    """Until SIGINT or SIGTERM; earlier than the timer if the hold gets half full."""
    filling = trio.Event()

    def fills(_level: object) -> None:
        filling.set()

    made.on_pressure(fills)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(made.run)
            nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
            made.hold(1)
            for epoch in itertools.count(1):
                with trio.move_on_after(every_s):
                    await filling.wait()
                filling = trio.Event()
                made.prepare()
                made.seal(epoch)
                await made.release(epoch)


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


@cli.command()
def status() -> None:
    """One line of JSON for each plug: whether somebody holds it, what waits in it, what was lost."""
    network = Network()
    try:
        for link in network.links():
            if is_hold(link):
                click.echo(json.dumps(asdict(_status(link.name, link.index, link.alias))))
    finally:
        network.close()


@cli.command("clean")
def clean_command() -> None:
    """Remove what killed holders have left; what they held is dropped, and taps pass unheld again."""
    network = Network()
    try:
        for line in clean(network):
            click.echo(line)
    finally:
        network.close()


def _status(name: str, index: int, about: str) -> HoldStatus:
    try:
        HoldLock(name).close()
        in_use = False
    except NameClashError:
        in_use = True
    queue = PlugQueue(name, index)
    try:
        waiting, passage = queue.waiting(), queue.passage()
    except NetbufError:
        return HoldStatus(name, about, in_use, None, None, None, None)
    finally:
        queue.close()
    return HoldStatus(
        name, about, in_use, waiting.items, waiting.size_bytes, waiting.dropped_items, passage.left_items
    )


def main() -> None:
    """Run the command line; an expected error is one line and status 1, a defect keeps its traceback."""
    try:
        cli(prog_name="python -m netbuf")
    except Exception as error:
        leaves = list(_leaves(error))
        if not all(isinstance(leaf, NetbufError) for leaf in leaves):
            raise
        for leaf in leaves:
            click.echo(f"netbuf: {leaf}", err=True)
        sys.exit(1)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


if __name__ == "__main__":
    main()
