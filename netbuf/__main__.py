"""`python -m netbuf`: hold a running guest's frames on a timer, see what is held, clean up after a crash."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import click
import trio

from netbuf.choice import Hold, Wish, choose, make_hold
from netbuf.errors import NetbufError
from netbuf.ledger import Backend
from netbuf.leftovers import attach, clean, guests_of, is_hold, is_locked, tap_holds
from netbuf.plugqueue import PlugQueue
from netbuf.redirect import Hook, Link, Network
from netbuf.sizing import limit_bytes


@dataclass(frozen=True, slots=True)
class HoldStatus:
    """One hold in the current network namespace. A figure is None if only the holder knows it, which is so of
    what a tap hold has in its own memory, or if the interface is no plug any more."""

    hold: str
    backend: Backend
    about: str
    in_use: bool
    waiting_items: int | None = None
    waiting_bytes: int | None = None
    refused_items: int | None = None
    left_items: int | None = None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Hold what a guest sends to the network, and let it out in bursts."""


@cli.command()
@click.option("--tap", required=True, help="The guest's tap, as the running QEMU has it.")
@click.option(
    "--every", "every_ms", required=True, type=click.FloatRange(1, 3_600_000), help="Let out every MS."
)
@click.option("--bridge", help="The LAN; the bridge in which the tap is, unless given.")
@click.option(
    "--link-mbit", default=1000, show_default=True, type=click.IntRange(1, 1_000_000), help="Link rate."
)
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
    try:
        made = make_hold(choice.backend, attached, attached.bridge, limit, depth=1)
        click.echo(f"{tap}: held by {choice.backend} ({choice.reason}), of {attached.bridge}", err=True)
        try:
            trio.run(_release_on_a_timer, made, every_ms / 1e3)
        finally:
            made.close()
            click.echo(json.dumps(asdict(made.statistics())))
    finally:
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
    """One line of JSON for each hold here: whether somebody holds by it, what waits in it, what was lost.

    A tap hold keeps its frames in the memory of its process, so how many wait there is null: that process
    tells it (the daemons in their status, `hold` at its end).
    """
    network = Network()
    try:
        for link in network.links():
            if is_hold(link):
                click.echo(json.dumps(asdict(_plug_status(link))))
        for guest, by in tap_holds(network):
            click.echo(json.dumps(asdict(_tap_status(network, guest, by))))
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


def _plug_status(plug: Link) -> HoldStatus:
    in_use = any(is_locked(guest) for guest in guests_of(plug))
    status = HoldStatus(plug.name, Backend.PLUG, plug.alias, in_use)
    queue = PlugQueue(plug.name, plug.index)
    try:
        waiting, passage = queue.waiting(), queue.passage()
    except NetbufError:
        return status
    finally:
        queue.close()
    return replace(
        status,
        waiting_items=waiting.items,
        waiting_bytes=waiting.size_bytes,
        refused_items=waiting.dropped_items,
        left_items=passage.left_items,
    )


def _tap_status(network: Network, guest: Link, by: Link) -> HoldStatus:
    """The TAP is there as long as its process is, so it is in use."""
    refused = None
    with suppress(NetbufError):
        refused = network.undelivered(guest.index, Hook.INGRESS).items
    about = f"netbuf: holds what {guest.name} sends"
    return HoldStatus(by.name, Backend.TAP, about, in_use=True, refused_items=refused)


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
