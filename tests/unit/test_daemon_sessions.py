"""Sessions of either side against a peer that breaks the rules, and the passes of a synchronisation."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import trio
from fakes.peers import HEARTBEAT_MS
from trio.testing import memory_stream_pair

from diskbuf import CHUNK_BYTES, DiskBuffer, FileStore
from remuslike.daemon.backup_session import BackupSession
from remuslike.daemon.outputs import Outputs
from remuslike.daemon.payloads import DevicesEncoder, encode_chunk, encode_digests, encode_parts
from remuslike.daemon.primary_session import _PASS_PAGES_SMALL, _PASSES_MAX, PrimarySession
from remuslike.daemon.samples import Samples
from remuslike.engine import events as on
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import Goodbye
from remuslike.engine.ports import PAGE_BYTES, Indices, Pages
from remuslike.errors import PayloadError
from remuslike.guest.running import QemuGuest
from transport import (
    BATCH_PAGES,
    FrameType,
    Link,
    LinkClosed,
    PageEncoder,
    PreparedFrame,
    TransportError,
    prepare_frame,
)

RAM_PAGES = 2 * BATCH_PAGES
CHUNKS = 3
DIGEST_BYTES = 16
Frame = tuple[FrameType, int, Sequence[bytes]]


class ScriptedGuest:
    """A guest that has written what its script says, one entry a pass; then nothing."""

    def __init__(self, page_count: int, passes: Sequence[int]) -> None:
        self.page_count = page_count
        self.passes = list(passes)
        self.tracked = 0

    def start_tracking(self) -> None:
        self.tracked += 1

    async def dirty_pages(self) -> Indices:
        await trio.lowlevel.checkpoint()
        return np.arange(self.passes.pop(0) if self.passes else 0)

    def read_pages(self, indices: Indices) -> Pages:
        return np.zeros((len(indices), PAGE_BYTES), np.uint8)


@pytest.fixture
def disk(tmp_path: Any) -> Any:
    path = tmp_path / "disk"
    path.write_bytes(bytes(CHUNKS * CHUNK_BYTES))
    store = FileStore.open(path)
    yield DiskBuffer(store, limit_bytes=1 << 20)
    store.close()


@pytest.fixture
async def links() -> AsyncIterator[tuple[Link, Link]]:
    ours, theirs = [Link(stream, heartbeat_ms=HEARTBEAT_MS) for stream in memory_stream_pair()]
    yield ours, theirs
    await ours.aclose()
    await theirs.aclose()


def no_hook(_step: str, _epoch: int) -> None:
    """Nobody is killed here."""


class Secondary:
    """A session whose core admits every part of a synchronisation."""

    def __init__(self, link: Link, disk: DiskBuffer) -> None:
        self.posted: list[Any] = []
        self.ram = np.zeros((RAM_PAGES, PAGE_BYTES), np.uint8)
        self.session = BackupSession(link, self.ram, Outputs([], [disk]), self.post, no_hook)

    def post(self, event: Any) -> None:
        self.posted.append(event)
        if isinstance(event, on.SyncPart):
            self.session.admit_sync()


class Primary:
    """A session with a scripted guest."""

    def __init__(self, link: Link, disk: DiskBuffer, passes: Sequence[int] = (), pages: int = 1) -> None:
        self.posted: list[Any] = []
        self.guest = ScriptedGuest(pages, passes)
        self.session = PrimarySession(
            link, cast(QemuGuest, self.guest), Outputs([], [disk]), Samples(), self.posted.append, no_hook
        )


async def ended_by(run: Callable[[], Awaitable[None]], peer: Link, frames: Sequence[Frame]) -> Exception:
    """The one error with which a session ends after these frames; PayloadError, or one of the transport's."""
    caught: list[Exception] = []

    async def watch() -> None:
        try:
            await run()
        except* (PayloadError, TransportError) as group:
            leaves: BaseException = group
            while isinstance(leaves, BaseExceptionGroup):
                (leaves,) = leaves.exceptions
            assert isinstance(leaves, Exception)
            caught.append(leaves)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for kind, epoch, parts in frames:
                await peer.send(kind, epoch, parts)
            # In order, should the frames not have ended it; the peer still takes what it is told.
            assert isinstance(peer._stream, trio.StapledStream)
            await peer._stream.send_eof()
    (error,) = caught
    return error


def devices() -> list[bytes]:
    return DevicesEncoder().encode(b"device state")


def pages(count: int) -> list[bytes]:
    ram = np.ones((count, PAGE_BYTES), np.uint8)
    (payload,) = PageEncoder(RAM_PAGES).encode_full(np.arange(count), ram)
    return [payload]


BEGIN: Frame = (FrameType.EPOCH_BEGIN, 1, [])
END: Frame = (FrameType.EPOCH_END, 1, [encode_parts(1)])
# How many batches of pages, each counted as a full one, are over what may be staged.
TOO_MANY = (2 * RAM_PAGES * PAGE_BYTES + CHUNKS * CHUNK_BYTES) // (BATCH_PAGES * PAGE_BYTES) + 1

TO_SECONDARY: dict[str, tuple[list[Frame], str]] = {
    "a chunk beyond the disk": (
        [(FrameType.SYNC_DISK, 0, encode_chunk(0, CHUNKS, bytes(CHUNK_BYTES)))],
        f"chunk {CHUNKS} lies beyond disk 0",
    ),
    "a chunk far beyond it": (
        [(FrameType.SYNC_DISK, 0, encode_chunk(0, 2**64 - 1, bytes(CHUNK_BYTES)))],
        "lies beyond disk 0",
    ),
    "a chunk of no disk": (
        [(FrameType.SYNC_DISK, 0, encode_chunk(1, 0, bytes(CHUNK_BYTES)))],
        "disk 1 of a guest with 1 buffered disks",
    ),
    "an epoch without end": (
        [BEGIN, *[(FrameType.PAGES, 1, pages(1))] * TOO_MANY],
        "epoch 1 is larger than the guest",
    ),
    "an epoch without device state": (
        [BEGIN, (FrameType.PAGES, 1, pages(1)), END],
        "epoch 1 has no device state",
    ),
    "a farewell of no kind": (
        [(FrameType.GOODBYE, 0, [Goodbye(farewell="adieu", reason="").encode()])],
        "farewell 'adieu': must be one of",
    ),
    **{
        kind.name: ([(kind, 1, [b"something"])], f"sent {kind.name}, which a primary doesn't")
        for kind in (
            FrameType.HELLO,
            FrameType.WELCOME,
            FrameType.REFUSE,
            FrameType.ACKNOWLEDGE,
            FrameType.DISK_DIGESTS,
        )
    },
}


@pytest.mark.parametrize(("frames", "reason"), TO_SECONDARY.values(), ids=TO_SECONDARY)
async def test_a_primary_that_breaks_the_rules_ends_its_session(
    links: tuple[Link, Link], disk: DiskBuffer, frames: list[Frame], reason: str
) -> None:
    secondary = Secondary(links[0], disk)
    error = await ended_by(secondary.session.run, links[1], frames)
    assert isinstance(error, PayloadError)
    assert reason in str(error)
    assert not any(isinstance(event, on.EpochCompleted) for event in secondary.posted)
    assert secondary.session.staged == {}
    assert not secondary.ram.any()


async def test_an_epoch_in_order_is_staged_and_changes_nothing_yet(
    links: tuple[Link, Link], disk: DiskBuffer
) -> None:
    secondary = Secondary(links[0], disk)
    frames: list[Frame] = [BEGIN, (FrameType.DEVICES, 1, devices()), END]
    assert isinstance(await ended_by(secondary.session.run, links[1], frames), LinkClosed)
    assert secondary.posted == [on.EpochBegan(1), on.EpochPart(1), on.EpochCompleted(1, 1)]
    assert secondary.session.staged[1].devices == b"device state"
    assert not secondary.ram.any()


async def test_what_the_core_does_not_admit_is_not_written(
    links: tuple[Link, Link], disk: DiskBuffer
) -> None:
    secondary = Secondary(links[0], disk)
    secondary.session._post = secondary.posted.append
    frames: list[Frame] = [
        (FrameType.SYNC_PAGES, 0, pages(2)),
        (FrameType.SYNC_DISK, 0, encode_chunk(0, 0, b"\1" * CHUNK_BYTES)),
    ]
    assert isinstance(await ended_by(secondary.session.run, links[1], frames), LinkClosed)
    assert secondary.posted == [on.SyncPart(), on.SyncPart()]
    assert not secondary.ram.any()
    assert not any(await disk.read_chunk(0))


async def test_what_it_admits_is(links: tuple[Link, Link], disk: DiskBuffer) -> None:
    secondary = Secondary(links[0], disk)
    frames: list[Frame] = [
        (FrameType.SYNC_PAGES, 0, pages(2)),
        (FrameType.SYNC_DISK, 0, encode_chunk(0, CHUNKS - 1, b"\1" * CHUNK_BYTES)),
    ]
    assert isinstance(await ended_by(secondary.session.run, links[1], frames), LinkClosed)
    assert secondary.ram[:, 0].nonzero()[0].tolist() == [0, 1]
    assert bytes(await disk.read_chunk(CHUNKS - 1)) == b"\1" * CHUNK_BYTES


# --- the primary's --------------------------------------------------------------------------------


def digests(first: int, data: bytes, number: int = 0) -> Frame:
    return FrameType.DISK_DIGESTS, 0, encode_digests(number, first, data)


TO_PRIMARY: dict[str, tuple[list[Frame], str]] = {
    "no digest": ([digests(0, b"")], "digests are none, in part, or more than chunks"),
    "part of a digest": ([digests(0, b"x" * (DIGEST_BYTES + 1))], "digests are none, in part"),
    "too many": ([digests(0, bytes(DIGEST_BYTES * (CHUNKS + 1)))], "digests are none, in part, or more"),
    "one more than all": (
        [digests(0, bytes(DIGEST_BYTES * CHUNKS)), digests(0, bytes(DIGEST_BYTES))],
        "or more than chunks",
    ),
    "of no disk": ([digests(0, bytes(DIGEST_BYTES), 1)], "disk 1 of a guest with 1 buffered disks"),
    **{
        kind.name: ([(kind, 1, [b"something"])], f"sent {kind.name}, which a secondary doesn't")
        for kind in FrameType
        if kind not in (FrameType.ACKNOWLEDGE, FrameType.DISK_DIGESTS, FrameType.GOODBYE, FrameType.HEARTBEAT)
    },
}


@pytest.mark.parametrize(("frames", "reason"), TO_PRIMARY.values(), ids=TO_PRIMARY)
async def test_a_secondary_that_breaks_the_rules_ends_its_session(
    links: tuple[Link, Link], disk: DiskBuffer, frames: list[Frame], reason: str
) -> None:
    primary = Primary(links[0], disk)
    error = await ended_by(primary.session.run, links[1], frames)
    assert isinstance(error, PayloadError)
    assert reason in str(error)
    assert primary.posted == []


@pytest.mark.parametrize("first", [1, CHUNKS, 2**64 - 1])
async def test_digests_of_chunks_beyond_the_disk(
    links: tuple[Link, Link], disk: DiskBuffer, first: int
) -> None:
    primary = Primary(links[0], disk)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(primary.session.synchronise)
            try:
                await primary.session.run()
            except LinkClosed:
                await trio.sleep_forever()  # what it read is still to be judged

    error = await ended_by(both, links[1], [digests(first, bytes(DIGEST_BYTES * CHUNKS))])
    assert isinstance(error, PayloadError)
    assert f"digests of {CHUNKS} chunks from {first} on don't fit disk 0" in str(error)
    assert primary.posted == []


async def test_a_farewell_is_the_secondarys_leaving(links: tuple[Link, Link], disk: DiskBuffer) -> None:
    primary = Primary(links[0], disk)
    goodbye = Goodbye(farewell=Farewell.LEAVING.value, reason="the operator's stop").encode()
    await ended_by(primary.session.run, links[1], [(FrameType.GOODBYE, 0, [goodbye])])
    (left,) = primary.posted
    assert isinstance(left, on.PeerLeft)
    assert left.farewell is Farewell.LEAVING


# --- passes ---------------------------------------------------------------------------------------

LARGE = _PASS_PAGES_SMALL + 1


@pytest.mark.parametrize(
    ("script", "passes", "sent"),
    [
        ([], 1, 0),
        ([_PASS_PAGES_SMALL], 1, _PASS_PAGES_SMALL),
        ([LARGE, LARGE, 7, 9], 3, 2 * LARGE + 7),
        ([LARGE] * (_PASSES_MAX + 3), _PASSES_MAX, _PASSES_MAX * LARGE),
    ],
    ids=["nothing to send", "small at once", "until one was small", "a guest that writes without end"],
)
async def test_passes_are_repeated_until_one_was_small(
    links: tuple[Link, Link], disk: DiskBuffer, script: list[int], passes: int, sent: int
) -> None:
    primary = Primary(links[0], disk, script, pages=LARGE)
    arrived: list[FrameType] = []

    async def listen() -> None:
        while True:
            arrived.append((await links[1].receive()).type)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(primary.session.run)
            nursery.start_soon(listen)
            theirs = await disk.chunk_digests(0, CHUNKS)
            await links[1].send(*digests(0, b"\0" * DIGEST_BYTES + theirs[DIGEST_BYTES:]))
            await primary.session.synchronise()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    (converged,) = primary.posted
    assert isinstance(converged, on.SyncConverged)
    progress = primary.session.sync
    assert (progress.passes, progress.pages_sent, progress.chunks_sent) == (passes, sent, 1)
    assert primary.guest.tracked == 1
    assert arrived[:1] == [FrameType.SYNC_DISK]
    assert set(arrived[1:]) <= {FrameType.SYNC_PAGES}


async def test_what_is_synchronised_is_encoded_and_checksummed_in_threads(
    links: tuple[Link, Link], disk: DiskBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[tuple[FrameType, bool]] = []

    def note(kind: FrameType, epoch: int, parts: Sequence[Any]) -> PreparedFrame:
        loops.append((kind, threading.current_thread() is threading.main_thread()))
        return prepare_frame(kind, epoch, parts)

    monkeypatch.setattr("remuslike.daemon.primary_session.prepare_frame", note)
    monkeypatch.setattr("transport.link.prepare_frame", note)
    primary = Primary(links[0], disk, [7], pages=7)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(primary.session.run)
            nursery.start_soon(links[1].receive)
            theirs = await disk.chunk_digests(0, CHUNKS)
            await links[1].send(*digests(0, b"\0" * DIGEST_BYTES + theirs[DIGEST_BYTES:]))
            await primary.session.synchronise()
            nursery.cancel_scope.cancel()
    assert loops[1:] == [(FrameType.SYNC_DISK, False), (FrameType.SYNC_PAGES, False)]
