"""What NBD clients send: nearly right, wrong in one place, or noise. Hypothesis strategies.

Written from the specification (NetworkBlockDevice/nbd, doc/proto.md); shares nothing with `diskbuf`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import strategies as st

SIZE = 1 << 16
"""The size in bytes of every disk here: small, so that requests meet each other and the end."""
EXPORTS = ("held", "öffen", "closed", "read-only", "busy", "in place")
"""Named for the disk's state: `busy` is sealed and released all the time, and has so little room that writes
wait for it; `in place` is open, and long writes are received to where they belong."""
WRITABLE = ("held", "öffen", "busy", "in place")
PAYLOAD_SENT_MAX = 2 * SIZE
"""The longest payload that is really sent, of a write that the disk is too small for."""

CLIENT_FLAGS = struct.pack(">I", 3)
ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META = 2, 3, 5, 6, 7, 8, 9, 10
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)

_EDGES = (0, 1, 2, 511, 512, 4096, SIZE - 1, SIZE, SIZE + 1, 1 << 25, (1 << 25) + 1, (1 << 32) - 1)
_UINT16 = st.integers(0, (1 << 16) - 1)
_UINT32 = st.sampled_from(_EDGES) | st.integers(0, (1 << 32) - 1)
_UINT64 = st.sampled_from((*_EDGES, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)) | st.integers(0, (1 << 64) - 1)


def option(number: int, data: bytes = b"") -> bytes:
    """A well-formed option message."""
    return struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data


def string(text: bytes) -> bytes:
    """A string with its length before it."""
    return struct.pack(">I", len(text)) + text


def info(name: bytes, requests: list[int]) -> bytes:
    """The data of INFO and GO."""
    return string(name) + struct.pack(f">H{len(requests)}H", len(requests), *requests)


def meta(name: bytes, queries: list[bytes]) -> bytes:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    return string(name) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


_SERVED = [name.encode() for name in EXPORTS]
_NAMES = st.sampled_from(
    [*_SERVED, *_SERVED, *_SERVED, b"", b"absent", b"held\0", b"\xff\xfe", b"x" * 4096, b"x" * 4097]
)
_QUERIES = st.lists(
    st.sampled_from([b"base:allocation", b"base:", b"base", b"", b"x-y:z", b"\xff", b"q" * 4097]), max_size=4
)
_NUMBERS = st.integers(0, 12) | _UINT32
_OPTION_DATA = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    st.builds(info, _NAMES, st.lists(st.integers(0, 4) | _UINT16, max_size=6)),
    st.builds(meta, _NAMES, _QUERIES),
    _NAMES,
    st.sampled_from((16384, 16385, 70000)).map(bytes),
)


@st.composite
def _broken(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """A message with a few of its bytes changed, cut off, or doubled."""
    message = bytearray(draw(messages))
    for _ in range(draw(st.integers(1, 3))):
        if not message:
            break
        place = draw(st.integers(0, min(len(message), 64) - 1))
        match draw(st.sampled_from(("change", "cut", "insert"))):
            case "change":
                message[place] = draw(st.integers(0, 255))
            case "cut":
                del message[place : place + draw(st.integers(1, 8))]
            case _:
                message[place:place] = draw(st.binary(max_size=8))
    return bytes(message)


_REASONABLE_OPTIONS = st.one_of(
    st.builds(option, st.sampled_from((LIST, STRUCTURED_REPLY, STRUCTURED_REPLY, STARTTLS))),
    st.builds(option, st.just(INFO), st.builds(info, _NAMES, st.lists(st.integers(0, 4), max_size=3))),
    st.builds(option, st.just(LIST_META), st.builds(meta, _NAMES, _QUERIES)),
    _NAMES.map(lambda name: option(SET_META, meta(name, [b"base:allocation"]))),
    _NAMES.map(lambda name: option(STRUCTURED_REPLY) + option(SET_META, meta(name, [b"base:allocation"]))),
)
_ODD_OPTIONS = st.one_of(
    st.builds(option, st.sampled_from((INFO, GO)), st.builds(info, _NAMES, st.lists(_UINT16, max_size=3))),
    st.builds(option, st.sampled_from((LIST_META, SET_META)), st.builds(meta, _NAMES, _QUERIES)),
    st.builds(option, _NUMBERS, _OPTION_DATA),
    st.builds(lambda number, length: struct.pack(">8sII", b"IHAVEOPT", number, length), _NUMBERS, _UINT32),
)
_CHOICES = _NAMES.map(lambda name: option(GO, info(name, [3]))) | _NAMES.map(lambda name: option(1, name))
_CHOICES |= st.just(option(ABORT))
_FLAGS = st.sampled_from((3, 3, 3, 3, 3, 3, 1, 2, 0, 4)).map(lambda flags: struct.pack(">I", flags))
_REASONABLE_NEGOTIATIONS = st.builds(
    lambda options, choice, rest: CLIENT_FLAGS + b"".join(options) + choice + rest,
    st.lists(_REASONABLE_OPTIONS, max_size=5),
    _CHOICES,
    st.binary(max_size=8),
)

NEGOTIATIONS = st.one_of(
    _REASONABLE_NEGOTIATIONS,
    _broken(_REASONABLE_NEGOTIATIONS),
    st.builds(
        lambda flags, options, rest: flags + b"".join(options) + rest,
        _FLAGS,
        st.lists(_REASONABLE_OPTIONS | _ODD_OPTIONS | _broken(_ODD_OPTIONS), max_size=8),
        st.binary(max_size=20),
    ),
    st.binary(max_size=200),
)
"""What a client may send from its connecting on, ordinary or not."""


@dataclass(frozen=True)
class Draft:
    """A request as a client means it; its cookie comes later."""

    flags: int
    command: int
    offset: int
    length: int

    def encode(self, cookie: int) -> bytes:
        """The header alone."""
        return struct.pack(">IHHQQI", 0x25609513, self.flags, self.command, cookie, self.offset, self.length)


_COMMANDS = st.integers(0, 8) | _UINT16
_COMMAND_FLAGS = st.sampled_from((0, 0, 0, 1, 2, 4, 8, 16, 3, 19)) | _UINT16
_REASONABLE = st.builds(
    Draft,
    st.sampled_from((0, 0, 0, 0, 1)),
    st.sampled_from((READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS)),
    st.integers(0, SIZE),
    st.integers(1, 600) | st.integers(1, SIZE),
)
_FLUSHES = st.builds(Draft, st.sampled_from((0, 1)), st.just(FLUSH), st.just(0), st.just(0))
DRAFTS = st.one_of(
    _REASONABLE,
    _FLUSHES,
    st.builds(Draft, _COMMAND_FLAGS, _COMMANDS, _UINT64, _UINT32),
    st.builds(Draft, _COMMAND_FLAGS, _COMMANDS, st.integers(0, SIZE), _UINT32),
)
"""Requests of all kinds; many of them are valid."""

CONVERSATIONS = st.lists(
    DRAFTS.filter(
        lambda draft: draft.command != DISC and (draft.command != WRITE or draft.length <= PAYLOAD_SENT_MAX)
    ),
    max_size=12,
)
"""Requests that can be sent whole, one after another."""

CHANGES = st.lists(
    st.builds(
        Draft,
        st.sampled_from((0, 0, 1)),
        st.sampled_from((WRITE, WRITE, TRIM, WRITE_ZEROES)),
        st.integers(0, SIZE - 1),
        st.integers(1, 600) | st.integers(1, SIZE),
    ),
    max_size=12,
)
"""Changes that meet each other, and sometimes the end of the disk."""

_MESSAGES = st.one_of(
    st.builds(Draft.encode, DRAFTS, _UINT64),
    st.builds(lambda draft, data: draft.encode(7) + data, DRAFTS, st.binary(max_size=1000)),
    st.binary(max_size=60),
)
NOISE = st.lists(_MESSAGES | _broken(_MESSAGES), max_size=8).map(b"".join)
"""What may follow the choice of an export when a client has lost its wits."""

PIECES = st.lists(st.integers(1, 60) | st.integers(1, 5000), max_size=6)
"""How a stream is cut: the lengths of its pieces, of which the last repeats."""


def cut(data: bytes, pieces: list[int]) -> list[bytes]:
    """`data` in pieces of those lengths, or whole if there are none; long streams in at most 200 more."""
    parts = []
    for length in pieces:
        parts.append(data[:length])
        data = data[length:]
    step = max(pieces[-1], -(-len(data) // 200)) if pieces else max(len(data), 1)
    parts += (data[start : start + step] for start in range(0, len(data), step))
    return [part for part in parts if part]
