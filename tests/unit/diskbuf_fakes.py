"""A store in memory that can be slow and can fail, for the tests of `diskbuf`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from diskbuf.errors import StoreError
from diskbuf.extents import Bytes
from diskbuf.store import Allocation


class FakeStore:
    """Records what reaches it. `stall()` makes operations wait in their threads until `proceed()`; `entered`
    counts those that have begun."""

    uri = "fake:"

    def __init__(self, size_bytes: int, *, read_only: bool = False) -> None:
        self.image = bytearray(size_bytes)
        self.read_only = read_only
        self.cached = True
        self.in_memory = False
        self.operations: list[tuple[object, ...]] = []
        self.failure: StoreError | None = None
        self._proceed = threading.Event()
        self._proceed.set()
        self.entered = threading.Semaphore(0)

    @property
    def size_bytes(self) -> int:
        return len(self.image)

    def stall(self) -> None:
        self._proceed.clear()

    def proceed(self) -> None:
        self._proceed.set()

    def read_cached(self, offset: int, target: memoryview) -> bool:
        if self.cached:
            target[:] = self.image[offset : offset + len(target)]
        return self.cached

    def read_view(self, offset: int, length: int) -> memoryview | None:
        return memoryview(self.image)[offset : offset + length] if self.in_memory else None

    def write_view(self, offset: int, length: int) -> memoryview | None:
        return memoryview(self.image)[offset : offset + length] if self.in_memory else None

    def note_written(self, offset: int, length: int) -> None:
        pass

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        return [Allocation(length, hole=False, zero=False)]

    def read(self, offset: int, target: memoryview) -> None:
        self._enter()
        target[:] = self.image[offset : offset + len(target)]

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self._enter()
        data = b"".join(pieces)
        self.operations.append(("write", offset, data))
        self.image[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._enter()
        self.operations.append(("hole" if punch_hole else "zero", offset, length))
        self.image[offset : offset + length] = bytes(length)

    def sync(self) -> None:
        self._enter()
        self.operations.append(("sync",))

    def close(self) -> None:
        pass

    def _enter(self) -> None:
        self.entered.release()
        assert self._proceed.wait(10), "the test forgot to let the store proceed"
        if self.failure is not None:
            raise self.failure
