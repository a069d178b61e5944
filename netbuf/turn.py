"""Who may let frames out: one at a time."""

from __future__ import annotations

from types import TracebackType

import trio


class Turn:
    """A `trio.Lock` that, while it is free, is had without a pass of the event loop.

    For each release would pay for that pass, mostly to find that it had nothing to wait for. Entering can be
    cancelled, and is the one place of an `async with` of it that can.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
