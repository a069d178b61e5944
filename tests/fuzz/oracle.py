"""What the specification owes a client, judged from the bytes alone. Shares no code with `diskbuf`.

Where the specification leaves a choice, the server's documented choice stands here once more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .grammar import (
    BLOCK_STATUS,
    CACHE,
    DISC,
    FLUSH,
    READ,
    SIZE,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Draft,
)

EPERM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP = 1, 22, 28, 75, 95
_PAYLOAD_BYTES_MAX = 32 << 20
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = (1 << bit for bit in range(5))


@dataclass(frozen=True)
class Client:
    """What a client has negotiated, for an export of `size_bytes`."""

    structured: bool = False
    contexts: bool = False
    read_only: bool = False
    size_bytes: int = SIZE


def violations(draft: Draft, client: Client) -> set[int]:
    """The error of each rule that a request breaks; it is owed one of them, or success if there are none."""
    flags = {READ: FUA, WRITE: FUA, DISC: FUA, FLUSH: FUA, TRIM: FUA, CACHE: FUA}
    flags[WRITE_ZEROES] = FUA | NO_HOLE | FAST_ZERO
    if client.structured:
        flags[READ] |= DF
    if client.structured and client.contexts:
        flags[BLOCK_STATUS] = FUA | REQ_ONE
    if draft.command not in flags:
        return {EINVAL}
    broken = set()
    if draft.flags & ~flags[draft.command]:
        broken.add(EINVAL)
    if draft.command in (DISC, FLUSH):
        return broken | ({EINVAL} if draft.offset or draft.length else set())
    if client.read_only and draft.command in (WRITE, TRIM, WRITE_ZEROES):
        broken.add(EPERM)
    if draft.offset + draft.length > client.size_bytes:
        broken.add(ENOSPC if draft.command in (WRITE, WRITE_ZEROES) else EINVAL)
    if not draft.length:
        broken.add(EINVAL)
    if draft.command in (READ, WRITE) and draft.length > _PAYLOAD_BYTES_MAX:
        broken.add(EOVERFLOW if draft.command == READ and client.structured else EINVAL)
    return broken


@dataclass(frozen=True)
class Read:
    """How far a stream of options can be read: the whole ones' numbers, and what ended it, if anything."""

    options: tuple[int, ...]
    ended: str | None = None


def read_options(data: bytes) -> Read:
    """Walk through what a client sends before it chooses, by framing only."""
    if len(data) < 4:
        return Read(())
    (flags,) = struct.unpack_from(">I", data)
    if flags > 3:
        return Read((), "client flags")
    options: list[int] = []
    place = 4
    while len(data) - place >= 16:
        magic, number, length = struct.unpack_from(">8sII", data, place)
        if magic != b"IHAVEOPT":
            return Read(tuple(options), "magic")
        if place + 16 + length > len(data):
            break
        options.append(number)
        place += 16 + length
    return Read(tuple(options))


@dataclass(frozen=True)
class OptionReply:
    """One reply to an option."""

    number: int
    kind: int
    data: bytes

    @property
    def final(self) -> bool:
        """Whether the client may send its next option."""
        return self.kind == 1 or self.kind >= 1 << 31


def option_replies(data: bytes) -> list[OptionReply]:
    """The replies in a server's stream, which must be whole."""
    replies = []
    while data:
        magic, number, kind, length = struct.unpack_from(">QIII", data)
        assert magic == 0x0003E889045565A9, f"no option reply: {data[:20]!r}"
        assert len(data) >= 20 + length, f"the reply to option {number} is cut off"
        replies.append(OptionReply(number, kind, data[20 : 20 + length]))
        data = data[20 + length :]
    return replies


@dataclass(frozen=True)
class Answer:
    """A whole reply to a request: its error or 0, and how it covers the request's range."""

    error: int
    covered: tuple[tuple[int, int], ...] = ()


def answers(data: bytes, drafts: dict[int, Draft], client: Client) -> dict[int, Answer]:
    """The answers in a server's stream by cookie; none may be cut off, given twice, or be nobody's."""
    found: dict[int, Answer] = {}
    parts: dict[int, list[Answer]] = {}
    while data:
        (magic,) = struct.unpack_from(">I", data)
        if magic == 0x67446698:
            error, cookie = struct.unpack_from(">IQ", data, 4)
            draft = drafts[cookie]
            assert not (client.structured and draft.command == READ), "a simple reply to a structured read"
            assert cookie not in parts, "a simple reply amid a structured one"
            data_bytes = draft.length if draft.command == READ and not error else 0
            answer = Answer(error, ((draft.offset, draft.length),) if data_bytes else ())
            length, done = 16 + data_bytes, True
        else:
            assert magic == 0x668E33EF, f"no reply: {data[:20]!r}"
            assert client.structured, "a chunk for a client that knows none"
            flags, kind, cookie, payload_bytes = struct.unpack_from(">HHQI", data, 4)
            assert flags in (0, 1), f"chunk flags {flags:#x}"
            answer = _chunk(kind, data[20 : 20 + payload_bytes], drafts[cookie])
            length, done = 20 + payload_bytes, bool(flags)
        assert len(data) >= length, f"the reply to request {cookie} is cut off"
        assert cookie not in found, f"request {cookie} is answered twice"
        parts.setdefault(cookie, []).append(answer)
        if done:
            found[cookie] = _whole(parts.pop(cookie), drafts[cookie])
        data = data[length:]
    assert not parts, f"structured replies without an end: {sorted(parts)}"
    return found


def _chunk(kind: int, payload: bytes, draft: Draft) -> Answer:
    match kind:
        case 0:
            assert not payload
            return Answer(0)
        case 1:
            assert draft.command == READ
            (offset,) = struct.unpack_from(">Q", payload)
            return Answer(0, ((offset, len(payload) - 8),))
        case 2:
            assert draft.command == READ
            offset, length = struct.unpack(">QI", payload)
            return Answer(0, ((offset, length),))
        case 5:
            assert draft.command == BLOCK_STATUS
            return Answer(0, tuple(_descriptors(payload, draft)))
        case 0x8001 | 0x8002:
            error, message_bytes = struct.unpack_from(">IH", payload)
            assert error
            assert message_bytes <= 4096
            payload[6 : 6 + message_bytes].decode()
            rest = payload[6 + message_bytes :]
            assert len(rest) == (8 if kind == 0x8002 else 0)
            if rest:
                (offset,) = struct.unpack(">Q", rest)
                assert draft.offset <= offset <= draft.offset + draft.length
            return Answer(error)
    raise AssertionError(f"chunk type {kind:#x} is unknown")


def _descriptors(payload: bytes, draft: Draft) -> Iterator[tuple[int, int]]:
    (context,) = struct.unpack_from(">I", payload)
    assert context == 1, "a context that wasn't selected"
    fields = struct.unpack(f">{(len(payload) - 4) // 4}I", payload[4:])
    assert fields
    assert len(fields) == 2 or not draft.flags & REQ_ONE
    offset = draft.offset
    for length, state in zip(fields[::2], fields[1::2], strict=True):
        assert state & ~3 == 0
        yield offset, length
        offset += length


def _whole(parts: list[Answer], draft: Draft) -> Answer:
    """One answer of all its chunks, checked for what must be covered exactly once."""
    error = next((part.error for part in parts if part.error), 0)
    covered = sorted(extent for part in parts for extent in part.covered)
    place = draft.offset
    for offset, length in covered:
        assert length > 0
        assert offset == place or (error and offset > place), f"overlap or gap at {offset}, not {place}"
        place = offset + length
    assert place <= draft.offset + draft.length, "more than was asked for"
    if not error:
        if draft.command == READ:
            assert place == draft.offset + draft.length, "less than was asked for"
            assert not draft.flags & DF or len(covered) == 1, "a read is fragmented in spite of DF"
        if draft.command == BLOCK_STATUS:
            assert place > draft.offset, "a block status that says nothing"
    return Answer(error, tuple(covered))
