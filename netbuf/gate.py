"""A gate in front of a hold: while it is open the kernel passes the guest's frames without this process.

A hold that is opened while its guest runs has frames in its queue that later ones must not overtake. Only the
kernel can say that none has come since the queue was empty, so the gate counts what it keeps back, and opens
on the condition that it has kept no more than we have dealt with (`gatewire`).

A gate passes nothing by itself: what becomes of a passed frame is the action of the filter in which it runs.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
from contextlib import suppress
from typing import Protocol

import structlog

from netbuf.errors import HostError, KernelModuleError, KernelRefusedError, NetbufError, PrivilegeError
from netbuf.gatewire import (
    KEPT,
    NEVER,
    NUMBERS_BYTES,
    PASS_AFTER,
    PASSED,
    PASSED_BYTES,
    Command,
    GateReading,
    map_attributes,
    program,
    program_attributes,
)
from netbuf.redirect import Network

_SYSCALLS = {"x86_64": 321, "aarch64": 280}  # of bpf(2)
_LICENCE = b"MIT"
_CLOSED = -1

_log = structlog.get_logger(__name__)


class Gate(Protocol):
    """What a hold needs of its gate; shut at first. No call waits for anything, or raises."""

    def reading(self) -> GateReading:
        """The counters."""
        ...

    def pass_after(self, kept_items: int) -> None:
        """Pass whatever comes from now on, unless more than `kept_items` have been kept already.

        In that case it stays shut, until it is asked again with a number that takes them in.
        """
        ...

    def shut(self) -> None:
        """Keep whatever comes from now on."""
        ...

    def close(self) -> None:
        """Shut for ever. Idempotent."""
        ...


class NoGate:
    """Where the kernel can't have one: always shut."""

    def reading(self) -> GateReading:
        """Nothing, ever: the frames that it keeps are not counted."""
        return GateReading()

    def pass_after(self, kept_items: int) -> None:
        """It stays shut."""

    def shut(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing to close."""


class KernelGate:
    """The real one; `program_fileno` is to be attached where the guest's frames come in."""

    def __init__(self) -> None:
        """Load it. Raises `PrivilegeError`, `KernelModuleError` or `KernelRefusedError`."""
        self._program = _CLOSED
        numbers = _bpf(Command.MAP_CREATE, map_attributes())
        try:
            self._program = _load(numbers)
            self._memory = mmap.mmap(numbers, mmap.PAGESIZE)
        except (OSError, NetbufError) as error:
            self.forget_program()
            if isinstance(error, OSError):
                raise _refused(error) from error
            raise
        finally:
            os.close(numbers)  # mapping and program keep the map
        self._view = memoryview(self._memory)[:NUMBERS_BYTES]
        self._numbers = self._view.cast("Q")  # each number is stored by one instruction
        self._last = GateReading()
        self._closed = False
        self.shut()

    def program_fileno(self) -> int:
        """Descriptor of the program; -1 once forgotten."""
        return self._program

    def forget_program(self) -> None:
        """Close that descriptor; wherever the program has been attached it stays. Idempotent."""
        descriptor, self._program = self._program, _CLOSED
        if descriptor != _CLOSED:
            with suppress(OSError):
                os.close(descriptor)

    def reading(self) -> GateReading:
        """The counters, out of shared memory; the last ones once closed."""
        if not self._closed:
            numbers = self._numbers
            self._last = GateReading(numbers[KEPT], numbers[PASSED], numbers[PASSED_BYTES])
        return self._last

    def pass_after(self, kept_items: int) -> None:
        """One store; nothing once closed."""
        if not self._closed:
            self._numbers[PASS_AFTER] = kept_items

    def is_open(self) -> bool:
        """Whether a frame that came now would pass."""
        return not self._closed and self._numbers[KEPT] == self._numbers[PASS_AFTER]

    def shut(self) -> None:
        """One store."""
        if not self._closed:
            self._numbers[PASS_AFTER] = NEVER

    def close(self) -> None:
        """Shut, and unmap. The program goes with the last filter in which it runs."""
        if not self._closed:
            self.shut()
            self.reading()
            self._closed = True
            self.forget_program()
            self._numbers.release()
            self._view.release()
            self._memory.close()


def make_gate(network: Network, guest: str, target: str | None) -> Gate:
    """A gate before the redirect of the tap `guest`; `target` as of `Network.attach_gate`.

    A kernel that has no gates is no fault: then frames go through the hold, in order, while it is open too.
    Raises `InterfaceVanishedError`.
    """
    try:
        gate = KernelGate()
    except HostError as error:
        return _no_gate(guest, error)
    try:
        network.attach_gate(guest, gate.program_fileno(), target)
    except NetbufError as error:
        gate.close()
        if isinstance(error, HostError):
            return _no_gate(guest, error)
        raise
    gate.forget_program()
    return gate


def _no_gate(guest: str, error: HostError) -> Gate:
    _log.info("no gate: while the hold is open frames go through it", guest=guest, reason=str(error))
    return NoGate()


def _load(numbers: int) -> int:
    instructions = program(numbers)
    code = ctypes.create_string_buffer(b"".join(instructions))
    licence = ctypes.create_string_buffer(_LICENCE)
    attributes = program_attributes(ctypes.addressof(code), len(instructions), ctypes.addressof(licence))
    return _bpf(Command.PROG_LOAD, attributes)


def _bpf(command: Command, attributes: bytes) -> int:
    """The new descriptor, which is close-on-exec."""
    syscall = _SYSCALLS.get(platform.machine())
    if syscall is None:
        raise KernelModuleError(f"a gate on {platform.machine()}: its number of bpf(2) is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    union = ctypes.create_string_buffer(attributes, len(attributes))
    size = ctypes.c_uint(len(attributes))
    descriptor: int = libc.syscall(ctypes.c_long(syscall), ctypes.c_int(command), union, size)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise _refused(OSError(code, os.strerror(code)))
    return descriptor


def _refused(error: OSError) -> NetbufError:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return PrivilegeError("a gate needs CAP_BPF and CAP_NET_ADMIN; run as root or grant them")
        case errno.ENOSYS:
            return KernelModuleError("a gate: this kernel is built without bpf(2); take the distribution's")
        case _:
            return KernelRefusedError(f"a gate: bpf(2) failed: {error.strerror}; see the kernel log")
