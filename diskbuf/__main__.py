"""`python -m diskbuf`: serve disks whose writes are released on a timer, and look after their journals."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote

import click
import trio

from diskbuf.buffer import DiskBuffer
from diskbuf.errors import DiskbufError, TlsFileError
from diskbuf.journal import Journal, recover_journal
from diskbuf.recovery import describe_journal
from diskbuf.server import serve_nbd_tcp, serve_nbd_unix
from diskbuf.service import Disk, Service
from diskbuf.sizes import format_size, parse_size
from diskbuf.uri import KINDS, open_store

JOURNAL_BYTES = 64 << 20
"""Where a journal starts: a second of writes at 64 MB/s. It grows if an epoch needs more."""
NBD_PORT = 10809
_PROGRESS_S = 1.0
_SWITCH_INTERVAL_S = 1e-4
"""How long a release keeps the interpreter from a client's thread, which needs it for a tenth of that; with
Python's own 5 ms a client of small writes is a twentieth slower."""


def _size(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    """Bytes, with a suffix: 64M."""
    try:
        size_bytes = parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if size_bytes == 0:
        raise click.BadParameter("0 bytes hold nothing")
    return size_bytes


def _interval(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """Milliseconds; neither "nan" nor "inf", which are numbers, too."""
    if value is not None and not 0 <= value < math.inf:
        raise click.BadParameter(f"{value:g} is no time to wait; give milliseconds, 0 to release at once")
    return value


def _address(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> tuple[str, int] | None:
    """HOST:PORT, [IPV6]:PORT or HOST."""
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or value.endswith("]"):
        host, port = value, str(NBD_PORT)
    elif ":" in host and not host.startswith("["):
        raise click.BadParameter(f"{value!r} has several colons; write an IPv6 address as [ADDRESS]:PORT")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise click.BadParameter(f"{port!r} is no port; write HOST:PORT")
    host = host.strip("[]")
    if not host:
        raise click.BadParameter(f"{value!r} names no host; 0.0.0.0 and [::] are all of this machine's")
    return host, int(port)


_KINDS = "\n".join(("\b", "STORE is one of", *(f"    {kind}" for kind in KINDS)))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Serve disks over NBD whose writes wait and get to their stores in one piece, at intervals."""


@cli.command(epilog=_KINDS)
@click.option("--store", "stores", metavar="STORE", multiple=True, required=True, help="What to serve.")
@click.option("--export", "exports", metavar="NAME", multiple=True, help="Its name for clients; else empty.")
@click.option(
    "--journal", "journals", metavar="FILE", type=Path, multiple=True, help="Its journal; made if missing."
)
@click.option("--socket", metavar="PATH", type=Path, help="Serve on a unix socket.")
@click.option(
    "--tcp", metavar="HOST[:PORT]", callback=_address, help=f"Serve on TCP; port {NBD_PORT} if none."
)
@click.option("--tls-certificate", metavar="FILE", type=Path, help="On TCP: the certificate chain (PEM).")
@click.option("--tls-key", metavar="FILE", type=Path, help="Its key, if that isn't in the same file.")
@click.option("--tls-ca", metavar="FILE", type=Path, help="Serve only clients with a certificate of these.")
@click.option("--plaintext", is_flag=True, help="On TCP without TLS: all on the way can read and change it.")
@click.option("--read-only", is_flag=True, help="Accept no writes.")
@click.option(
    "--limit",
    "limit_bytes",
    metavar="SIZE",
    callback=_size,
    default="256M",
    show_default=True,
    help="Memory for held writes, per store: half full releases early, full slows clients.",
)
@click.option(
    "--release-every", "every_ms", metavar="MS", type=float, callback=_interval, help="0 releases at once."
)
def serve(
    stores: Sequence[str],
    exports: Sequence[str],
    journals: Sequence[Path],
    socket: Path | None,
    tcp: tuple[str, int] | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_ca: Path | None,
    plaintext: bool,
    read_only: bool,
    limit_bytes: int,
    every_ms: float | None,
) -> None:
    """Serve STORE, and release what clients write every MS milliseconds, until interrupted.

    Clients see their own writes at once. The store changes at each release only, from one instant of the disk
    to the next: a crash of this process loses at most what was written since the last release, flushed or
    not. With a journal the same holds if the whole machine is lost, at any moment; without one, a crash in
    the midst of a release leaves a mixture.

    Ended by SIGINT or SIGTERM, it first releases everything; a second signal ends it at once, and what is
    held is lost. At the end, and on SIGUSR1, statistics are written as a line of JSON.

    To serve several stores, repeat --store, --export and --journal, in the same order.
    """
    _check_lists(stores, exports, journals)
    if every_ms is None and not read_only:
        raise click.UsageError("Missing option '--release-every'; 0 releases at once.")
    if read_only and journals:
        raise click.UsageError("A journal is for writes; '--journal' doesn't go with '--read-only'.")
    place = _place(socket, tcp, tls_certificate, tls_key, tls_ca, plaintext)
    tls = _tls(tls_certificate, tls_key, tls_ca) if tls_certificate else None
    with ExitStack() as stack:
        disks = [
            _open_disk(stack, uri, export or "", journal, limit_bytes, read_only)
            for uri, export, journal in zip_longest(stores, exports, journals)
        ]
        buffers = {disk.export: disk.buffer for disk in disks}
        service = Service(disks, partial(_listen, place, buffers, tls), (every_ms or 0) / 1e3, click.echo)
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # as long as there is nothing to tell
        trio.run(_run, service)


def _check_lists(stores: Sequence[str], exports: Sequence[str], journals: Sequence[Path]) -> None:
    for option, values in (("--export", exports), ("--journal", journals)):
        if values and len(values) != len(stores):
            raise click.UsageError(
                f"{len(stores)} of '--store' but {len(values)} of '{option}'; give one for each, in order."
            )
        if len(set(values)) < len(values):
            raise click.UsageError(f"'{option}' is given twice the same value; each store needs its own.")
    if len(stores) > 1 and not exports:
        raise click.UsageError("Several stores need names; give each an '--export'.")


def _place(
    socket: Path | None,
    tcp: tuple[str, int] | None,
    certificate: Path | None,
    key: Path | None,
    authority: Path | None,
    plaintext: bool,
) -> Path | tuple[str, int]:
    """Where to serve; what doesn't go together is refused."""
    place = socket or tcp
    if place is None or (socket and tcp):
        raise click.UsageError("Give one of '--socket' and '--tcp'.")
    if socket and (certificate or key or authority or plaintext):
        raise click.UsageError("'--tls-…' and '--plaintext' are for '--tcp'; a unix socket is for this user.")
    if (key or authority) and not certificate:
        raise click.UsageError("'--tls-key' and '--tls-ca' need '--tls-certificate'.")
    if tcp and (certificate is None) != plaintext:
        raise click.UsageError("'--tcp' needs either '--tls-certificate' or '--plaintext'.")
    return place


def _tls(certificate: Path, key: Path | None, authority: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        raise TlsFileError(
            f"--tls-certificate {certificate}, --tls-key {key or certificate}: {error};"
            " give a PEM certificate and the key that belongs to it"
        ) from error
    if authority:
        try:
            context.load_verify_locations(authority)
        except OSError as error:
            raise TlsFileError(f"--tls-ca {authority}: {error}; give PEM certificates") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _open_disk(
    stack: ExitStack, uri: str, export: str, journal_path: Path | None, limit_bytes: int, read_only: bool
) -> Disk:
    store = open_store(uri, read_only=read_only)
    stack.callback(store.close)
    journal = None
    if journal_path is not None:
        journal = Journal.open(
            journal_path, store, capacity_bytes=JOURNAL_BYTES, on_progress=_progress_of(journal_path)
        )
        stack.callback(journal.close)
        if journal.recovered.records:
            _tell(f"{journal_path}: {journal.recovered.records} releases recovered into {store.uri}")
    buffer = DiskBuffer(store, limit_bytes=limit_bytes, journal=journal, sync_releases=journal is None)
    return Disk(export, store, buffer)


async def _run(service: Service) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) as signals:
        await service.run(signals, _let_signals_kill)
    _let_signals_kill()  # the receiver has restored what was before it
    await service.finish()


def _let_signals_kill() -> None:
    """From now on another SIGINT or SIGTERM ends the process, whatever a store is waiting for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


async def _listen(
    place: Path | tuple[str, int],
    buffers: Mapping[str, DiskBuffer],
    tls: ssl.SSLContext | None,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Serve at a unix socket or a TCP address, and say what a client can connect to."""
    async with trio.open_nursery() as nursery:
        if isinstance(place, Path):
            await nursery.start(serve_nbd_unix, place, buffers)
            uris = [f"nbd+unix:///{quote(export)}?socket={quote(os.fsencode(place))}" for export in buffers]
        else:
            addresses = await nursery.start(partial(serve_nbd_tcp, *place, buffers, tls=tls))
            scheme = "nbds" if tls else "nbd"
            uris = [
                f"{scheme}://{_bracketed(host)}:{port}/{quote(export)}"
                for export in buffers
                for host, port in addresses
            ]
        for uri in uris:
            _tell(f"serving {uri}")
        task_status.started()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@cli.group()
def journal() -> None:
    """Look at journals, and recover stores from them."""


@journal.command()
@click.argument("file", type=Path)
@click.option("--json", "as_json", is_flag=True, help="A line of JSON instead.")
def show(file: Path, as_json: bool) -> None:
    """Show which store FILE belongs to, and the releases in it that the store may not have yet."""
    found = describe_journal(file)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    click.echo(f"store     {found.store_uri}, {found.store_bytes} bytes")
    click.echo(f"journal   {found.journal_id}{', in use' if found.in_use else ''}")
    click.echo(f"used      {found.used_bytes} of {found.capacity_bytes} bytes")
    click.echo(f"releases  {len(found.records)}{', and a torn one behind, which counts not' * found.torn}")
    for record in found.records:
        click.echo(
            f"  epoch {record.epoch}: {record.extents} extents, {record.data_bytes} bytes of data,"
            f" {record.record_bytes} in the journal at {record.position}"
        )


@journal.command(epilog=_KINDS)
@click.argument("file", type=Path)
@click.option("--store", "uri", metavar="STORE", required=True, help="The store that FILE belongs to.")
def recover(file: Path, uri: str) -> None:
    """Bring STORE to the last whole release in FILE, and empty FILE. `serve` does so by itself.

    It can be interrupted, and repeated.
    """
    store = open_store(uri)
    try:
        done = recover_journal(file, store, on_progress=_progress_of(file))
    finally:
        store.close()
    if done.records:
        size = format_size(done.bytes)
        click.echo(f"{done.records} releases ({size}) recovered, the last of epoch {done.epoch}")
    else:
        click.echo("nothing to recover: the store has it all")


def _progress_of(journal_path: Path) -> Callable[[int, int], None]:
    """Says how far a recovery is, as soon as it takes longer than a moment."""
    next_s = time.monotonic() + _PROGRESS_S

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + _PROGRESS_S
            _tell(f"{journal_path}: {done_bytes} of {total_bytes} bytes recovered")

    return progress


def _tell(message: str) -> None:
    click.echo(f"diskbuf: {message}", err=True)


def main() -> None:
    """Run the command line; an expected error is one line and status 1, a defect keeps its traceback."""
    logging.basicConfig(format="diskbuf: %(message)s", level=logging.INFO)
    try:
        cli(prog_name="python -m diskbuf")
    except Exception as error:
        leaves = list(_leaves(error))
        if not all(isinstance(leaf, DiskbufError) for leaf in leaves):
            raise
        for leaf in leaves:
            _tell(str(leaf))
        sys.exit(1)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


if __name__ == "__main__":
    main()
