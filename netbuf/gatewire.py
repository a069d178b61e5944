"""The program of a gate, and what bpf(2) is asked with to load it. Pure.

The kernel runs it for each frame that the guest tap has received:

    if kept == pass_after:  count the frame as passed, and match
    else:                   kept += 1, notify if it was tell_after until then, and leave it to the next filter

The five numbers are shared with this process. Each has one writer: `pass_after` and `tell_after` are ours,
the others are the kernel's. So "pass from now on, unless one more was kept meanwhile" is a single store, with
no instant between the question and the answer; and once a frame is kept, so are all that follow it.

To notify is to put a record into a ring buffer, whose descriptor gets readable. As `kept` rises, that happens
for one frame only, and costs the others one comparison. The frame is counted before `tell_after` is read: so
who stores `tell_after` and finds `kept` unchanged after that will be notified of the next frame.

Instructions are those of linux/bpf.h (their reference: Documentation/bpf/standardization of the kernel), in
the machine's own byte order.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum
from typing import NamedTuple

KEPT, PASS_AFTER, PASSED, PASSED_BYTES, TELL_AFTER = range(5)
"""Where each of the numbers is; 64 bits each."""

NUMBERS_BYTES = 5 * 8

NEVER = (1 << 64) - 1
"""A `pass_after` or `tell_after` that `kept` doesn't reach."""

# bpf(2) numbers its registers; the first holds the kernel's argument, register 0 the answer.
# A call takes its arguments from 1 to 5, and leaves those from 6 on as they are.
_ANSWER, _FRAME, _LEFT, _RIGHT, _ONE, _NUMBERS = 0, 1, 2, 3, 4, 6

_SET, _COPY, _JUMP_UNLESS_EQUAL, _CALL, _EXIT = 0xB7, 0xBF, 0x5D, 0x85, 0x95
_LOAD_32, _LOAD_64 = 0x61, 0x79
_ADD_64_ATOMICALLY = 0xDB
_LOAD_ADDRESS = 0x18
_OF_MAP, _OF_MAP_VALUE = 1, 2  # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE
_RING_OUTPUT = 130  # bpf_ringbuf_output(map, data, size, flags)
_WAKE = 2  # BPF_RB_FORCE_WAKEUP
_RECORD_BYTES = 8

_LENGTH = 0  # offset of `len` in struct __sk_buff: from the Ethernet header on

# What a classifier answers (net/sched/cls_bpf.c).
_MATCH, _NEXT_FILTER = -1, 0

_ARRAY, _MAPPABLE = 2, 1 << 10  # BPF_MAP_TYPE_ARRAY, BPF_F_MMAPABLE
_RING = 27  # BPF_MAP_TYPE_RINGBUF
_CLASSIFIER = 3  # BPF_PROG_TYPE_SCHED_CLS


class Command(IntEnum):
    """Of bpf(2)."""

    MAP_CREATE = 0
    PROG_LOAD = 5


class GateReading(NamedTuple):
    """What a gate has done since it was made. Bytes are from the Ethernet header on."""

    kept_items: int = 0
    passed_items: int = 0
    passed_bytes: int = 0


def map_attributes() -> bytes:
    """MAP_CREATE: an array whose one element, the numbers, can be mapped into memory."""
    key_bytes, elements = 4, 1
    return struct.pack("=IIIII", _ARRAY, key_bytes, NUMBERS_BYTES, elements, _MAPPABLE)


def ring_attributes(size_bytes: int) -> bytes:
    """MAP_CREATE: a ring buffer of `size_bytes`, which is a power of two and whole pages."""
    return struct.pack("=IIIII", _RING, 0, 0, size_bytes, 0)


def program_attributes(instructions: int, count: int, licence: int) -> bytes:
    """PROG_LOAD: `instructions` and `licence` are the addresses of a program and of a string."""
    return struct.pack("=IIQQ", _CLASSIFIER, count, instructions, licence)


def program(numbers: int, ring: int) -> list[bytes]:
    """The instructions, 8 bytes each, for the maps that are open as descriptors `numbers` and `ring`."""
    passing = [
        _instruction(_LOAD_32, _LEFT, _FRAME, _LENGTH),
        _instruction(_ADD_64_ATOMICALLY, _NUMBERS, _LEFT, 8 * PASSED_BYTES),
        _instruction(_SET, _LEFT, value=1),
        _instruction(_ADD_64_ATOMICALLY, _NUMBERS, _LEFT, 8 * PASSED),
        _instruction(_SET, _ANSWER, value=_MATCH),
        _instruction(_EXIT),
    ]
    notifying = [
        *_address(1, _OF_MAP, ring),
        _instruction(_COPY, 2, _NUMBERS),  # any bytes will do
        _instruction(_SET, 3, value=_RECORD_BYTES),
        _instruction(_SET, 4, value=_WAKE),
        _instruction(_CALL, value=_RING_OUTPUT),
    ]
    keeping = [
        _instruction(_SET, _ONE, value=1),
        _instruction(_ADD_64_ATOMICALLY, _NUMBERS, _ONE, 8 * KEPT),
        _instruction(_LOAD_64, _RIGHT, _NUMBERS, 8 * TELL_AFTER),
        _instruction(_JUMP_UNLESS_EQUAL, _LEFT, _RIGHT, len(notifying)),
        *notifying,
        _instruction(_SET, _ANSWER, value=_NEXT_FILTER),
        _instruction(_EXIT),
    ]
    return [
        *_address(_NUMBERS, _OF_MAP_VALUE, numbers),
        _instruction(_LOAD_64, _LEFT, _NUMBERS, 8 * KEPT),
        _instruction(_LOAD_64, _RIGHT, _NUMBERS, 8 * PASS_AFTER),
        _instruction(_JUMP_UNLESS_EQUAL, _LEFT, _RIGHT, len(passing)),
        *passing,
        *keeping,
    ]


def _address(target: int, kind: int, descriptor: int) -> tuple[bytes, bytes]:
    """Load what the kernel puts in the place of a map's descriptor; two instructions long."""
    return _instruction(_LOAD_ADDRESS, target, kind, value=descriptor), _instruction(0)


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """struct bpf_insn, whose two registers share a byte in the order of the machine's bits."""
    registers = source << 4 | target if sys.byteorder == "little" else target << 4 | source
    return struct.pack("=BBhi", code, registers, offset, value)
