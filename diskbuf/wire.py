"""The transmission phase of the NBD protocol as a server speaks it: requests, their gate, and replies. Pure.

Sections named here are those of the NBD specification (NetworkBlockDevice/nbd, doc/proto.md). All integers
are big-endian. How a client gets here is in `negotiation`.

`decode_request`, `validate_request` and the encoders run once a request: each takes well under 1 µs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from diskbuf.errors import ExportError, ProtocolError, RequestError

# "Request message", "Simple reply message", "Structured reply chunk message"
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

# "Size constraints": the values that a client may assume if it doesn't ask. The buffer is exact to the byte,
# so that it needs no larger minimum.
BLOCK_BYTES_MIN: Final = 1
BLOCK_BYTES_PREFERRED: Final = 4096
PAYLOAD_BYTES_MAX: Final = 32 << 20

STRING_BYTES_MAX: Final = 4096
"""The longest string: export names, descriptions, queries, error messages ("Conventions")."""
DRAIN_BYTES_MAX: Final = 2 * PAYLOAD_BYTES_MAX
"""The longest payload of a refused write that is read and thrown away to keep the connection: enough for an
honest client that took no notice of the maximum; more is called a denial of service by the specification."""
DESCRIPTORS_MAX: Final = 16384
"""The most descriptors of one block status: 128 KiB. The specification allows 2^20, but a client that asks
for more goes on where the reply ends, and until then the server has little to remember."""

_BLOCK_BYTES_MIN_MAX: Final = 1 << 16
_BLOCK_BYTES_PREFERRED_MIN: Final = 512

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE_REPLY = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_CHUNK_DATA = struct.Struct(">IHHQIQ")
_CHUNK_HOLE = struct.Struct(">IHHQIQI")
_CHUNK_ERROR = struct.Struct(">IHHQIIH")
_CHUNK_STATUS = struct.Struct(">IHHQII")
_OFFSET = struct.Struct(">Q")

REQUEST_BYTES: Final = _REQUEST.size


class TransmissionFlag(IntFlag):
    """ "Transmission flags" """

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """ "Request types" """

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


# Plain integers: an IntEnum's members are several times slower to hash and to compare.
_RANGELESS: Final = frozenset((int(Command.DISC), int(Command.FLUSH)))
_WRITING: Final = frozenset((int(Command.WRITE), int(Command.TRIM), int(Command.WRITE_ZEROES)))
_GROWING: Final = frozenset((int(Command.WRITE), int(Command.WRITE_ZEROES)))
_WITH_PAYLOAD: Final = frozenset((int(Command.READ), int(Command.WRITE)))
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)


class CommandFlag(IntFlag):
    """ "Command flags" """

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class NbdError(IntEnum):
    """ "Error values" """

    OK = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


class ChunkType(IntEnum):
    """ "Structured reply types" """

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


class BlockState(IntFlag):
    """The status flags of "`base:allocation` metadata context"; 0 is allocated data."""

    DATA = 0
    HOLE = 1 << 0
    ZERO = 1 << 1


@dataclass(frozen=True, slots=True)
class Export:
    """What a client learns of an export. `description` is for its user's eyes.

    Raises `ExportError` if the specification doesn't allow such an export ("Size constraints").
    """

    size_bytes: int
    flags: TransmissionFlag
    block_bytes_min: int = BLOCK_BYTES_MIN
    block_bytes_preferred: int = BLOCK_BYTES_PREFERRED
    block_bytes_max: int = PAYLOAD_BYTES_MAX
    description: str = ""

    def __post_init__(self) -> None:
        least, preferred, most = self.block_bytes_min, self.block_bytes_preferred, self.block_bytes_max
        if not 0 <= self.size_bytes < 1 << 63:
            raise ExportError(f"size is {self.size_bytes} bytes; clients take 0 to 2^63 - 1")
        if not (_is_power_of_2(least) and least <= _BLOCK_BYTES_MIN_MAX):
            raise ExportError(f"block_bytes_min is {least}; give a power of 2 up to {_BLOCK_BYTES_MIN_MAX}")
        if not (_is_power_of_2(preferred) and preferred >= max(least, _BLOCK_BYTES_PREFERRED_MIN)):
            raise ExportError(
                f"block_bytes_preferred is {preferred}; give a power of 2, at least"
                f" {max(least, _BLOCK_BYTES_PREFERRED_MIN)}"
            )
        if not preferred <= most <= PAYLOAD_BYTES_MAX:
            raise ExportError(f"block_bytes_max is {most}; give {preferred} to {PAYLOAD_BYTES_MAX}")
        if self.size_bytes % least:
            raise ExportError(f"size is {self.size_bytes} bytes, no multiple of block_bytes_min ({least})")
        if len(self.description.encode()) > STRING_BYTES_MAX:
            raise ExportError(f"description has more than {STRING_BYTES_MAX} bytes; shorten it")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client and the server have agreed on when the transmission phase begins.

    `contexts` are the metadata contexts that the client has selected, by the identifiers it was told.
    """

    name: str
    export: Export
    structured_replies: bool = False
    contexts: Mapping[int, str] = field(default_factory=dict)
    read_only: bool = field(init=False, repr=False)
    command_flags: Mapping[int, int] = field(init=False, repr=False)
    """The commands that the client may send, and the flags that each of them may have."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "read_only", TransmissionFlag.READ_ONLY in self.export.flags)
        object.__setattr__(self, "command_flags", self._command_flags())

    @property
    def flags(self) -> TransmissionFlag:
        """The transmission flags that the client is told."""
        df = TransmissionFlag.SEND_DF
        return self.export.flags | df if self.structured_replies else self.export.flags & ~df

    def _command_flags(self) -> dict[int, int]:
        """From "Command flags": what isn't documented for a command, or wasn't negotiated, is an error."""
        offered = self.flags
        every = int(CommandFlag.FUA) if TransmissionFlag.SEND_FUA in offered else 0
        allowed = {int(command): every for command in (Command.READ, Command.WRITE, Command.DISC)}
        if TransmissionFlag.SEND_DF in offered:
            allowed[Command.READ] |= CommandFlag.DF
        if TransmissionFlag.SEND_FLUSH in offered:
            allowed[Command.FLUSH] = every
        if TransmissionFlag.SEND_TRIM in offered:
            allowed[Command.TRIM] = every
        if TransmissionFlag.SEND_CACHE in offered:
            allowed[Command.CACHE] = every
        if TransmissionFlag.SEND_WRITE_ZEROES in offered:
            fast = CommandFlag.FAST_ZERO if TransmissionFlag.SEND_FAST_ZERO in offered else 0
            allowed[Command.WRITE_ZEROES] = every | CommandFlag.NO_HOLE | fast
        if self.contexts:
            allowed[Command.BLOCK_STATUS] = every | CommandFlag.REQ_ONE
        return {command: int(flags) for command, flags in allowed.items()}


class Request(NamedTuple):
    """A request header as it came: `command` and `flags` may be unknown, see `validate_request`.

    A named tuple, since it is made once a request, in a third of a frozen dataclass's time.
    """

    flags: int
    command: int
    cookie: int
    offset: int
    length: int

    @property
    def payload_bytes(self) -> int:
        """How many bytes follow the header."""
        return self.length if self.command == _WRITE else 0


def export_flags(read_only: bool) -> TransmissionFlag:
    """The transmission flags of a disk buffer.

    CAN_MULTI_CONN is true of it: all connections to an export share one overlay and one store, so that a
    write is visible to each of them before it is answered on its own, and a flush on any of them covers
    what was answered on all. CACHE may do nothing, and FAST_ZERO may be answered with ENOTSUP.
    """
    flags = (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.CAN_MULTI_CONN
        | TransmissionFlag.SEND_CACHE
        | TransmissionFlag.SEND_FAST_ZERO
    )
    return flags | TransmissionFlag.READ_ONLY if read_only else flags


def check_export_name(name: str) -> str:
    """The name, if the protocol can carry it; raises `ExportError` if not."""
    if len(name.encode("utf-8", "surrogateescape")) > STRING_BYTES_MAX:
        raise ExportError(f"export name {name[:32]!r}… has more than {STRING_BYTES_MAX} bytes; shorten it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ExportError(f"export name {name!r} isn't UTF-8; rename it") from error
    if "\0" in name:
        raise ExportError(f"export name {name!r} contains NUL; rename it")
    return name


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def decode_request(header: bytes | memoryview) -> Request:
    """Decode `REQUEST_BYTES` bytes. Raises `ProtocolError` if they don't begin with the request magic: the
    place where the next request begins is then unknown."""
    magic, flags, command, cookie, offset, length = _REQUEST.unpack(header)
    if magic != REQUEST_MAGIC:
        raise ProtocolError(
            f"request magic is {magic:#010x}, not {REQUEST_MAGIC:#010x}; the client lost step"
        )
    return Request(flags, command, cookie, offset, length)


def decode_writes(
    received: memoryview, start: int, end: int, payload_bytes_max: int, count_max: int | None = None
) -> tuple[list[Request], list[memoryview], int]:
    """The writes, one behind the other from `start` on, that are whole before `end` and none longer than
    `payload_bytes_max`, `count_max` at most; their payloads, which are views, and where the first request
    begins that is none of them. For `decode_request` in any case, which judges it."""
    requests: list[Request] = []
    payloads: list[memoryview] = []
    unpack = _REQUEST.unpack_from
    while (payload := start + REQUEST_BYTES) <= end:
        magic, flags, command, cookie, offset, length = unpack(received, start)
        after = payload + length
        if command != _WRITE or after > end or length > payload_bytes_max or magic != REQUEST_MAGIC:
            break
        requests.append(Request(flags, command, cookie, offset, length))
        payloads.append(received[payload:after])
        start = after
        if len(requests) == count_max:
            break
    return requests, payloads, start


def validate_request(request: Request, terms: Terms) -> None:
    """The gate: whatever passes it is known, negotiated, permitted, aligned and within the disk. Nothing
    else gets to a buffer.

    Raises `RequestError` with the code that "Error values" asks for.
    """
    flags, command, _, offset, length = request
    allowed = terms.command_flags.get(command)
    if allowed is None:
        raise RequestError(NbdError.EINVAL, f"command {command} is unknown, or wasn't negotiated")
    if flags | allowed != allowed:
        raise RequestError(
            NbdError.EINVAL,
            f"flags {flags:#x} of command {command}: only {allowed:#x} belong to it or were negotiated",
        )
    if command in _RANGELESS:
        if offset or length:
            raise RequestError(NbdError.EINVAL, f"command {command} takes no offset and no length")
        return
    export = terms.export
    if command in _WRITING and terms.read_only:
        raise RequestError(NbdError.EPERM, "the export is read-only")
    if offset + length > export.size_bytes:
        raise RequestError(
            NbdError.ENOSPC if command in _GROWING else NbdError.EINVAL,
            f"offset {offset} and length {length} exceed the export of {export.size_bytes} bytes",
        )
    if length == 0:
        raise RequestError(NbdError.EINVAL, "length is 0")
    if (offset | length) & (export.block_bytes_min - 1):
        raise RequestError(
            NbdError.EINVAL,
            f"offset {offset} and length {length} aren't multiples of {export.block_bytes_min} bytes",
        )
    if length > export.block_bytes_max and command in _WITH_PAYLOAD:
        # EOVERFLOW asks the client to retry in parts, and is for structured reads only ("Request types").
        too_large = NbdError.EOVERFLOW if command == _READ and terms.structured_replies else NbdError.EINVAL
        raise RequestError(too_large, f"length {length} is more than {export.block_bytes_max}")


def encode_reply(cookie: int, error: int = 0) -> bytes:
    """The header of a simple reply. The data of a read follow it, if structured replies weren't negotiated;
    if they were, it is no reply to a read."""
    return _SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def encode_replies(cookies: Iterable[int]) -> bytes:
    """Simple replies, one behind the other, to requests that succeeded."""
    pack = _SIMPLE_REPLY.pack
    return b"".join([pack(SIMPLE_REPLY_MAGIC, 0, cookie) for cookie in cookies])


def encode_done(cookie: int) -> bytes:
    """The chunk that ends a structured reply and says nothing else."""
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, 1, 0, cookie, 0)


def encode_data_header(cookie: int, offset: int, length: int, *, done: bool = True) -> bytes:
    """What goes before `length` bytes of a structured read's data, which must all be there: the chunk can't
    be taken back."""
    return _CHUNK_DATA.pack(STRUCTURED_REPLY_MAGIC, done, 1, cookie, length + 8, offset)


def encode_hole(cookie: int, offset: int, length: int, *, done: bool = True) -> bytes:
    """A part of a structured read that is all zeros. With the flag DF it may only be the whole."""
    return _CHUNK_HOLE.pack(STRUCTURED_REPLY_MAGIC, done, 2, cookie, 12, offset, length)


def encode_error(
    cookie: int, error: NbdError, message: str = "", *, offset: int | None = None, done: bool = True
) -> bytes:
    """The error chunk of a structured reply, `offset` being where in the request's range it happened.

    The message is for the client's user; of a longer one the first `STRING_BYTES_MAX` bytes are sent.
    """
    assert error, "success is no error"
    text = message.encode("utf-8", "replace")[:STRING_BYTES_MAX].decode("utf-8", "ignore").encode()
    place = b"" if offset is None else _OFFSET.pack(offset)
    kind = ChunkType.ERROR if offset is None else ChunkType.ERROR_OFFSET
    length = 6 + len(text) + len(place)
    header = _CHUNK_ERROR.pack(STRUCTURED_REPLY_MAGIC, done, kind, cookie, length, error, len(text))
    return header + text + place


def encode_block_status(
    context: int, extents: Iterable[tuple[int, int]], request: Request, *, done: bool = True
) -> bytes:
    """The chunk that answers a BLOCK_STATUS `request` for one metadata context.

    `extents` are lengths and `BlockState`s, consecutive from `request.offset` on; at least one byte's. No
    more of them are taken than fit the reply, so that they may be found out one by one.
    """
    descriptors = _descriptors(extents, request)
    count = len(descriptors) // 2
    header = _CHUNK_STATUS.pack(
        STRUCTURED_REPLY_MAGIC, done, ChunkType.BLOCK_STATUS, request.cookie, 4 + 8 * count, context
    )
    return header + struct.pack(f">{2 * count}I", *descriptors)


def _descriptors(extents: Iterable[tuple[int, int]], request: Request) -> list[int]:
    """Lengths and states in turns: neighbours of one state are one, and none goes beyond the request."""
    left = request.length
    descriptors_max = 1 if request.flags & CommandFlag.REQ_ONE else DESCRIPTORS_MAX
    descriptors: list[int] = []
    for extent_length, state in extents:
        assert extent_length > 0, (request, descriptors)
        length = min(extent_length, left)
        if descriptors and descriptors[-1] == state:
            descriptors[-2] += length
        elif len(descriptors) == 2 * descriptors_max:
            break
        else:
            descriptors += (length, int(state))
        left -= length
        if not left:
            break
    assert descriptors, "a block status describes at least one byte"
    return descriptors
