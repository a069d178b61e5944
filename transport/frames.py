"""Frames on the link: a sans-IO codec.

A frame is a header of 28 bytes, little-endian, and a payload:

    offset  size  field
         0     4  magic          b"RMSL"
         4     2  version        1
         6     2  type           a FrameType
         8     4  length         bytes of payload, at most MAX_PAYLOAD_BYTES
        12     8  epoch          0 where the type has none
        20     4  payload_crc    CRC-32 (zlib) of the payload
        24     4  header_crc     CRC-32 (zlib) of bytes 0 to 23

The header has a checksum of its own so that a damaged length is found at once. With one checksum over the
whole frame it would be found only after as many bytes as it claims, which may never come.

Magic, version and the place of both stay the same in all versions: they are judged before the checksum.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from isal.isal_zlib import crc32

from transport.errors import (
    FrameError,
    FrameLengthError,
    FrameTypeError,
    HeaderChecksumError,
    MagicError,
    PayloadChecksumError,
    PayloadTooLongError,
    VersionError,
)

MAGIC: Final = b"RMSL"
VERSION: Final = 1

# A receiver holds one payload per link before it can judge it, so this bounds what a stranger can make it
# allocate. The largest payload of our own is 1024 incompressible pages (4 MiB); twice that leaves room for
# whatever the caller has that doesn't split well, such as the state of a guest with many devices.
MAX_PAYLOAD_BYTES: Final = 8 * 1024 * 1024

# One read into it takes in all the small frames of an epoch, or the start of a large one.
READ_BUFFER_BYTES: Final = 64 * 1024

_CHECKED_FIELDS: Final = struct.Struct("<4sHHIQI")
_CHECKSUM: Final = struct.Struct("<I")
_PREAMBLE: Final = struct.Struct("<4sH")
HEADER_BYTES: Final = _CHECKED_FIELDS.size + _CHECKSUM.size

_EPOCH_LIMIT: Final = 1 << 64

BytesLike: TypeAlias = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """What a frame's payload means. The numbers are the protocol: never renumber, only append."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    HEARTBEAT = 4
    DISK_DIGESTS = 5
    SYNC_PAGES = 6
    SYNC_DISK = 7
    EPOCH_BEGIN = 8
    PAGES = 9
    DEVICES = 10
    DISK_WRITES = 11
    EPOCH_END = 12
    ACKNOWLEDGE = 13
    GOODBYE = 14
    RELEASED = 15
    NETWORK_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Frame:
    """One received frame. The payload, read-only, is the receiver's to keep: its memory isn't used again."""

    type: FrameType
    epoch: int
    payload: memoryview


def encode_frame(type: FrameType, epoch: int, parts: Sequence[BytesLike]) -> list[BytesLike]:  # noqa: A002
    """The header, followed by `parts` as they are: what `sendmsg` wants, with no copy of the payload.

    Each part must be C-contiguous; a part's length is counted in bytes, whatever its item size. Raises
    `PayloadTooLongError` if the parts together exceed `MAX_PAYLOAD_BYTES`, `ValueError` if `epoch` isn't an
    unsigned number of 64 bits.
    """
    if not 0 <= epoch < _EPOCH_LIMIT:
        raise ValueError(f"epoch {epoch} doesn't fit 64 bits: epochs are counted from 0")
    length = 0
    payload_crc = 0
    for part in parts:
        length += memoryview(part).nbytes
        payload_crc = crc32(part, payload_crc)
    if length > MAX_PAYLOAD_BYTES:
        raise PayloadTooLongError(
            f"a {type.name} payload of {length} bytes exceeds the limit of {MAX_PAYLOAD_BYTES}: "
            "split it over several frames"
        )
    checked = _CHECKED_FIELDS.pack(MAGIC, VERSION, type, length, epoch, payload_crc)
    return [checked + _CHECKSUM.pack(crc32(checked)), *parts]


@dataclass(frozen=True, slots=True)
class PreparedFrame:
    """A frame as it goes onto the wire: `buffers`, none of them empty, one after another."""

    type: FrameType
    buffers: tuple[memoryview, ...]
    size_bytes: int


def prepare_frame(type: FrameType, epoch: int, parts: Sequence[BytesLike]) -> PreparedFrame:  # noqa: A002
    """As `encode_frame`; what takes time in sending a frame, its checksum, is then done.

    Releases the interpreter lock over large parts: worth a worker thread.
    """
    views = [
        memoryview(part).cast("B") for part in encode_frame(type, epoch, parts) if memoryview(part).nbytes
    ]
    return PreparedFrame(type, tuple(views), sum(map(len, views)))


@dataclass(frozen=True, slots=True)
class _Header:
    type: FrameType
    length: int
    epoch: int
    payload_crc: int

    def frame(self, payload: memoryview) -> Frame:
        found = crc32(payload)
        if found != self.payload_crc:
            raise PayloadChecksumError(
                f"{self.type.name} frame of epoch {self.epoch}: payload checksum {found:#010x}, "
                f"announced {self.payload_crc:#010x}: the bytes were damaged on the way; end the connection"
            )
        return Frame(self.type, self.epoch, payload.toreadonly())


class FrameReader:
    """Takes bytes in pieces of any size and gives back frames.

    Ask for `buffer()`, put bytes at its start, and say with `received(count)` how many. Small frames are read
    many at a time into one buffer; a frame that hasn't wholly arrived gets a buffer of its own, which takes
    in the rest of it without a further copy.

    After a `FrameError` the reader is dead: every later call raises the same error.
    """

    def __init__(self) -> None:
        # Between calls it holds less than one header: complete frames have left it, and so has the start of
        # an incomplete payload.
        self._shared = memoryview(bytearray(READ_BUFFER_BYTES))
        self._shared_bytes = 0
        self._header: _Header | None = None
        self._payload = memoryview(b"")
        self._payload_bytes = 0
        self._fault: FrameError | None = None

    @property
    def mid_frame(self) -> bool:
        """Whether part of a frame has arrived and the rest is missing."""
        return self._header is not None or self._shared_bytes > 0

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty, and valid until the next call of `received`."""
        if self._fault is not None:
            raise self._fault
        if self._header is not None:
            return self._payload[self._payload_bytes :]
        return self._shared[self._shared_bytes :]

    def judges_bytes(self, count: int) -> int:
        """How much `received(count)` is going to compute the checksum of, small frames left out."""
        if self._header is None or self._payload_bytes + count < self._header.length:
            return 0
        return self._header.length

    def received(self, count: int) -> list[Frame]:
        """The frames that `count` more bytes in `buffer()` have completed, in order.

        Raises a `FrameError` for bytes that aren't a frame of ours. Frames in front of the fault aren't lost,
        however the bytes were cut up: if there are any they are returned, and the next call raises.
        """
        room = len(self.buffer())
        if not 0 <= count <= room:
            raise ValueError(f"received {count} bytes into a buffer of {room}")
        frames: list[Frame] = []
        try:
            if self._header is None:
                self._shared_bytes += count
                self._take_shared(frames)
            else:
                self._payload_bytes += count
                self._take_payload(frames)
        except FrameError as fault:
            self._fault = fault
            if not frames:
                raise
        return frames

    def _take_payload(self, frames: list[Frame]) -> None:
        if self._header is None or self._payload_bytes < self._header.length:
            return
        frames.append(self._header.frame(self._payload))
        self._header = None
        self._payload = memoryview(b"")

    def _take_shared(self, frames: list[Frame]) -> None:
        start = 0
        while self._shared_bytes - start >= HEADER_BYTES:
            header = _decode_header_untrusted(self._shared[start : start + HEADER_BYTES])
            start += HEADER_BYTES
            end = start + header.length
            if end > self._shared_bytes:
                self._begin_payload(header, self._shared[start : self._shared_bytes])
                return
            frames.append(header.frame(memoryview(bytes(self._shared[start:end]))))
            start = end
        rest = bytes(self._shared[start : self._shared_bytes])
        _refuse_foreign_preamble(rest)
        self._shared[: len(rest)] = rest
        self._shared_bytes = len(rest)

    def _begin_payload(self, header: _Header, head: memoryview) -> None:
        self._header = header
        self._payload = memoryview(bytearray(header.length))
        self._payload[: len(head)] = head
        self._payload_bytes = len(head)
        self._shared_bytes = 0


def _decode_header_untrusted(header: memoryview) -> _Header:
    _refuse_foreign_preamble(bytes(header[: _PREAMBLE.size]))
    _, _, type_number, length, epoch, payload_crc = _CHECKED_FIELDS.unpack_from(header)
    (announced,) = _CHECKSUM.unpack_from(header, _CHECKED_FIELDS.size)
    found = crc32(header[: _CHECKED_FIELDS.size])
    if found != announced:
        raise HeaderChecksumError(
            f"frame header checksum {found:#010x}, announced {announced:#010x}: "
            "the bytes were damaged on the way; end the connection"
        )
    try:
        frame_type = FrameType(type_number)
    except ValueError:
        raise FrameTypeError(
            f"frame type {type_number} is unknown to protocol version {VERSION}: end the connection"
        ) from None
    if length > MAX_PAYLOAD_BYTES:
        raise FrameLengthError(
            f"{frame_type.name} frame of {length} bytes exceeds the limit of {MAX_PAYLOAD_BYTES}: "
            "the peer must split it; end the connection"
        )
    return _Header(frame_type, length, epoch, payload_crc)


def _refuse_foreign_preamble(start: bytes) -> None:
    """Judge magic and version as soon as they are there: a stranger may never send a whole header."""
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise MagicError(
            f"frame starts with {start[: len(MAGIC)]!r} instead of {MAGIC!r}: "
            "the peer doesn't speak this protocol; check which program listens at its address"
        )
    if len(start) >= _PREAMBLE.size:
        _, version = _PREAMBLE.unpack_from(start)
        if version != VERSION:
            raise VersionError(
                f"the peer speaks protocol version {version}, this side version {VERSION}: "
                "install the same release on both"
            )
