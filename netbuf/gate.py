"""A gate in front of a hold: while it is open the kernel passes the guest's frames without this process.

A hold that is opened while its guest runs has frames in its queue that later ones must not overtake. Only the
kernel can say that none has come since the queue was empty, so the gate counts what it keeps back, and opens
on the condition that it has kept no more than we have dealt with (`gatewire`).

A gate passes nothing by itself: what becomes of a passed frame is the action of the filter in which it runs.

It also says when it keeps a frame, once, to whoever has asked for that: a descriptor gets readable.
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
    TELL_AFTER,
    Command,
    GateReading,
    map_attributes,
    program,
    program_attributes,
    ring_attributes,
)
from netbuf.packets import PacketNotice
from netbuf.redirect import Network

_SYSCALLS = {"x86_64": 321, "aarch64": 280}  # of bpf(2)
_LICENCE = b"MIT"
_CLOSED = -1
_POSITION_BYTES = 8  # in a ring buffer

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

    def tell_after(self, kept_items: int) -> None:
        """Notify when a frame is kept of which more than `kept_items` have been kept before, once.

        Earlier notices are forgotten. Compare the counter afterwards: a frame may have come just before.
        """
        ...

    def notice_fileno(self) -> int:
        """Descriptor that is readable while there is a notice; -1 once closed, or if it never will be."""
        ...

    def take_notice(self) -> bool:
        """Whether a frame has been kept as `tell_after` asked; the descriptor is not readable any more."""
        ...

    def close(self) -> None:
        """Shut for ever. Idempotent."""
        ...


class NoGate:
    """Where the kernel can't have one: always shut. Notices are a packet socket's."""

    def __init__(self, notice: PacketNotice | None = None) -> None:
        """`notice` tells of the guest's frames, if anybody is to be told; it is closed with this."""
        self._notice = notice

    def reading(self) -> GateReading:
        """Nothing, ever: the frames that it keeps are not counted."""
        return GateReading()

    def pass_after(self, kept_items: int) -> None:
        """It stays shut."""

    def shut(self) -> None:
        """It is."""

    def tell_after(self, kept_items: int) -> None:
        """Of the next frame: how many have been kept is not known here."""
        if self._notice is not None:
            self._notice.arm()

    def notice_fileno(self) -> int:
        """Of the packet socket."""
        return _CLOSED if self._notice is None else self._notice.fileno()

    def take_notice(self) -> bool:
        """Whether a frame has come since it was asked for."""
        return self._notice is not None and self._notice.take()

    def close(self) -> None:
        """Close the packet socket."""
        if self._notice is not None:
            self._notice.close()


class KernelGate:
    """The real one; `program_fileno` is to be attached where the guest's frames come in."""

    def __init__(self) -> None:
        """Load it. Raises `PrivilegeError`, `KernelModuleError` or `KernelRefusedError`."""
        self._program = _CLOSED
        numbers = _bpf(Command.MAP_CREATE, map_attributes())
        try:
            self._ring = _Ring()
            try:
                self._program = _load(numbers, self._ring.fileno())
                self._memory = mmap.mmap(numbers, mmap.PAGESIZE)
            except BaseException:
                self._ring.close()
                raise
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
        self._numbers[TELL_AFTER] = NEVER
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

    def tell_after(self, kept_items: int) -> None:
        """One store; nothing once closed."""
        if not self._closed:
            self._ring.empty()
            self._numbers[TELL_AFTER] = kept_items

    def notice_fileno(self) -> int:
        """Of the ring buffer."""
        return self._ring.fileno()

    def take_notice(self) -> bool:
        """By the counter: the record says no more than that it is worth a look."""
        if self._closed:
            return False
        self._ring.empty()
        return self._numbers[KEPT] > self._numbers[TELL_AFTER]

    def close(self) -> None:
        """Shut, and unmap. The program goes with the last filter in which it runs."""
        if not self._closed:
            self.shut()
            self._numbers[TELL_AFTER] = NEVER
            self.reading()
            self._closed = True
            self._ring.close()
            self.forget_program()
            self._numbers.release()
            self._view.release()
            self._memory.close()


class _Ring:
    """A BPF ring buffer, of whose records nobody reads more than that they are there."""

    def __init__(self) -> None:
        """Make it, of one page. Raises what the kernel refuses it with."""
        page = mmap.PAGESIZE
        self._descriptor = _bpf(Command.MAP_CREATE, ring_attributes(page))
        try:
            # The kernel's layout: a page with the reader's position, one with the writer's, then the records.
            self._reader = mmap.mmap(self._descriptor, page)
            self._writer = mmap.mmap(self._descriptor, page, prot=mmap.PROT_READ, offset=page)
        except OSError:
            os.close(self._descriptor)
            raise

    def fileno(self) -> int:
        """Readable while a record is there; -1 once closed."""
        return self._descriptor

    def empty(self) -> None:
        """Take all that is there for read."""
        self._reader[:_POSITION_BYTES] = self._writer[:_POSITION_BYTES]

    def close(self) -> None:
        """Unmap and close. The program keeps the ring. Idempotent."""
        descriptor, self._descriptor = self._descriptor, _CLOSED
        if descriptor != _CLOSED:
            self._reader.close()
            self._writer.close()
            os.close(descriptor)


def make_gate(network: Network, guest: str, target: str | None, *, notices: bool = False) -> Gate:
    """A gate before the redirect of the tap `guest`; `target` as of `Network.attach_gate`.

    A kernel that has no gates is no fault: then frames go through the hold, in order, while it is open too;
    with `notices`, a packet socket tells of them. Raises `InterfaceVanishedError`, `KernelRefusedError`.
    """
    try:
        gate = KernelGate()
    except HostError as error:
        return _no_gate(guest, error, notices=notices)
    try:
        network.attach_gate(guest, gate.program_fileno(), target)
    except NetbufError as error:
        gate.close()
        if isinstance(error, HostError):
            return _no_gate(guest, error, notices=notices)
        raise
    gate.forget_program()
    return gate


def _no_gate(guest: str, error: HostError, *, notices: bool) -> Gate:
    _log.info("no gate: while the hold is open frames go through it", guest=guest, reason=str(error))
    if not notices:
        return NoGate()
    try:
        return NoGate(PacketNotice(guest))
    except OSError as refusal:
        raise KernelRefusedError(
            f"a packet socket on {guest!r} failed: {refusal.strerror}; see the kernel log"
        ) from refusal


def _load(numbers: int, ring: int) -> int:
    instructions = program(numbers, ring)
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
