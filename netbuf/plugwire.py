"""Prepared rtnetlink messages to one plug qdisc and its interface, and what the kernel answers.

Pure. Layouts are those of linux/netlink.h, linux/rtnetlink.h, linux/pkt_sched.h, linux/gen_stats.h and
linux/if_link.h, in the machine's own byte order. A change asks for an echo (NLM_F_ECHO): the kernel answers
it with the qdisc as it is after the change, counters included, so that sealing and counting are one message.
No acknowledgement is asked for: the one answer is the reading or an error.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from netbuf.errors import KernelRefusedError

# The major number of our qdisc. A request that names it is refused if somebody has put another in its place.
PLUG_HANDLE = 0x9B0F_0000

# The kernel answers one request with one message of some 200 bytes.
ANSWER_BYTES_MAX = 8192

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_TRAFFIC = struct.Struct("=BBHiIII")  # struct tcmsg: family, padding, index, handle, parent, information
_STATISTICS = struct.Struct("=BBHII")  # struct if_stats_msg: family, padding, index, filter mask
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_PLUG = struct.Struct("=iI")  # struct tc_plug_qopt: action, limit
_QUEUE = struct.Struct("=IIIII")  # struct gnet_stats_queue: length, backlog, drops, requeues, overlimits
_LINK = struct.Struct("=8Q")  # the head of struct rtnl_link_stats64, from rx_packets to tx_dropped
_ERROR = struct.Struct("=i")  # the head of struct nlmsgerr

_ERROR_TYPE = 2  # NLMSG_ERROR
_NEW_QDISC, _GET_QDISC = 36, 38
_NEW_STATISTICS, _GET_STATISTICS = 92, 94
_REQUEST, _ECHO = 1, 8  # NLM_F_*
_ROOT = 0xFFFF_FFFF  # TC_H_ROOT
_KIND, _OPTIONS, _STATS2 = 1, 2, 7  # TCA_*
_STATS_QUEUE = 3  # TCA_STATS_QUEUE
_STATS_LINK = 1  # IFLA_STATS_LINK_64
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK
_SEQUENCE_OFFSET = 8


class PlugAction(IntEnum):
    """What a plug qdisc can be told (linux/pkt_sched.h)."""

    BUFFER = 0
    RELEASE_ONE = 1
    RELEASE_INDEFINITE = 2


class QueueReading(NamedTuple):
    """What waits in the qdisc. Bytes are as on the wire: a GSO frame counts with all its headers."""

    items: int
    size_bytes: int
    dropped_items: int


class PassageReading(NamedTuple):
    """What the IFB has been given by its qdisc and has given back to the tap, since it was made.

    `lost_items` of the `left_items` went nowhere, for their tap is gone or they never had one.
    """

    given_items: int
    left_items: int
    left_bytes: int
    lost_items: int


class Answer(NamedTuple):
    """One message of the kernel: an error number, or a reading."""

    sequence: int
    error: int | None = None
    queue: QueueReading | None = None
    passage: PassageReading | None = None


def change_message(index: int, action: PlugAction) -> bytearray:
    """RTM_NEWQDISC: do `action` on the plug of interface `index`, and echo."""
    body = _traffic(index) + _attribute(_KIND, b"plug\0") + _attribute(_OPTIONS, _PLUG.pack(action, 0))
    return _message(_NEW_QDISC, _REQUEST | _ECHO, body)


def queue_message(index: int) -> bytearray:
    """RTM_GETQDISC of the plug of interface `index`. Kernels before 6.8 answer it by echo only."""
    return _message(_GET_QDISC, _REQUEST | _ECHO, _traffic(index))


def passage_message(index: int) -> bytearray:
    """RTM_GETSTATS of interface `index`."""
    body = _STATISTICS.pack(0, 0, 0, index, 1 << (_STATS_LINK - 1))
    return _message(_GET_STATISTICS, _REQUEST, body)


def number(message: bytearray, sequence: int) -> None:
    """Give a prepared message the sequence number that its answers will carry."""
    struct.pack_into("=I", message, _SEQUENCE_OFFSET, sequence)


def answers(data: bytes | memoryview) -> Iterator[Answer]:
    """The messages of one datagram; those of other kinds are left out.

    Raises `KernelRefusedError` for a datagram that doesn't keep to its own lengths.
    """
    for kind, sequence, body in _messages(memoryview(data)):
        if kind == _ERROR_TYPE:
            yield Answer(sequence, error=-_unpack(_ERROR, body)[0])
        elif kind == _NEW_QDISC:
            nested = _found(_found(body[_TRAFFIC.size :], _STATS2), _STATS_QUEUE)
            length, backlog, drops, _, _ = _unpack(_QUEUE, nested)
            yield Answer(sequence, queue=QueueReading(length, backlog, drops))
        elif kind == _NEW_STATISTICS:
            counters = _unpack(_LINK, _found(body[_STATISTICS.size :], _STATS_LINK))
            given, left, _, left_bytes, _, _, never_had_a_tap, tap_is_gone = counters
            yield Answer(
                sequence,
                passage=PassageReading(
                    given_items=given,
                    left_items=left + never_had_a_tap,
                    left_bytes=left_bytes,
                    lost_items=never_had_a_tap + tap_is_gone,
                ),
            )


def error_text(code: int) -> str:
    """What the number of an `Answer.error` says."""
    return os.strerror(code)


def _message(kind: int, flags: int, body: bytes) -> bytearray:
    return bytearray(_HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body)


def _traffic(index: int) -> bytes:
    return _TRAFFIC.pack(0, 0, 0, index, PLUG_HANDLE, _ROOT, 0)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(length, kind) + value).ljust(_aligned(length), b"\0")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _messages(data: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    while data:
        length, kind, _, sequence, _ = _unpack(_HEADER, data)
        if not _HEADER.size <= length <= len(data):
            raise _malformed(f"a message of {length} bytes in {len(data)}")
        yield kind, sequence, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _found(data: memoryview, wanted: int) -> memoryview:
    """The value of the first attribute of the kind `wanted`."""
    while data:
        length, kind = _unpack(_ATTRIBUTE, data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise _malformed(f"an attribute of {length} bytes in {len(data)}")
        if kind & _TYPE_MASK == wanted:
            return data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    raise _malformed(f"no attribute {wanted}")


def _unpack(layout: struct.Struct, data: memoryview) -> tuple[int, ...]:
    if len(data) < layout.size:
        raise _malformed(f"{len(data)} bytes where {layout.size} belong")
    return layout.unpack_from(data)


def _malformed(what: str) -> KernelRefusedError:
    return KernelRefusedError(f"the kernel's answer about the plug has {what}; report it with `uname -a`")
