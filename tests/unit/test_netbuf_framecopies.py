"""netbuf.framecopies, and what a plug hold makes of it."""

from __future__ import annotations

import pytest
import structlog.testing
from fakes.wiring import fake_guest_tap
from unit.netbuf_fakes import FakeCopies, FakePlug

from netbuf.errors import AnnounceError, KernelRefusedError, SealedFramesError
from netbuf.framecopies import Copies, FrameCopies
from netbuf.plughold import PlugHold
from netbuf.tap import VNET_HEADER_BYTES

FRAME_BYTES = 60
HEADER = bytes(VNET_HEADER_BYTES)


def numbered(first: int, count: int = 1) -> list[bytes]:
    return [str(number).encode().rjust(FRAME_BYTES, b".") for number in range(first, first + count)]


def copies_of(*frames: bytes, limit_bytes: int = 1 << 20) -> tuple[FakeCopies, FrameCopies]:
    source = FakeCopies()
    for frame in frames:
        source.come(frame)
    return source, FrameCopies(source, "rl0g", limit_bytes)


def with_headers(frames: list[bytes]) -> list[bytes]:
    return [HEADER + frame for frame in frames]


def make(plug: FakePlug) -> PlugHold:
    return PlugHold(fake_guest_tap(), "br0", 1 << 20, keep_frames=True, wire=lambda *_: plug)


def test_frames_are_of_the_epoch_that_is_sealed_next() -> None:
    source, copies = copies_of(*numbered(0, 3))
    copies.read()
    source.come(numbered(3)[0])
    with structlog.testing.capture_logs() as said:
        copies.seal(1, 4)
        source.come(numbered(4)[0])
        copies.seal(2, 1)
    assert said == []
    assert copies.frames(1) == with_headers(numbered(0, 4))
    assert copies.frames(2) == with_headers(numbered(4))
    copies.forget(1)
    assert copies.frames(1) == []
    assert copies.missing_items == 0


def test_what_there_was_no_room_for_is_counted_and_said() -> None:
    source, copies = copies_of()
    source.room = 2
    for frame in numbered(0, 5):
        source.come(frame)
    with structlog.testing.capture_logs() as said:
        copies.seal(1, 5)
    assert copies.frames(1) == with_headers(numbered(0, 2))
    assert copies.missing_items == 3
    (line,) = said
    assert (line["guest"], line["held_items"], line["copied_items"], line["lost_items"]) == ("rl0g", 5, 2, 3)


def test_the_limit_bounds_all_epochs_together() -> None:
    each = FRAME_BYTES + VNET_HEADER_BYTES
    source, copies = copies_of(*numbered(0, 2), limit_bytes=3 * each)
    copies.seal(1, 2)
    for frame in numbered(2, 4):
        source.come(frame)
    copies.seal(2, 4)
    assert copies.frames(2) == with_headers(numbered(2))
    assert copies.missing_items == 3
    copies.forget(1)
    for frame in numbered(6, 2):
        source.come(frame)
    copies.seal(3, 2)
    assert copies.frames(3) == with_headers(numbered(6, 2))


def test_nothing_is_copied_while_it_is_ignored() -> None:
    source, copies = copies_of(*numbered(0, 2))
    copies.seal(1, 2)
    source.come(numbered(2)[0])
    copies.ignore()
    source.come(numbered(3)[0])
    copies.heed()
    source.come(numbered(4)[0])
    copies.seal(2, 1)
    assert (copies.frames(1), copies.frames(2)) == ([], with_headers(numbered(4)))


async def test_a_plug_hold_has_copies_of_what_waits_in_the_kernel() -> None:
    plug = FakePlug()
    hold = make(plug)
    await hold.open()
    plug.send(*numbered(0, 2))
    hold.hold(1)
    plug.send(*numbered(2, 3))
    hold.seal(1)
    plug.send(*numbered(5))
    assert hold.sealed_frames(1) == with_headers(numbered(2, 3))
    assert hold.held_frames() == with_headers(numbered(2, 4))
    await hold.release(1)
    with pytest.raises(SealedFramesError, match=r"sealed are \[\]"):
        hold.sealed_frames(1)
    hold.seal(2)
    assert hold.sealed_frames(2) == with_headers(numbered(5))
    assert hold.missing_items == 0
    hold.discard()
    with pytest.raises(SealedFramesError):
        hold.sealed_frames(2)


async def test_a_survivor_replays_only_once_others_may_know_of_its_guest() -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    with pytest.raises(AnnounceError, match=r"replay\(\) while holding"):
        hold.replay(with_headers(numbered(0)))
    await hold.open()
    with pytest.raises(AnnounceError, match="no whole Ethernet header"):
        hold.replay([HEADER + b"short"])
    hold.replay([])
    hold.replay(with_headers(numbered(0, 2)))
    assert plug.received() == numbered(0, 2)


def test_a_hold_that_gets_no_copies_is_not_made() -> None:
    class Refusing(FakePlug):
        def copies(self, limit_bytes: int) -> Copies:
            raise KernelRefusedError("a packet socket on 'rl0g' failed: no; see the kernel log")

    plug = Refusing()
    with pytest.raises(KernelRefusedError):
        make(plug)
    assert plug.closed
