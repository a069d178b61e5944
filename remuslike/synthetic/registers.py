"""What the synthetic guest's processor and devices hold, and its form as device state. Pure.

How far it has come is in here; what it made is in RAM and on the disk. So a takeover that mixed the device
state of one epoch with the RAM or the disk of another is found out by comparing.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from remuslike.synthetic.errors import DeviceStateError

_MAGIC = b"synthetic-1\n"
_COUNTERS = struct.Struct("<9Q")
_LENGTH = struct.Struct("<I")
_CHECKSUM = struct.Struct("<I")

TRANSMIT_FRAMES_MAX = 4096
"""Frames that wait for the interface: above what all clients together have under way. At the limit the one
that has waited longest is lost, as frames may be."""


@dataclass(slots=True)
class Registers:
    """`clock_ns` is the guest's own time. `pages`, `frames` and `blocks` count what was done; with what was
    skipped, because it fell too far behind, that is what was due. `transmit`: frames that have to leave."""

    clock_ns: int = 0
    pages: int = 0
    pages_skipped: int = 0
    frames: int = 0
    frames_skipped: int = 0
    blocks: int = 0
    blocks_skipped: int = 0
    requests: int = 0
    activations: int = 0
    transmit: deque[bytes] = field(default_factory=lambda: deque(maxlen=TRANSMIT_FRAMES_MAX))


def encode_registers(registers: Registers, guest: bytes) -> bytes:
    """The device state, of the guest that these bytes name."""
    counters = _COUNTERS.pack(
        registers.clock_ns,
        registers.pages,
        registers.pages_skipped,
        registers.frames,
        registers.frames_skipped,
        registers.blocks,
        registers.blocks_skipped,
        registers.requests,
        registers.activations,
    )
    parts = [_MAGIC, *_field(guest), counters]
    for frame in registers.transmit:
        parts += _field(frame)
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def _field(value: bytes) -> tuple[bytes, bytes]:
    return _LENGTH.pack(len(value)), value


def decode_registers(state: bytes, guest: bytes) -> Registers:
    """Raises DeviceStateError unless it is whole and of this guest."""
    body, checksum = state[: -_CHECKSUM.size], state[-_CHECKSUM.size :]
    if not body.startswith(_MAGIC) or checksum != _CHECKSUM.pack(zlib.crc32(body)):
        raise DeviceStateError(f"device state of {len(state)} bytes is damaged, or not a synthetic guest's")
    named, offset = _read_field(body, len(_MAGIC))
    if named != guest:
        raise DeviceStateError(f"device state is of the guest {named!r}, this one is {guest!r}")
    counters = _COUNTERS.unpack_from(body, offset)
    registers = Registers(*counters)
    registers.transmit.extend(_read_fields(body, offset + _COUNTERS.size))
    return registers


def _read_field(body: bytes, offset: int) -> tuple[bytes, int]:
    (length,) = _LENGTH.unpack_from(body, offset)
    start = offset + _LENGTH.size
    return body[start : start + length], start + length


def _read_fields(body: bytes, offset: int) -> Iterator[bytes]:
    while offset < len(body):
        value, offset = _read_field(body, offset)
        yield value
