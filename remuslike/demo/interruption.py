"""Runs something to its end or to a signal, and turns groups of errors into the first of them."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from remuslike.errors import expected_errors

_T = TypeVar("_T")


class Interrupted(BaseException):
    """The user's wish: a signal that ends the run. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_interruptibly(play: Callable[[], Awaitable[_T]]) -> _T:
    """What `play` returns. Signals cancel it instead of striking anywhere, so that its clean-up is never cut
    short; then this raises Interrupted. Of a group of expected errors it raises the first."""
    try:
        return trio.run(_interruptible, play)
    except BaseExceptionGroup as group:
        raise cause(group) from group


async def _interruptible(play: Callable[[], Awaitable[_T]]) -> _T:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    result: list[_T] = []
    received: list[int] = []
    with trio.open_signal_receiver(*numbers) as signals:
        try:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    async for number in signals:
                        received.append(number)
                        nursery.cancel_scope.cancel()

                nursery.start_soon(watch)
                result.append(await play())
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # Programs that heard the signal, too, have failed: that is the user's wish and no error.
            if not received or not isinstance(cause(group), expected_errors()):
                raise
    if received:
        raise Interrupted(received[0])
    return result[0]


def cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first expected error, when there is nothing else in the group: a defect stays a group."""
    expected, unexpected = group.split(expected_errors())
    if expected is None or unexpected is not None:
        return group
    error: BaseException = expected
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
