"""Make a userfaultfd inside a running, unmodified x86-64 process, with ptrace(2).

Linux tracks writes through a userfaultfd of the process that writes (`UFFD_FEATURE_WP_ASYNC`,
include/uapi/linux/userfaultfd.h, Linux 6.7), and QEMU makes none. So the process is stopped for
about a millisecond, one thread's registers are borrowed, three system calls are made through the
vDSO's `syscall` instruction, and the registers are put back.

Everything here must happen in one thread: to ptrace, another thread of ours is another tracer.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remuslike.errors import MissingToolError

# include/uapi/linux/ptrace.h, arch/x86/include/uapi/asm/ptrace-abi.h
_PTRACE_CONT, _PTRACE_SINGLESTEP, _PTRACE_GETREGS, _PTRACE_SETREGS, _PTRACE_DETACH = 7, 9, 12, 13, 17
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_GETSIGMASK, _PTRACE_SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_PTRACE_EVENT_STOP = 128

# arch/x86/entry/syscalls/syscall_64.tbl
_SYS_IOCTL, _SYS_CLOSE, _SYS_USERFAULTFD = 16, 3, 323

# include/uapi/linux/userfaultfd.h
_UFFD_API = 0xAA
_UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
_UFFD_FEATURE_WP_ASYNC = 1 << 15
_UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
_UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
_UFFDIO_REGISTER_MODE_WP = 2
_UFFD_USER_MODE_ONLY = 1

_FEATURES = _UFFD_FEATURE_WP_ASYNC | _UFFD_FEATURE_WP_UNPOPULATED | _UFFD_FEATURE_WP_HUGETLBFS_SHMEM
_API_REQUEST = struct.pack("QQQ", _UFFD_API, _FEATURES, 0)

_RED_ZONE_BYTES = 128  # System V ABI, x86-64, section 3.2.2: below the stack pointer, still in use
_SCRATCH_BYTES = 4096
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_SYSCALL_RESTART_NONE = (1 << 64) - 1
_MASK = (1 << 64) - 1


class _Registers(ctypes.Structure):
    """struct user_regs_struct, arch/x86/include/asm/user_64.h"""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
            "fs_base gs_base ds es fs gs"
        ).split()
    ]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int, data: int = 0, address: int = 0) -> None:
    ctypes.set_errno(0)
    if _libc.ptrace(request, pid, address, data) == -1 and (number := ctypes.get_errno()):
        raise OSError(number, os.strerror(number), f"ptrace request {request:#x} on process {pid}")


@dataclass(frozen=True, slots=True)
class Mapping:
    """A line of /proc/PID/maps."""

    start: int
    end: int
    offset: int
    inode: int
    name: str


def read_mappings(pid: int) -> list[Mapping]:
    """The address space of a process (proc(5), /proc/pid/maps)."""
    mappings = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _permissions, offset, _device, inode, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        mappings.append(Mapping(start, end, int(offset, 16), int(inode), name[0] if name else ""))
    return mappings


class _Borrowed:
    """A stopped thread of another process that makes system calls for us.

    Its signals are blocked meanwhile: one that is delivered would take the place of a call. They wait, and
    reach it when its mask is given back.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._saved = _Registers()
        self._mask = ctypes.c_uint64()
        _ptrace(_PTRACE_GETREGS, pid, ctypes.addressof(self._saved))
        _ptrace(_PTRACE_GETSIGMASK, pid, ctypes.addressof(self._mask), ctypes.sizeof(self._mask))
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._instruction = self._find_syscall_instruction()
            everything = ctypes.c_uint64(_MASK)
            _ptrace(_PTRACE_SETSIGMASK, pid, ctypes.addressof(everything), ctypes.sizeof(everything))
        except BaseException:
            os.close(self._memory)
            raise
        self._scratch = (self._saved.rsp - _RED_ZONE_BYTES - _SCRATCH_BYTES) & ~0xF

    def _find_syscall_instruction(self) -> int:
        for mapping in read_mappings(self._pid):
            if mapping.name == "[vdso]":
                code = os.pread(self._memory, mapping.end - mapping.start, mapping.start)
                if (offset := code.find(_SYSCALL_INSTRUCTION)) >= 0:
                    return mapping.start + offset
        raise MissingToolError(f"process {self._pid} has no vDSO with a syscall instruction to borrow")

    def system_call(self, number: int, *arguments: int) -> int:
        """Its result; OSError as the process would have seen it."""
        registers = _Registers.from_buffer_copy(self._saved)
        registers.rip = self._instruction
        registers.rax = number
        registers.orig_rax = _SYSCALL_RESTART_NONE
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(registers, name, value & _MASK)
        _ptrace(_PTRACE_SETREGS, self._pid, ctypes.addressof(registers))
        _ptrace(_PTRACE_SINGLESTEP, self._pid)
        status = _wait_stopped(self._pid)
        if os.WSTOPSIG(status) != signal.SIGTRAP:
            raise InterruptedError(f"signal {os.WSTOPSIG(status)} came within system call {number}")
        _ptrace(_PTRACE_GETREGS, self._pid, ctypes.addressof(registers))
        value = ctypes.c_longlong(registers.rax).value
        if -4096 < value < 0:
            raise OSError(-value, os.strerror(-value), f"system call {number} inside process {self._pid}")
        return value

    def ioctl(self, descriptor: int, request: int, argument: bytes) -> bytes:
        """`argument` as the kernel leaves it."""
        os.pwrite(self._memory, argument, self._scratch)
        self.system_call(_SYS_IOCTL, descriptor, request, self._scratch)
        return os.pread(self._memory, len(argument), self._scratch)

    def give_back(self) -> None:
        os.close(self._memory)
        _ptrace(_PTRACE_SETREGS, self._pid, ctypes.addressof(self._saved))
        _ptrace(_PTRACE_SETSIGMASK, self._pid, ctypes.addressof(self._mask), ctypes.sizeof(self._mask))


def _wait_stopped(pid: int) -> int:
    _, status = os.waitpid(pid, 0x40000000)  # __WALL, include/uapi/linux/wait.h
    if not os.WIFSTOPPED(status):
        raise ProcessLookupError(f"process {pid} ended while it was being attached to")
    return status


@contextmanager
def _borrow(pid: int) -> Iterator[_Borrowed]:
    """Seize the process's first thread, and leave it as it was found."""
    _ptrace(_PTRACE_SEIZE, pid)
    try:
        _ptrace(_PTRACE_INTERRUPT, pid)
        while (status := _wait_stopped(pid)) >> 16 != _PTRACE_EVENT_STOP:
            # A signal's delivery came first; the process gets it, and then the interruption.
            _ptrace(_PTRACE_CONT, pid, os.WSTOPSIG(status))
        borrowed = _Borrowed(pid)
        try:
            yield borrowed
        finally:
            borrowed.give_back()
    finally:
        _ptrace(_PTRACE_DETACH, pid)


def probe_write_protection() -> None:
    """MissingToolError unless this kernel has such a userfaultfd; tried on our own process."""
    descriptor = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
    try:
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        fcntl.ioctl(descriptor, _UFFDIO_API, _API_REQUEST)
    except OSError as error:
        raise MissingToolError(
            f"a write-protecting userfaultfd can't be had: {error}; it takes Linux 6.7 or later with"
            " CONFIG_USERFAULTFD"
        ) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def inject_write_protection(pid: int, start: int, length: int) -> int:
    """Register [start, start + length) of process `pid` for asynchronous write protection.

    Returns the number of the userfaultfd inside that process, which must stay open there.
    MissingToolError where the kernel or the process's seccomp filter refuses.
    """
    try:
        with _borrow(pid) as borrowed:
            descriptor = borrowed.system_call(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                borrowed.ioctl(descriptor, _UFFDIO_API, _API_REQUEST)
                region = struct.pack("QQQQ", start, length, _UFFDIO_REGISTER_MODE_WP, 0)
                borrowed.ioctl(descriptor, _UFFDIO_REGISTER, region)
            except OSError:
                borrowed.system_call(_SYS_CLOSE, descriptor)
                raise
            return descriptor
    except OSError as error:
        raise MissingToolError(
            f"process {pid} can't be given a write-protecting userfaultfd: {error}; dirty pages need Linux"
            " 6.7 or later, CAP_SYS_PTRACE, and a QEMU without a seccomp filter (-sandbox)"
        ) from error
