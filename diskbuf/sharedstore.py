"""A store that both hosts reach, and that only one of them may use at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from diskbuf.errors import StoreInUseError, StoreIOError, StoreOpenError
from diskbuf.extents import Bytes
from diskbuf.filestore import FileStore, file_uri
from diskbuf.store import Allocation


class SharedStore:
    """A raw image on storage that both hosts reach. Nothing touches it before `try_acquire` has succeeded.

    The lock is the store's own, flock(2): it goes with the process that has it, so whoever gets it knows that
    no write of another is still to come (P3). The file system must carry the lock from host to host.
    """

    def __init__(self, path: Path) -> None:
        """Only asks for the size, which must not change. Raises `StoreOpenError`."""
        self._path = path
        self._store: FileStore | None = None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreOpenError(f"shared store {path}: {error.strerror}; is it mounted here?") from error

    def try_acquire(self) -> bool:
        """Open and lock it; False while another process has it. Raises `StoreOpenError`."""
        if self._store is not None:
            return True
        try:
            store = FileStore.open(self._path)
        except StoreInUseError:
            return False
        if store.size_bytes != self._size_bytes:
            store.close()
            raise StoreOpenError(
                f"shared store {self._path}: {store.size_bytes} bytes, but it had {self._size_bytes}; "
                "find out who changed it"
            )
        self._store = store
        return True

    @property
    def uri(self) -> str:
        return file_uri(self._path)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return False

    def read(self, offset: int, target: memoryview) -> None:
        self._ours().read(offset, target)

    def read_view(self, offset: int, length: int) -> memoryview | None:
        return None  # a file is not memory

    def read_cached(self, offset: int, target: memoryview) -> bool:
        return self._ours().read_cached(offset, target)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        self._ours().write(offset, pieces)

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._ours().zero(offset, length, punch_hole=punch_hole)

    def allocation(self, offset: int, length: int) -> list[Allocation]:
        return self._ours().allocation(offset, length)

    def sync(self) -> None:
        self._ours().sync()

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _ours(self) -> FileStore:
        if self._store is None:
            raise StoreIOError(f"shared store {self._path}: the other host has it; this one waits its turn")
        return self._store
