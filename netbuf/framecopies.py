"""Copies of the frames that wait in the kernel, an epoch at a time. Pure but for its log.

The kernel's queue counts frames and shows none, so a packet socket sees them as they come. It may have had no
room for some: then the survivor of this host can't replay those, and they are lost as on any network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import structlog

from netbuf.errors import NetbufError, SealedFramesError

_log = structlog.get_logger(__name__)


class Copies(Protocol):
    """Where they come from."""

    def heed(self, wanted: bool) -> None:
        """Whether frames are to be copied; at first they are."""
        ...

    def read(self) -> Iterable[bytes]:
        """Those that wait."""
        ...

    def take_lost(self) -> int:
        """How many there was no room for since the last call."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Source(Protocol):
    """What makes them."""

    def copies(self, limit_bytes: int) -> Copies:
        """Copies of so much at a time. Raises NetbufError."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class NoCopies:
    """Of a hold that nobody will ask for frames: in the place of `FrameCopies`."""

    missing_items = 0

    def heed(self) -> None:
        """Nothing."""

    ignore = read = clear = close = heed

    def seal(self, epoch: int, held_items: int) -> None:
        """Nothing."""

    def forget(self, epoch: int) -> None:
        """Nothing."""

    def frames(self, epoch: int) -> list[bytes]:
        """Raises `SealedFramesError`."""
        raise not_kept(f"sealed_frames({epoch})")

    def held(self) -> list[bytes]:
        """Raises `SealedFramesError`."""
        raise not_kept("held_frames()")


def not_kept(call: str) -> SealedFramesError:
    """What a hold that keeps none says to `call`."""
    return SealedFramesError(f"{call} of a hold made without keep_frames: make it with that")


class FrameCopies:
    """Those of the open epoch and of the sealed, unreleased ones."""

    def __init__(self, source: Copies, name: str, limit_bytes: int) -> None:
        """`limit_bytes` bounds them all together (P6); `name` of the guest tap is for the log."""
        self._source = source
        self._name = name
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._open: list[bytes] = []
        self._sealed: dict[int, list[bytes]] = {}
        self.missing_items = 0
        """Frames that were held, and of which there was no copy."""

    def heed(self) -> None:
        """An epoch begins, the first one since `ignore`: what comes is copied again."""
        self._source.heed(True)

    def ignore(self) -> None:
        """Nothing is held any more, and what comes is not to be copied."""
        self._source.heed(False)
        for _ in self._source.read():
            pass
        self._source.take_lost()
        self.clear()

    def read(self) -> None:
        """Take what has come, for the open epoch."""
        for frame in self._source.read():
            if self._size_bytes + len(frame) <= self._limit_bytes:
                self._open.append(frame)
                self._size_bytes += len(frame)

    def seal(self, epoch: int, held_items: int) -> None:
        """What has come so far is of `epoch`, of which so many frames are held. The guest is paused."""
        self.read()
        lost = self._source.take_lost()
        frames, self._open = self._open, []
        self._sealed[epoch] = frames
        if lost or len(frames) != held_items:
            self.missing_items += max(0, held_items - len(frames))
            _log.warning(
                "copies of frames don't agree with what is held; a survivor can't replay what is missing",
                guest=self._name,
                epoch=epoch,
                held_items=held_items,
                copied_items=len(frames),
                lost_items=lost,
            )

    def frames(self, epoch: int) -> list[bytes]:
        """Those of a sealed epoch; none if it is not there."""
        return list(self._sealed.get(epoch, ()))

    def held(self) -> list[bytes]:
        """Those of the sealed epochs and of the open one."""
        self.read()
        return [*(frame for frames in self._sealed.values() for frame in frames), *self._open]

    def forget(self, epoch: int) -> None:
        """A sealed epoch has left."""
        self._size_bytes -= sum(map(len, self._sealed.pop(epoch, ())))

    def clear(self) -> None:
        """Forget all."""
        self._open = []
        self._sealed.clear()
        self._size_bytes = 0

    def close(self) -> None:
        """Forget all, and copy no more. Idempotent."""
        self.clear()
        self._source.close()


def make_copies(source: Source, name: str, limit_bytes: int) -> FrameCopies:
    """Copies of what `source` sees. Raises NetbufError, and then `source` is closed."""
    try:
        return FrameCopies(source.copies(limit_bytes), name, limit_bytes)
    except NetbufError:
        source.close()
        raise
