"""The file under a journal, and the few operations on it that the journal is made of.

They are few so that the proof (`tests/crash`) can stand in for them and know all that ever reaches the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from diskbuf.errors import (
    JournalFormatError,
    JournalInUseError,
    JournalOpenError,
    StoreError,
    StoreFullError,
    StoreIOError,
    StoreReadOnlyError,
)
from diskbuf.extents import Bytes
from diskbuf.journalformat import split_parts

_PIECES_MAX = 1024
"""IOV_MAX of Linux: the most pieces of one pwritev(2)."""
_ZEROS = bytes(4 << 20)


class JournalFile(Protocol):
    """What a journal needs of its file. A `StoreError` from `write` or `sync` leaves what was written since
    the last `sync` in doubt: there, not there, or torn, whatever a later `sync` says."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target`; `JournalFormatError` if the file ends before."""

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """Write the pieces one after another from `offset`."""

    def sync(self) -> None:
        """Return when all that was written is on stable storage."""

    def forget_cached(self) -> None:
        """What is read from now on comes from the disk, not from a cache. After a `sync`."""

    def extend(self, start: int, end: int) -> None:
        """Make the file end at `end`, zeros from `start` on, allocated so that nothing but data is written
        there later; durable. What an extension that failed has left there doesn't count."""

    def close(self) -> None: ...


class PreallocatedFile:
    """A regular file, locked while it is open for writing."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._size_bytes = os.fstat(descriptor).st_size

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether something has this name; `JournalOpenError` if that can't be known."""
        try:
            path.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise JournalOpenError(
                f"journal {path} can't be opened: {error.strerror}; mend the path"
            ) from error
        return True

    @classmethod
    def open(cls, path: Path) -> PreallocatedFile:
        """Open an existing file and lock it (flock(2)): `JournalInUseError`, `JournalOpenError`."""
        descriptor = _open(path, os.O_RDWR)
        try:
            _lock(path, descriptor)
            return cls(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def open_to_read(cls, path: Path) -> PreallocatedFile:
        """Open an existing file without locking it: somebody may be writing."""
        return cls(path, _open(path, os.O_RDONLY))

    @classmethod
    def create(cls, path: Path, head: Bytes, size_bytes: int) -> PreallocatedFile:
        """Make a locked file that begins with `head`. It gets its name only when all of it is durable."""
        unfinished = path.with_name(f".{path.name}.{token_hex(4)}")
        try:
            descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JournalOpenError(
                f"journal {path} can't be created: {unfinished}: {error.strerror}; mend the directory"
            ) from error
        try:
            _lock(path, descriptor)
            file = cls(path, descriptor)
            file.extend(0, size_bytes)
            file.write(0, [head])
            file.sync()
            # Never over another: two that create it at once would each believe in their own.
            os.link(unfinished, path)
            _sync_directory(path.parent)
            return file
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, FileExistsError):
                raise JournalInUseError(f"journal {path} was just made by another process") from error
            if isinstance(error, OSError):
                raise JournalOpenError(
                    f"journal {path} can't be created: {error.strerror}; mend the directory"
                ) from error
            raise
        finally:
            with suppress(OSError):
                unfinished.unlink()

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def in_use(self) -> bool:
        """Whether some process writes to it, asked of a file that is open to read."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    def read(self, offset: int, target: memoryview) -> None:
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise self._failure("read", offset, len(target), error) from error
            if count == 0:
                raise JournalFormatError(
                    f"journal {self._path} ends at {offset + done}, before the {len(target)} bytes at"
                    f" {offset}: it was truncated; restore it, or remove it and what only it knows"
                )
            done += count

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        pending = list(pieces)
        done = 0
        try:
            while pending:
                count = os.pwritev(self._descriptor, pending[:_PIECES_MAX], offset + done)
                done += count
                _, pending = split_parts(pending, count)
        except OSError as error:
            raise self._failure("write", offset, sum(map(len, pieces)), error) from error

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._failure("sync", 0, self._size_bytes, error) from error

    def forget_cached(self) -> None:
        # Linux marks pages clean that it failed to write: after a sync that failed in a process long gone,
        # the cache may hold what the disk doesn't.
        with suppress(OSError):
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def extend(self, start: int, end: int) -> None:
        try:
            os.posix_fallocate(self._descriptor, start, end - start)
            # Allocated but unwritten blocks would each cost a transaction of the file system when they are
            # written first, within somebody's commit: 0.18 instead of 0.11 ms for the sync of 68 KiB on ext4.
            zeros = memoryview(_ZEROS)
            for offset in range(start, end, len(zeros)):
                self.write(offset, [zeros[: end - offset]])
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failure("extension", start, end - start, error) from error
        self._size_bytes = end

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _failure(self, operation: str, offset: int, length: int, error: OSError) -> StoreError:
        what = f"journal {self._path}: {operation} of {length} bytes at {offset} failed: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return StoreFullError(f"{what}; make room, then release again")
        if error.errno in (errno.EROFS, errno.EPERM, errno.EACCES):
            return StoreReadOnlyError(f"{what}; make it writable")
        return StoreIOError(f"{what}; look into the kernel log")


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise JournalOpenError(
            f"journal {path} can't be opened: {error.strerror}; mend the path or its permissions"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise JournalOpenError(f"journal {path} is not a regular file; name one, or one to be made")
    return descriptor


def _lock(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalInUseError(
            f"journal {path} is in use already, by another process or as another store or journal;"
            " stop that first, or name another file"
        ) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
