"""netbuf.turn."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from netbuf.turn import Turn


async def test_a_free_one_is_had_without_a_pass_of_the_event_loop() -> None:
    turn = Turn()
    passes: list[str] = []

    async def runs_at_the_next_pass() -> None:
        passes.append("ran")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(runs_at_the_next_pass)
        for _ in range(2):
            async with turn:
                pass
        assert passes == []


async def test_others_wait_until_it_is_left_in_the_order_they_came() -> None:
    turn = Turn()
    had: list[int] = []

    async def want(number: int) -> None:
        async with turn:
            had.append(number)

    async with trio.open_nursery() as nursery, turn:
        for number in range(3):
            nursery.start_soon(want, number)
            await trio.testing.wait_all_tasks_blocked()
        assert had == []
    assert had == [0, 1, 2]


async def test_who_is_cancelled_before_has_no_turn() -> None:
    turn = Turn()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with turn:
            pytest.fail("it was had")
    async with turn:
        pass


async def test_an_error_within_gives_it_back() -> None:
    turn = Turn()
    with pytest.raises(KeyError):
        async with turn:
            raise KeyError
    async with turn:
        pass
