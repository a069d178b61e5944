"""Frames of an epoch travel with it through both sessions, and a survivor sends them, whatever they are."""

from __future__ import annotations

import struct
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import trio
from fakes.peers import HEARTBEAT_MS
from trio.testing import memory_stream_pair

from diskbuf import DiskBuffer, FileStore
from netbuf import Hold
from netbuf.tap import VNET_HEADER_BYTES
from remuslike.daemon.backup_session import BackupSession
from remuslike.daemon.outputs import Outputs
from remuslike.daemon.payloads import encode_frames
from remuslike.daemon.primary_session import PendingEpoch, PrimarySession, Released
from remuslike.daemon.retained import RETAINED_EPOCHS_MAX
from remuslike.daemon.samples import Sample, Samples
from remuslike.engine import events as on
from remuslike.engine.ports import PAGE_BYTES, Capture
from remuslike.errors import PayloadError
from remuslike.guest.running import QemuGuest
from transport import Link

GUEST_MAC, CLIENT_MAC = bytes.fromhex("525400770000"), bytes.fromhex("525400770001")
GUEST, CLIENT = bytes([10, 77, 0, 2]), bytes([10, 77, 0, 1])
ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17


def ethernet(protocol: int, body: bytes, vnet_header: bytes = bytes(VNET_HEADER_BYTES)) -> bytes:
    return vnet_header + CLIENT_MAC + GUEST_MAC + struct.pack(">H", protocol) + body


def ip(protocol: int, body: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0, GUEST, CLIENT)
    return ethernet(ETH_P_IP, head + body)


def udp(source: int, target: int, body: bytes) -> bytes:
    return ip(UDP, struct.pack(">HHHH", source, target, 8 + len(body), 0) + body)


def tcp(body: bytes) -> bytes:
    return ip(TCP, struct.pack(">HHIIBBHHH", 6379, 40000, 7, 9, 0x50, 0x18, 512, 0, 0) + body)


# virtio_net_hdr: a checksum left to the receiver, TCPv4 segments of 1,448 bytes.
GSO_HEADER = struct.pack("<BBHHHHH", 1, 1, 66, 1448, 34, 16, 0)

FRAMES = {
    "arp": ethernet(ETH_P_ARP, struct.pack(">HHBBH", 1, ETH_P_IP, 6, 4, 2) + GUEST_MAC + GUEST + CLIENT_MAC),
    "icmp": ip(ICMP, struct.pack(">BBHHH", 0, 0, 0, 1, 1) + b"ping"),
    "udp": udp(7, 40000, b"12 word"),
    "dhcp": udp(
        67, 68, struct.pack(">BBBBI", 2, 1, 6, 0, 99) + bytes(228) + b"\x63\x82\x53\x63\x35\x01\x05\xff"
    ),
    "tcp": tcp(b"+OK\r\n"),
    "tcp, many segments at once": GSO_HEADER + tcp(bytes(60_000))[VNET_HEADER_BYTES:],
}


LIMIT_BYTES = 200_000


class FakeNetwork:
    """A hold that says what it was told to send."""

    depth = 2

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def replay(self, frames: list[bytes]) -> None:
        self.sent += frames

    def statistics(self) -> Any:
        return SimpleNamespace(limit_bytes=LIMIT_BYTES)


def no_hook(_step: str, _epoch: int) -> None:
    """Nobody is killed here."""


class Pair:
    """Both sessions over one link; the guest has two network interfaces."""

    def __init__(self, links: tuple[Link, Link], disk: DiskBuffer) -> None:
        self.networks = [FakeNetwork(), FakeNetwork()]
        self.outputs = Outputs([cast(Hold, network) for network in self.networks], [disk])
        self.arrived = 0
        self._more = trio.Event()
        ram = np.zeros((4, PAGE_BYTES), np.uint8)
        self.secondary = BackupSession(links[1], ram, self.outputs, self.post, no_hook)
        guest = cast(QemuGuest, type("Guest", (), {"page_count": 4}))
        self.primary = PrimarySession(links[0], guest, self.outputs, Samples(), lambda _event: None, no_hook)

    def send(self, epoch: int, *frames: list[bytes]) -> None:
        capture = Capture(np.arange(0), np.zeros((0, PAGE_BYTES), np.uint8), b"devices", 0, 0, 0)
        self.primary.enqueue(PendingEpoch(epoch, capture, [], Sample(epoch), frames=list(frames)))

    def post(self, event: Any) -> None:
        """As the daemon does: an epoch that has come whole is applied at once."""
        if isinstance(event, on.EpochCompleted):
            staged = self.secondary.staged.pop(event.epoch)
            self.secondary.retained.keep(event.epoch, [], staged.frames)
            self.arrived = event.epoch
            self._more.set()

    async def wait_arrived(self, epoch: int) -> None:
        while self.arrived < epoch:
            await self._more.wait()
            self._more = trio.Event()

    def take_over(self) -> None:
        for _, nic, frames in self.secondary.retained.frames():
            self.outputs.replay(nic, frames)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    image = tmp_path / "disk"
    image.write_bytes(bytes(PAGE_BYTES))
    store = FileStore.open(image)
    links = [Link(stream, heartbeat_ms=HEARTBEAT_MS) for stream in memory_stream_pair()]
    yield Pair((links[0], links[1]), DiskBuffer(store, limit_bytes=1 << 20))
    for link in links:
        await link.aclose()
    store.close()


@asynccontextmanager
async def connected(pair: Pair) -> AsyncIterator[None]:
    """Both sessions run while the body does; an error of the secondary's ends it."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.secondary.run)
            nursery.start_soon(pair.primary.send_epochs)
            yield
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", FRAMES)
async def test_a_survivor_sends_what_may_not_have_left(pair: Pair, kind: str) -> None:
    frame, other = FRAMES[kind], FRAMES["arp"]
    async with connected(pair):
        pair.send(1, [other], [])
        pair.primary.enqueue(Released(1))
        pair.send(2, [frame, other], [frame])
        pair.send(3, [], [other, frame])
        await pair.wait_arrived(3)
    pair.take_over()
    assert [network.sent for network in pair.networks] == [[frame, other], [frame, other, frame]]


async def test_nothing_is_sent_again_that_has_left(pair: Pair) -> None:
    async with connected(pair):
        pair.send(1, list(FRAMES.values()), [])
        pair.primary.enqueue(Released(1))
        pair.send(2, [], [])
        await pair.wait_arrived(2)
    pair.take_over()
    assert [network.sent for network in pair.networks] == [[], []]


async def test_a_primary_that_never_releases_is_refused(pair: Pair) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with connected(pair):
            for epoch in range(1, RETAINED_EPOCHS_MAX + 3):
                pair.send(epoch, [FRAMES["udp"]], [])
            await pair.wait_arrived(RETAINED_EPOCHS_MAX + 2)
    assert caught.group_contains(PayloadError, match="has yet to release 17 epochs", depth=2)
    assert pair.arrived == RETAINED_EPOCHS_MAX + 1


async def test_more_frames_than_any_hold_has_are_refused(pair: Pair) -> None:
    frame = FRAMES["tcp, many segments at once"]
    with pytest.raises(ExceptionGroup) as caught:
        async with connected(pair):
            pair.send(1, [frame] * (4 * LIMIT_BYTES // len(frame) + 1), [])
            await pair.wait_arrived(1)
    assert caught.group_contains(PayloadError, match="epoch 1 is larger than the guest", depth=2)


async def test_frames_of_an_interface_that_the_guest_has_not_are_refused(pair: Pair) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with connected(pair):
            pair.send(1, [], [], [FRAMES["udp"]])
            await pair.wait_arrived(1)
    assert caught.group_contains(PayloadError, match="network interface 2 of a guest with 2", depth=2)


@pytest.mark.parametrize(
    ("frames", "in_thread"),
    [([], False), ([FRAMES["udp"]] * 10, False), ([bytes(60_000)] * 9, True), ([FRAMES["udp"]] * 500, True)],
    ids=["none", "few", "few large ones", "many small ones"],
)
async def test_an_epoch_of_many_frames_is_encoded_in_a_thread(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, frames: list[bytes], in_thread: bool
) -> None:
    encoders: list[threading.Thread] = []

    def note(nic: int, some: Sequence[bytes]) -> Iterator[list[bytes]]:
        encoders.append(threading.current_thread())
        return encode_frames(nic, some)

    monkeypatch.setattr("remuslike.daemon.primary_session.encode_frames", note)
    async with connected(pair):
        pair.send(1, [], frames)
        await pair.wait_arrived(1)
    assert [thread is not threading.main_thread() for thread in encoders] == [in_thread] * 2
