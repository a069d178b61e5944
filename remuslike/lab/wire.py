"""What is said between `machine` outside the lab and `agent` inside. Pure.

Frames: kind (1 byte), length of the payload (4 bytes, big-endian), payload.

    outside                 inside
                          <- READY
    RUN request           ->
                          <- OUTPUT bytes, ERRORS bytes, any number
    KILL (if need be)     ->
                          <- EXIT status
    END                   ->

One command runs at a time. KILL may cross EXIT: then nothing runs any more, and it is ignored. END kills a
command that runs.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum

_HEADER = struct.Struct(">BI")
_STATUS = struct.Struct(">i")

PAYLOAD_LIMIT_BYTES = 1 << 20
"""A request has arguments and environment; execve(2) takes about as much by default. Output comes in less."""

OUTPUT_CHUNK_BYTES = 1 << 16
"""What a Linux pipe holds (pipe(7)), so that one read empties it."""


class WireError(Exception):
    """The other side's fault: bytes that are no frame, or a payload that isn't what its kind says."""


class Kind(IntEnum):
    """The kinds of frames."""

    READY = 1
    RUN = 2
    OUTPUT = 3
    ERRORS = 4
    KILL = 5
    EXIT = 6
    END = 7


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, whole."""

    kind: Kind
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Request:
    """A command: its arguments, where to run it, and its whole environment."""

    arguments: tuple[str, ...]
    directory: str
    environment: Mapping[str, str]


class Decoder:
    """Makes frames out of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame]:
        """The frames that `received` completes. Raises WireError; nothing can be fed after that."""
        self._buffer += received
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            if kind not in Kind.__members__.values():
                raise WireError(f"a frame's kind is {kind}; {min(Kind):d} to {max(Kind):d} were expected")
            if length > PAYLOAD_LIMIT_BYTES:
                raise WireError(f"a frame's length is {length}; {PAYLOAD_LIMIT_BYTES} is the limit")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Frame(Kind(kind), payload)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame. Raises WireError for a payload over the limit."""
    if len(frame.payload) > PAYLOAD_LIMIT_BYTES:
        raise WireError(f"a payload has {len(frame.payload)} bytes; {PAYLOAD_LIMIT_BYTES} is the limit")
    return _HEADER.pack(frame.kind, len(frame.payload)) + frame.payload


def encode_request(request: Request) -> bytes:
    """The payload of RUN."""
    return json.dumps(asdict(request)).encode()


def decode_request(payload: bytes) -> Request:
    """The request in a RUN. Raises WireError."""
    try:
        fields = json.loads(payload)
        arguments, directory, environment = (
            fields[name] for name in ("arguments", "directory", "environment")
        )
        texts = [*arguments, directory, *environment, *environment.values()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"a RUN can't be understood: {error!r}") from None
    if not arguments or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise WireError("a RUN has no arguments, or something in it that is no text of execve(2)")
    return Request(tuple(arguments), directory, environment)


def encode_status(status: int) -> bytes:
    """The payload of EXIT: an exit status, or minus the number of the signal that ended the command."""
    return _STATUS.pack(status)


def decode_status(payload: bytes) -> int:
    """The status in an EXIT. Raises WireError."""
    try:
        (status,) = _STATUS.unpack(payload)
    except struct.error as error:
        raise WireError(f"an EXIT has {len(payload)} bytes: {error}") from None
    return int(status)
