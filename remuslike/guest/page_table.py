"""The page table of a child process: its soft-dirty bits, read, forgotten, and held still meanwhile
(proc(5): pagemap, clear_refs)."""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import structlog

from remuslike.engine.ports import PAGE_BYTES
from remuslike.errors import GuestError, MissingToolError
from remuslike.guest.soft_dirty import SOFT_DIRTY, Entries

log = structlog.get_logger()

_ENTRY_BYTES = 8
_CLEAR_SOFT_DIRTY = b"4"

# A thread of QEMU stops when it leaves the kernel, in some 0.1 ms; one that waits for a slow disk may not for
# seconds. Heartbeats wait with us, so some 20 ms at most; in looks, since a clock goes on when nobody runs.
_STOP_LOOKS_MAX = 200
_STOP_LOOK_S = 50e-6

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


class ProcessPageTable:
    """A region of child process `pid`, whole pages, as `remuslike.guest.soft_dirty.PageTable`."""

    def __init__(self, pid: int, start: int, length: int) -> None:
        self._pid = pid
        self._warned = False
        self._offset = start // PAGE_BYTES * _ENTRY_BYTES
        self._entries = np.zeros(length // PAGE_BYTES, np.uint64)
        opened: list[int] = []
        try:
            opened.append(os.pidfd_open(pid))
            opened.append(os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC))
            opened.append(os.open(f"/proc/{pid}/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
            if os.waitid(os.P_PIDFD, opened[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise ProcessLookupError(errno.ESRCH, "it has ended")
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            raise MissingToolError(f"the dirty pages of process {pid} can't be read: {error}") from error
        self._process, self._pagemap, self._clear_refs = opened

    def read(self) -> Entries:
        """Every entry of the region; the array is reused by the next call."""
        unread = self._entries.data.cast("B")
        offset = self._offset
        while unread:
            count = os.preadv(self._pagemap, [unread], offset)
            if count == 0:
                raise self._gone()
            unread = unread[count:]
            offset += count
        return self._entries

    def clear(self) -> None:
        """Forget the soft-dirty bits of the whole process."""
        try:
            os.write(self._clear_refs, _CLEAR_SOFT_DIRTY)
        except ProcessLookupError as error:
            raise self._gone() from error

    @contextmanager
    def stopped(self) -> Iterator[bool]:
        """While the body runs, no thread of the process does; unless it is told False.

        By SIGSTOP and SIGCONT, which a process can neither block nor notice. ptrace would have to wait for
        every thread before it can let go of any; here a stop that takes too long is called off.
        """
        if self._has_stopped():
            # By somebody else, who may let it go on at any instant.
            yield False
            return
        try:
            signal.pidfd_send_signal(self._process, signal.SIGSTOP)
        except ProcessLookupError as error:
            raise self._gone() from error
        try:
            yield self._wait_stopped()
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGCONT)

    def _wait_stopped(self) -> bool:
        for _ in range(_STOP_LOOKS_MAX):
            if self._has_stopped():
                self._warned = False
                return True
            time.sleep(_STOP_LOOK_S)
        if not self._warned:
            # Once, not forty times a second.
            self._warned = True
            log.warning("tracker.cannot_stop", pid=self._pid, consequence="pages are reported repeatedly")
        return False

    def _has_stopped(self) -> bool:
        """Whether its last thread has stopped, too; GuestError if it has ended."""
        options = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            status = os.waitid(os.P_PIDFD, self._process, options)
        except ChildProcessError as error:
            raise self._gone() from error
        if status is not None and status.si_code != os.CLD_STOPPED:
            raise self._gone()
        return status is not None

    def _gone(self) -> GuestError:
        return GuestError(f"QEMU (process {self._pid}) is gone")

    def close(self) -> None:
        for descriptor in (self._process, self._pagemap, self._clear_refs):
            os.close(descriptor)


def probe_soft_dirty(huge_pages: Path = _HUGE_PAGES) -> None:
    """MissingToolError unless this kernel has soft-dirty bits and keeps those of shared memory.

    Tried on a page of our own; our other pages take a page fault each at their next write.
    """
    with mmap.mmap(-1, PAGE_BYTES) as page:
        address = np.frombuffer(page, np.uint8).ctypes.data
        try:
            with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
                page[0] = 1
                Path("/proc/self/clear_refs").write_bytes(_CLEAR_SOFT_DIRTY)
                cleared = _read_entry(pagemap.fileno(), address)
                page[0] = 2
                written = _read_entry(pagemap.fileno(), address)
        except OSError as error:
            raise MissingToolError(f"soft-dirty bits can't be had: {error}") from error
    if cleared & int(SOFT_DIRTY) or not written & int(SOFT_DIRTY):
        raise MissingToolError(
            "this kernel has no soft-dirty bits; it takes one with CONFIG_MEM_SOFT_DIRTY, such as Debian's"
        )
    _refuse_huge_shared_pages(huge_pages)


def _read_entry(pagemap: int, address: int) -> int:
    return int.from_bytes(os.pread(pagemap, _ENTRY_BYTES, address // PAGE_BYTES * _ENTRY_BYTES), "little")


def _refuse_huge_shared_pages(directory: Path) -> None:
    """Documentation/admin-guide/mm/transhuge.rst; one file, and since Linux 6.11 one more for each size."""
    for path in sorted([*directory.glob("shmem_enabled"), *directory.glob("hugepages-*/shmem_enabled")]):
        chosen = re.search(r"\[(\w+)\]", path.read_text())
        if chosen and chosen[1] not in ("never", "deny", "inherit"):
            raise MissingToolError(
                f"soft-dirty bits are lost where the kernel merges shared memory into huge pages:"
                f" '{path}' is {chosen[1]!r}, must be 'never'"
            )
