"""What the synthetic guest and its clients say to each other in UDP. Pure.

A client numbers its requests, has one under way, and repeats it until it is answered. The guest counts each
number once, so a client's counter and its numbers rise together: a counter that is behind has lost what was
acknowledged, one that is ahead has counted something twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

SERVICE_PORT = 7777
FRAMES_PORT = 7778
"""Where the frames that nobody asked for are sent to, as broadcasts."""

CLIENTS_MAX = 1024

_REQUEST = struct.Struct(">4sBxHQ")
_REPLY = struct.Struct(">4sBBHQQQ")
_REPORT = struct.Struct(">10Q")
_NUMBER = struct.Struct(">4sQ")
_REQUEST_MAGIC, _REPLY_MAGIC, _FRAME_MAGIC = b"syn?", b"syn!", b"syn."


class Operation(IntEnum):
    """What a request asks for. COUNT_DURABLY is answered once a record of it is on the disk."""

    COUNT = 1
    COUNT_DURABLY = 2
    READ = 3
    VERIFY = 4
    REPORT = 5


class Status(IntEnum):
    """How it went. STALE: a later number of this client was counted before."""

    OK = 0
    STALE = 1
    DISK_ERROR = 2


@dataclass(frozen=True, slots=True)
class Request:
    """`sequence` counts up from the last one that READ tells; of what doesn't count it is any number."""

    operation: Operation
    client: int
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The guest about itself. `passes`: how often it has verified all that it consists of, and
    `contradictions`: what was found not to be as it must be, both since it was started first."""

    passes: int
    verifying: bool
    contradictions: int
    pages: int
    frames: int
    blocks: int
    requests: int
    activations: int
    disk_errors: int
    clock_ns: int


@dataclass(frozen=True, slots=True)
class Reply:
    """`asked` is the request's number. Then the last number of this client that was counted, and its counter;
    to VERIFY and REPORT, the report."""

    operation: Operation
    status: Status
    client: int
    asked: int
    sequence: int
    counter: int
    report: Report | None = None


def encode_request(request: Request) -> bytes:
    """A datagram's payload."""
    return _REQUEST.pack(_REQUEST_MAGIC, request.operation, request.client, request.sequence)


def decode_request(payload: bytes) -> Request | None:
    """None: it is none, or of a client that there can't be."""
    if len(payload) != _REQUEST.size:
        return None
    magic, operation, client, sequence = _REQUEST.unpack(payload)
    if magic != _REQUEST_MAGIC or client >= CLIENTS_MAX or operation not in _OPERATIONS:
        return None
    return Request(Operation(operation), client, sequence)


_OPERATIONS = frozenset(int(operation) for operation in Operation)


def encode_reply(reply: Reply) -> bytes:
    """A datagram's payload."""
    head = _REPLY.pack(
        _REPLY_MAGIC,
        reply.operation,
        reply.status,
        reply.client,
        reply.asked,
        reply.sequence,
        reply.counter,
    )
    if reply.report is None:
        return head
    report = reply.report
    return head + _REPORT.pack(
        report.passes,
        report.verifying,
        report.contradictions,
        report.pages,
        report.frames,
        report.blocks,
        report.requests,
        report.activations,
        report.disk_errors,
        report.clock_ns,
    )


def decode_reply(payload: bytes) -> Reply | None:
    """None: it is none."""
    if len(payload) not in (_REPLY.size, _REPLY.size + _REPORT.size) or not payload.startswith(_REPLY_MAGIC):
        return None
    _, operation, status, client, asked, sequence, counter = _REPLY.unpack_from(payload)
    report = None
    if len(payload) > _REPLY.size:
        passes, verifying, *rest = _REPORT.unpack_from(payload, _REPLY.size)
        report = Report(passes, bool(verifying), *rest)
    try:
        return Reply(Operation(operation), Status(status), client, asked, sequence, counter, report)
    except ValueError:
        return None


def encode_number(number: int, length: int) -> bytes:
    """The payload of a frame that nobody asked for: its number, from 0, in so many bytes."""
    return _NUMBER.pack(_FRAME_MAGIC, number).ljust(length, b"\0")


def decode_number(payload: bytes) -> int | None:
    """None: it is no such frame."""
    if len(payload) < _NUMBER.size or not payload.startswith(_FRAME_MAGIC):
        return None
    number: int = _NUMBER.unpack_from(payload)[1]
    return number
