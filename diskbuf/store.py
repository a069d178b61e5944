"""Where released writes end up. Everything here may block, so that it is called from threads, except
`read_cached`, which never does."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from diskbuf.errors import (
    StoreError,
    StoreFullError,
    StoreInUseError,
    StoreIOError,
    StoreOpenError,
    StoreReadOnlyError,
    StoreShortError,
)
from diskbuf.extents import Bytes, Extent, Kind

_PIECES_MAX = 1024
"""IOV_MAX of Linux: the most pieces of one pwritev(2)."""
_GATHER_BYTES_MAX = 8 << 20
"""The most that one write gathers: soon enough done for a discard not to be late, and far beyond the size
at which a larger system call is a faster one."""
_ZEROS = bytes(1 << 20)
"""What is written where zeros can't be had from fallocate(2), piece by piece."""

# linux/falloc.h
_FALLOC_KEEP_SIZE = 0x01
_FALLOC_PUNCH_HOLE = 0x02
_FALLOC_ZERO_RANGE = 0x10

# "This file system or device can't, or not at this alignment": write zeros instead.
_FALLOC_UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Store(Protocol):
    """A disk of a fixed size. Ranges are within it: requests were checked at the gate.

    Every method raises a `StoreError` on failure; a failed `write` or `zero` may have done a part, and is
    repeated as a whole. Methods may be called from several threads at once.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    def read_cached(self, offset: int, target: memoryview) -> bool:
        """Fill `target` if that needs no waiting; else return False, and `target` is undefined."""

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target` from `offset`."""

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """Write the pieces one after another from `offset`."""

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        """Make a range read as zeros; deallocate it if asked and possible, keep it allocated if not."""

    def sync(self) -> None:
        """Return when all that was written is on stable storage."""

    def close(self) -> None:
        """Let go of the store; it is not used again."""


class FileStore:
    """A raw image file, or a block device. Open it with `FileStore.open`."""

    def __init__(self, path: Path, descriptor: int, size_bytes: int, read_only: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._read_only = read_only
        self._reads_nowait = True

    @classmethod
    def open(cls, path: str | os.PathLike[str], read_only: bool = False) -> FileStore:
        """Open an existing image and lock it against a second server (flock(2), shared if read-only).

        Raises `StoreInUseError` if it is locked, `StoreOpenError` if it can't be served.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise StoreOpenError(
                f"store {path}: {error.strerror}; create the image or mend its permissions"
            ) from error
        try:
            size_bytes = _check_opened(path, descriptor, read_only)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, size_bytes, read_only)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    def read_cached(self, offset: int, target: memoryview) -> bool:
        if not self._reads_nowait:
            return False
        try:
            return os.preadv(self._descriptor, [target], offset, os.RWF_NOWAIT) == len(target)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise self._failure("read", offset, len(target), error) from error
            self._reads_nowait = False
            return False

    def read(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise self._failure("read", offset, len(target), error) from error
            if count == 0:
                raise StoreShortError(
                    f"store {self._path} ends at {offset + done}, not at its {self._size_bytes} bytes:"
                    " it was truncated while in use; restore it from the other side"
                )
            done += count

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        length = sum(map(len, pieces))
        self._check_writable(offset, length)
        pending = list(pieces)
        done = 0
        try:
            while pending:
                count = os.pwritev(self._descriptor, pending[:_PIECES_MAX], offset + done)
                done += count
                pending = _after(pending, count)
        except OSError as error:
            raise self._failure("write", offset, length, error) from error

    def zero(self, offset: int, length: int, *, punch_hole: bool) -> None:
        self._check_writable(offset, length)
        try:
            if punch_hole and self._fallocate(_FALLOC_PUNCH_HOLE, offset, length):
                return
            if self._fallocate(_FALLOC_ZERO_RANGE, offset, length):
                return
        except OSError as error:
            raise self._failure("zero", offset, length, error) from error
        zeros = memoryview(_ZEROS)
        for start in range(0, length, len(zeros)):
            self.write(offset + start, [zeros[: min(len(zeros), length - start)]])

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._failure("sync", 0, self._size_bytes, error) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether the file system did it; raises OSError if it could but failed."""
        while _libc.fallocate(self._descriptor, mode | _FALLOC_KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            if code in _FALLOC_UNSUPPORTED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True

    def _check_writable(self, offset: int, length: int) -> None:
        if self._read_only:
            raise StoreReadOnlyError(
                f"store {self._path}: write of {length} bytes at {offset}, but it was opened read-only"
            )

    def _failure(self, operation: str, offset: int, length: int, error: OSError) -> StoreError:
        what = f"store {self._path}: {operation} of {length} bytes at {offset} failed: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return StoreFullError(f"{what}; make room, then release again")
        if error.errno in (errno.EROFS, errno.EPERM, errno.EACCES):
            return StoreReadOnlyError(f"{what}; make it writable")
        return StoreIOError(f"{what}; look into the kernel log")


def _check_opened(path: Path, descriptor: int, read_only: bool) -> int:
    """Lock an opened image; return its size in bytes."""
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise StoreOpenError(f"store {path} is neither a file nor a block device; name a raw image")
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreInUseError(f"store {path} is served by another process; stop that one first") from error
    size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
    if size_bytes == 0:
        raise StoreOpenError(f"store {path} has 0 bytes; give it the disk's size (truncate -s)")
    return size_bytes


def _after(pieces: list[Bytes], count: int) -> list[Bytes]:
    """What is left of `pieces` when `count` bytes of them are written."""
    for index, piece in enumerate(pieces):
        if count < len(piece):
            return [memoryview(piece)[count:], *pieces[index + 1 :]]
        count -= len(piece)
    return []


def apply_extents(store: Store, extents: Sequence[Extent], stopped: Callable[[], bool]) -> bool:
    """Write ascending extents to the store, neighbours together. Repeating it changes nothing more.

    Asks `stopped` before each write, and returns False at once if it says so; True means that all is in the
    store. Raises `StoreError` at the first write that fails.
    """
    index = 0
    while index < len(extents):
        if stopped():
            return False
        extent = extents[index]
        if extent.kind is not Kind.DATA:
            store.zero(extent.offset, extent.length, punch_hole=extent.kind is Kind.HOLE)
            index += 1
            continue
        pieces = _adjacent(extents, index)
        store.write(extent.offset, pieces)
        index += len(pieces)
    return True


def _adjacent(extents: Sequence[Extent], first: int) -> list[Bytes]:
    """The payloads from `extents[first]` on that lie next to each other on the disk, within bounds."""
    pieces: list[Bytes] = []
    total = 0
    end = extents[first].offset
    for index in range(first, min(first + _PIECES_MAX, len(extents))):
        extent = extents[index]
        if extent.kind is not Kind.DATA or extent.offset != end or (pieces and total >= _GATHER_BYTES_MAX):
            break
        pieces.append(extent.data)
        total += extent.length
        end = extent.end
    return pieces
