"""netbuf.taphold: when held frames are read, by a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from fakes.wiring import FakeWiring, fake_guest_tap
from trio.testing import MockClock, wait_all_tasks_blocked

from netbuf.redirect import RING_FRAMES
from netbuf.taphold import GATHER_S, TapHold

FRAME = bytes(100)


@asynccontextmanager
async def holding() -> AsyncIterator[tuple[TapHold, FakeWiring, list[int]]]:
    """A hold of epoch 1 whose reader runs, and the epochs whose first frame it has told of."""
    wiring = FakeWiring()
    hold = TapHold(fake_guest_tap(), "br0", 1 << 20, wire=lambda *_: wiring)
    told: list[int] = []
    hold.on_output(told.append)
    hold.hold(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        yield hold, wiring, told
        hold.close()
    wiring.close_ends()


def held(hold: TapHold) -> int:
    return hold.statistics().held_items


async def test_the_first_frame_is_told_at_once_and_the_next_are_read_together(mock_clock: MockClock) -> None:
    async with holding() as (hold, wiring, told):
        wiring.send(FRAME)
        await wait_all_tasks_blocked()
        assert (told, held(hold)) == ([1], 1)
        for _ in range(3):
            wiring.send(FRAME)
            await wait_all_tasks_blocked()
        assert held(hold) == 1
        mock_clock.jump(GATHER_S)
        await wait_all_tasks_blocked()
        assert held(hold) == 4


async def test_a_seal_and_an_opening_find_what_was_left_to_come_together() -> None:
    async with holding() as (hold, wiring, _told):
        wiring.send(FRAME)
        await wait_all_tasks_blocked()
        wiring.send(FRAME, FRAME)
        hold.seal(1)
        assert held(hold) == 3
        wiring.send(FRAME)
        await hold.open()
        assert len(wiring.received()) == 4
        assert held(hold) == 0


async def test_the_next_epochs_first_frame_does_not_wait(mock_clock: MockClock) -> None:
    async with holding() as (hold, wiring, told):
        wiring.send(FRAME)
        await wait_all_tasks_blocked()
        hold.seal(1)
        wiring.send(FRAME)
        await wait_all_tasks_blocked()
        assert told == [1, 2]


async def test_a_reader_that_finds_nothing_does_not_let_the_first_frame_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_readable = trio.lowlevel.wait_readable
    others_turn: list[int] = []

    async def seal_first(descriptor: int) -> None:
        """The engine has its turn between the reader's wake-up and its reading."""
        await wait_readable(descriptor)
        if not others_turn:
            others_turn.append(1)
            hold.seal(1)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", seal_first)
    async with holding() as (hold, wiring, told):
        for expected in ([], [2]):
            wiring.send(FRAME)
            await wait_all_tasks_blocked()
            assert others_turn
            assert told == expected


def test_what_comes_while_frames_are_let_come_together_takes_a_quarter_of_the_ring_at_most() -> None:
    full_size_frames_per_s = 10e9 / 8 / 1500
    assert GATHER_S * full_size_frames_per_s <= RING_FRAMES / 4
