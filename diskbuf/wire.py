"""The NBD protocol as a server speaks it: fixed newstyle negotiation, simple replies. Pure.

Sections named here are those of the NBD specification (NetworkBlockDevice/nbd, doc/proto.md). All integers
are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from diskbuf.errors import ProtocolError, RequestError

# "Newstyle negotiation", "Fixed newstyle negotiation"
INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
# "Request message", "Simple reply message"
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698

# "Size constraints": the values that a client may assume if it doesn't ask
BLOCK_BYTES_MIN: Final = 1
BLOCK_BYTES_PREFERRED: Final = 4096
PAYLOAD_BYTES_MAX: Final = 32 << 20

NAME_BYTES_MAX: Final = 4096
"""The longest export name ("Newstyle negotiation")."""
OPTION_BYTES_MAX: Final = 16384
"""The longest known option is GO with a longest name; the rest is room for its information requests."""
DRAIN_BYTES_MAX: Final = 2 * PAYLOAD_BYTES_MAX
"""The longest payload of a refused write that is read and thrown away to keep the connection: enough for an
honest client that took no notice of the maximum; more is called a denial of service by the specification."""

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_EXPORT_NAME_PADDING = bytes(124)
_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE_REPLY = struct.Struct(">IIQ")

REQUEST_BYTES: Final = _REQUEST.size


class HandshakeFlag(IntFlag):
    """ "Handshake flags"; the client flags have the same two bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class TransmissionFlag(IntFlag):
    """ "Transmission flags" """

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


class Option(IntEnum):
    """ "Option types": those that get another answer than ERR_UNSUP"""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7


class OptionReply(IntEnum):
    """ "Option reply types" """

    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = (1 << 31) + 1
    ERR_INVALID = (1 << 31) + 3
    ERR_UNKNOWN = (1 << 31) + 6


class Info(IntEnum):
    """Information types of NBD_REP_INFO"""

    EXPORT = 0
    BLOCK_SIZE = 3


class Command(IntEnum):
    """ "Request types" """

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6


class CommandFlag(IntFlag):
    """ "Command flags" """

    FUA = 1 << 0
    NO_HOLE = 1 << 1


class NbdError(IntEnum):
    """ "Error values" """

    OK = 0
    EPERM = 1
    EIO = 5
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ESHUTDOWN = 108


@dataclass(frozen=True, slots=True)
class Export:
    """What a client learns of an export."""

    size_bytes: int
    flags: TransmissionFlag


@dataclass(frozen=True, slots=True)
class Request:
    """A request header as it came. `command` and `flags` may be unknown: see `validate_request`."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int

    @property
    def payload_bytes(self) -> int:
        """How many bytes follow the header."""
        return self.length if self.command == Command.WRITE else 0


def export_flags(read_only: bool) -> TransmissionFlag:
    """The transmission flags of a disk buffer; all connections share its memory, hence CAN_MULTI_CONN."""
    flags = (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.CAN_MULTI_CONN
    )
    return flags | TransmissionFlag.READ_ONLY if read_only else flags


class Negotiation:
    """One client's way from the greeting to an export ("Fixed newstyle negotiation").

    Send `greeting`, then feed what arrives to `receive` and send what it returns, until `chosen` names an
    export or `aborted` is set.
    """

    greeting: Final = _GREETING.pack(
        INIT_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    )

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self.chosen: str | None = None
        self.aborted = False
        self._exports = exports
        self._received = bytearray()
        self._client_flags: int | None = None

    @property
    def finished(self) -> bool:
        return self.aborted or self.chosen is not None

    @property
    def tail(self) -> bytes:
        """What was received and isn't taken yet: once finished, the first requests."""
        return bytes(self._received)

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client; return the bytes to answer with.

        Raises `ProtocolError` if they aren't NBD, exceed a bound, or ask in the old way (EXPORT_NAME) for an
        export that doesn't exist: the specification has no other answer to that than to hang up.
        """
        assert not self.finished
        self._received += data
        replies = bytearray()
        if self._client_flags is None:
            if len(self._received) < _CLIENT_FLAGS.size:
                return b""
            self._take_client_flags()
        while not self.finished and (option := self._next_option()) is not None:
            replies += self._answer(*option)
        return bytes(replies)

    def _take_client_flags(self) -> None:
        (flags,) = _CLIENT_FLAGS.unpack_from(self._received)
        if flags > HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES:
            raise ProtocolError(
                f"client flags are {flags:#x}, of which only 0x3 are known; use an NBD client"
            )
        self._client_flags = flags
        del self._received[: _CLIENT_FLAGS.size]

    def _next_option(self) -> tuple[int, bytes] | None:
        """The next whole option and its data, or None until more has come."""
        if len(self._received) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(self._received)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"option magic is {magic:#018x}, not {OPTION_MAGIC:#018x}; use an NBD client")
        if length > OPTION_BYTES_MAX:
            raise ProtocolError(f"option {option} has {length} bytes, more than {OPTION_BYTES_MAX}")
        end = _OPTION.size + length
        if len(self._received) < end:
            return None
        data = bytes(self._received[_OPTION.size : end])
        del self._received[:end]
        return option, data

    def _answer(self, option: int, data: bytes) -> bytes:
        match option:
            case Option.EXPORT_NAME:
                return self._answer_export_name(data)
            case Option.ABORT:
                self.aborted = True
                return _option_reply(option, OptionReply.ACK)
            case Option.LIST:
                return self._answer_list(data)
            case Option.INFO | Option.GO:
                return self._answer_info(option, data)
            case _:
                return _option_reply(option, OptionReply.ERR_UNSUP, b"this server doesn't know the option")

    def _answer_export_name(self, data: bytes) -> bytes:
        name = data.decode("utf-8", "replace")
        export = self._exports.get(name)
        if export is None:
            raise ProtocolError(
                f"export {name[:64]!r} (NBD_OPT_EXPORT_NAME) isn't served here; NBD_OPT_LIST lists all"
            )
        self.chosen = name
        assert self._client_flags is not None
        padding = b"" if self._client_flags & HandshakeFlag.NO_ZEROES else _EXPORT_NAME_PADDING
        return _EXPORT_NAME_REPLY.pack(export.size_bytes, export.flags) + padding

    def _answer_list(self, data: bytes) -> bytes:
        if data:
            return _option_reply(Option.LIST, OptionReply.ERR_INVALID, b"NBD_OPT_LIST takes no data")
        names = [name.encode() for name in self._exports]
        servers = [
            _option_reply(Option.LIST, OptionReply.SERVER, struct.pack(">I", len(name)) + name)
            for name in names
        ]
        return b"".join(servers) + _option_reply(Option.LIST, OptionReply.ACK)

    def _answer_info(self, option: int, data: bytes) -> bytes:
        name = _parse_info_name(data)
        if name is None:
            return _option_reply(option, OptionReply.ERR_INVALID, b"malformed name or information requests")
        export = self._exports.get(name)
        if export is None:
            return _option_reply(option, OptionReply.ERR_UNKNOWN, b"no such export")
        if option == Option.GO:
            self.chosen = name
        described = struct.pack(">HQH", Info.EXPORT, export.size_bytes, export.flags)
        constraints = struct.pack(
            ">HIII", Info.BLOCK_SIZE, BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED, PAYLOAD_BYTES_MAX
        )
        return (
            _option_reply(option, OptionReply.INFO, described)
            + _option_reply(option, OptionReply.INFO, constraints)
            + _option_reply(option, OptionReply.ACK)
        )


def _option_reply(option: int, reply: OptionReply, data: bytes = b"") -> bytes:
    return _OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def _parse_info_name(data: bytes) -> str | None:
    """The export name out of the data of INFO or GO, or None if they are malformed.

    The information requests themselves aren't needed: the server always sends all that it has.
    """
    if len(data) < 6:
        return None
    (name_bytes,) = struct.unpack_from(">I", data)
    if name_bytes > min(NAME_BYTES_MAX, len(data) - 6):
        return None
    (requests,) = struct.unpack_from(">H", data, 4 + name_bytes)
    if len(data) != 6 + name_bytes + 2 * requests:
        return None
    try:
        return data[4 : 4 + name_bytes].decode()
    except UnicodeDecodeError:
        return None


def decode_request(header: bytes | memoryview) -> Request:
    """Decode `REQUEST_BYTES` bytes. Raises `ProtocolError` if they don't begin with the request magic: the
    place where the next request begins is then unknown."""
    magic, flags, command, cookie, offset, length = _REQUEST.unpack(header)
    if magic != REQUEST_MAGIC:
        raise ProtocolError(
            f"request magic is {magic:#010x}, not {REQUEST_MAGIC:#010x}; the client lost step"
        )
    return Request(flags, command, cookie, offset, length)


_RANGED = frozenset((Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))
_WRITING = frozenset((Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))
_FLAGS_KNOWN: dict[int, int] = dict.fromkeys(Command, CommandFlag.FUA)  # every command takes FUA
_FLAGS_KNOWN[Command.WRITE_ZEROES] = CommandFlag.FUA | CommandFlag.NO_HOLE


def validate_request(request: Request, size_bytes: int, read_only: bool) -> None:
    """The gate: whatever passes it is known, permitted and within the disk. Nothing else gets to a buffer.

    Raises `RequestError` with the code that "Error values" asks for.
    """
    command = request.command
    known = _FLAGS_KNOWN.get(command)
    if known is None:
        raise RequestError(NbdError.EINVAL, f"command {command} is unknown")
    if request.flags | known != known:
        raise RequestError(NbdError.EINVAL, f"flags {request.flags:#x} don't belong to command {command}")
    if command not in _RANGED:
        if request.offset or request.length:
            raise RequestError(NbdError.EINVAL, f"command {command} takes no offset and no length")
        return
    if read_only and command in _WRITING:
        raise RequestError(NbdError.EPERM, "the export is read-only")
    if request.length == 0:
        raise RequestError(NbdError.EINVAL, "length is 0")
    if request.length > PAYLOAD_BYTES_MAX and command in (Command.READ, Command.WRITE):
        raise RequestError(NbdError.EINVAL, f"length {request.length} is more than {PAYLOAD_BYTES_MAX}")
    if request.offset + request.length > size_bytes:
        code = NbdError.ENOSPC if command in (Command.WRITE, Command.WRITE_ZEROES) else NbdError.EINVAL
        raise RequestError(
            code, f"offset {request.offset} and length {request.length} exceed the disk of {size_bytes} bytes"
        )


def encode_reply(cookie: int, error: int = NbdError.OK) -> bytes:
    """The header of a simple reply; a read's data follow it."""
    return _SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)
