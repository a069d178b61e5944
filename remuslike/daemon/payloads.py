"""What the frames of a session carry, besides pages and hellos. Pure.

Every `decode_…_untrusted` takes a peer's bytes, bounds what it allocates, and raises `PayloadError` for
anything malformed. All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import zstandard

from diskbuf import Extent, Kind, SealedWrites
from netbuf.tap import FRAME_BYTES_MAX, VNET_HEADER_BYTES
from remuslike.errors import PayloadError

# Device state of a machine is 5 to 100 KiB; a thousand times that is no guest of ours.
DEVICES_BYTES_MAX = 64 << 20

# An epoch's writes to one disk, or frames of one interface, travel in frames of about this size, half of
# transport's limit.
WRITES_FRAME_BYTES = 4 << 20

_ETHERNET_FRAME_BYTES_MIN = VNET_HEADER_BYTES + 14

_DISK = struct.Struct("<H")
_CHUNK = struct.Struct("<HQ")
_FRAMES = struct.Struct("<HI")  # the network interface, how many
_LENGTH = np.dtype("<u4")
_PARTS = struct.Struct("<I")
_DEVICES = struct.Struct("<BI")  # whether XORed with the state before, length
_ZSTD_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A disk chunk of the synchronisation, or (as `data`) the digests from chunk `index` on."""

    disk: int
    index: int
    data: bytes | memoryview


def encode_chunk(disk: int, index: int, data: bytes | bytearray | memoryview) -> list[bytes]:
    """A SYNC_DISK payload."""
    return [_CHUNK.pack(disk, index), zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(data)]


def decode_chunk_untrusted(payload: memoryview, chunk_bytes: int, disk_count: int) -> Chunk:
    """The chunk, decompressed, of at most `chunk_bytes`."""
    head = decode_digests_untrusted(payload, disk_count)
    return Chunk(head.disk, head.index, _decompress(memoryview(head.data), chunk_bytes))


def encode_digests(disk: int, first: int, digests: bytes) -> list[bytes]:
    """A DISK_DIGESTS payload."""
    return [_CHUNK.pack(disk, first), digests]


def decode_digests_untrusted(payload: memoryview, disk_count: int) -> Chunk:
    """The inverse of `encode_digests`."""
    if len(payload) < _CHUNK.size:
        raise PayloadError(f"a disk chunk of {len(payload)} bytes has no whole header of {_CHUNK.size}")
    disk, index = _CHUNK.unpack_from(payload)
    _check_disk(disk, disk_count)
    return Chunk(disk, index, payload[_CHUNK.size :])


def _check_disk(disk: int, disk_count: int) -> None:
    if disk >= disk_count:
        raise PayloadError(f"disk {disk} of a guest with {disk_count} buffered disks")


def encode_disk(disk: int) -> bytes:
    """The head of a DISK_WRITES payload; `diskbuf.encode_writes` gives the rest."""
    return _DISK.pack(disk)


def decode_disk_untrusted(payload: memoryview, disk_count: int) -> tuple[int, memoryview]:
    """The disk's number and the rest."""
    if len(payload) < _DISK.size:
        raise PayloadError(f"disk writes of {len(payload)} bytes have no whole header of {_DISK.size}")
    disk = _DISK.unpack_from(payload)[0]
    _check_disk(disk, disk_count)
    return disk, payload[_DISK.size :]


def split_writes(writes: SealedWrites) -> Iterator[SealedWrites]:
    """The same writes, in pieces that fit frames. No writes, no pieces."""
    piece: list[Extent] = []
    room = WRITES_FRAME_BYTES
    for extent in writes.extents:
        step = WRITES_FRAME_BYTES if extent.kind is Kind.DATA else extent.length
        for start in range(extent.offset, extent.end, step):
            part = extent.clip(start, start + step)
            cost = len(part.data) + 64
            if piece and cost > room:
                yield SealedWrites(tuple(piece))
                piece, room = [], WRITES_FRAME_BYTES
            piece.append(part)
            room -= cost
    if piece:
        yield SealedWrites(tuple(piece))


def encode_frames(nic: int, frames: Sequence[bytes]) -> Iterator[list[bytes]]:
    """NETWORK_FRAMES payloads: an interface's frames, virtio-net headers included, in pieces that fit."""
    start, size = 0, 0
    for end, frame in enumerate(frames, 1):
        size += len(frame) + _LENGTH.itemsize
        if size + FRAME_BYTES_MAX > WRITES_FRAME_BYTES or end == len(frames):
            piece = frames[start:end]
            lengths = np.fromiter(map(len, piece), _LENGTH, len(piece))
            yield [_FRAMES.pack(nic, len(piece)), lengths.tobytes(), *piece]
            start, size = end, 0


def decode_frames_untrusted(payload: memoryview, nic_count: int) -> tuple[int, list[bytes]]:
    """The interface's number, and its frames."""
    if len(payload) < _FRAMES.size:
        raise PayloadError(f"network frames of {len(payload)} bytes have no whole header of {_FRAMES.size}")
    nic, count = _FRAMES.unpack_from(payload)
    if nic >= nic_count:
        raise PayloadError(f"network interface {nic} of a guest with {nic_count}")
    begin = _FRAMES.size + count * _LENGTH.itemsize
    if begin > len(payload):
        raise PayloadError(f"{count} network frames in a payload of {len(payload)} bytes")
    lengths = np.frombuffer(payload[_FRAMES.size : begin], _LENGTH)
    if count and not _ETHERNET_FRAME_BYTES_MIN <= lengths.min() <= lengths.max() <= FRAME_BYTES_MAX:
        raise PayloadError(f"a network frame of {lengths.min()} to {lengths.max()} bytes")
    ends = begin + np.cumsum(lengths, dtype=np.int64)
    if (ends[-1] if count else begin) != len(payload):
        raise PayloadError(f"{count} network frames don't fill a payload of {len(payload)} bytes")
    bounds = [begin, *ends.tolist()]
    return nic, [bytes(payload[start:end]) for start, end in pairwise(bounds)]


def encode_parts(count: int) -> bytes:
    """An EPOCH_END payload: how many frames lie between it and EPOCH_BEGIN."""
    return _PARTS.pack(count)


def decode_parts_untrusted(payload: memoryview) -> int:
    """The inverse of `encode_parts`."""
    if len(payload) != _PARTS.size:
        raise PayloadError(f"the end of an epoch has {len(payload)} bytes, expected {_PARTS.size}")
    count: int = _PARTS.unpack(payload)[0]
    return count


class DevicesEncoder:
    """Device state as the XOR against the state before, if it has kept its length, compressed.

    Most of it never changes: 79 KB of a q35 become about 1 KB.
    """

    def __init__(self) -> None:
        self._previous = b""

    def encode(self, devices: bytes) -> list[bytes]:
        """A DEVICES payload."""
        same_length = len(devices) == len(self._previous)
        body = _xor(devices, self._previous) if same_length else devices
        self._previous = devices
        head = _DEVICES.pack(same_length, len(devices))
        return [head, zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(body)]


class DevicesDecoder:
    """The inverse, over the same sequence of states."""

    def __init__(self) -> None:
        self._previous = b""

    def decode_untrusted(self, payload: memoryview) -> bytes:
        """The device state."""
        if len(payload) < _DEVICES.size:
            raise PayloadError(f"device state of {len(payload)} bytes has no whole header")
        delta, length = _DEVICES.unpack_from(payload)
        if length > DEVICES_BYTES_MAX:
            raise PayloadError(f"device state of {length} bytes is over the limit of {DEVICES_BYTES_MAX}")
        body = _decompress(payload[_DEVICES.size :], length)
        if len(body) != length or (delta and length != len(self._previous)):
            raise PayloadError(
                f"device state of {len(body)} bytes, announced as {length}, after {len(self._previous)}"
            )
        self._previous = _xor(body, self._previous) if delta else body
        return self._previous


def _xor(left: bytes, right: bytes) -> bytes:
    return (np.frombuffer(left, np.uint8) ^ np.frombuffer(right, np.uint8)).tobytes()


def _decompress(data: memoryview, limit_bytes: int) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit_bytes:
            raise PayloadError(f"compressed data of {size} bytes is over the limit of {limit_bytes}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(limit_bytes, 1))
    except zstandard.ZstdError as error:
        raise PayloadError(f"compressed data is damaged: {error}") from error
