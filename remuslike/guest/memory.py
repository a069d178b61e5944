"""Guest RAM as an anonymous shared file, mapped by QEMU and by us.

A memfd has no name in the file system: when QEMU and the daemon are gone, so is it.
"""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np

from remuslike.engine.ports import PAGE_BYTES, Pages
from remuslike.errors import GuestError
from remuslike.guest.injection import Mapping, read_mappings

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

# Locked at a time: while the kernel populates it, no other thread of ours gets new memory.
_LOCK_BYTES = 64 << 20


class GuestMemory:
    """`memory_mib` of RAM; `pages` is (page_count, PAGE_BYTES), live and writable."""

    def __init__(self, memory_mib: int) -> None:
        self.length = memory_mib << 20
        self.page_count = self.length // PAGE_BYTES
        self.descriptor = os.memfd_create("remuslike-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.descriptor, self.length)
            self._mapping = mmap.mmap(self.descriptor, self.length)
        except OSError as error:
            os.close(self.descriptor)
            raise GuestError(f"guest.memory_mib = {memory_mib}: {error}") from error
        self.pages: Pages = np.frombuffer(self._mapping, np.uint8).reshape(-1, PAGE_BYTES)

    def find_in(self, pid: int) -> Mapping:
        """Where process `pid` maps this memory; GuestError unless it does so once and whole."""
        inode = os.fstat(self.descriptor).st_ino
        try:
            mappings = [m for m in read_mappings(pid) if m.inode == inode and "remuslike-ram" in m.name]
        except OSError as error:
            raise GuestError(f"QEMU (process {pid}) is gone: {error}") from error
        length = sum(m.end - m.start for m in mappings)
        # Touching in the address space and in the file: else page numbers would be those of other pages.
        in_step = all(m.start - mappings[0].start == m.offset for m in mappings)
        if not mappings or length != self.length or not in_step:
            raise GuestError(
                f"QEMU (process {pid}) maps {length} bytes of the guest's RAM in {len(mappings)} pieces,"
                f" expected {self.length} in one: something in the guest definition splits its RAM"
            )
        return Mapping(mappings[0].start, mappings[-1].end, 0, inode, mappings[0].name)

    def lock(self) -> None:
        """Have the kernel populate all of it, and keep it in memory from now on, never in swap; GuestError if
        it won't."""
        start = self.pages.ctypes.data
        for offset in range(0, self.length, _LOCK_BYTES):
            if _libc.mlock(start + offset, min(_LOCK_BYTES, self.length - offset)):
                reason = os.strerror(ctypes.get_errno())
                raise GuestError(
                    f"guest.memory_mib = {self.length >> 20}: can't be locked in memory: {reason}"
                )

    def close(self) -> None:
        """Let go of it; arrays over `pages` keep their part alive until they are gone too."""
        os.close(self.descriptor)
