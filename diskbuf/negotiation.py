"""How an NBD client chooses an export: fixed newstyle negotiation, the server's side. Pure.

Sections named here are those of the NBD specification (NetworkBlockDevice/nbd, doc/proto.md). All integers
are big-endian. What follows the negotiation is in `wire`.

Invariants of `Negotiation`:
1. every whole option is answered, or the client is given up: nobody waits for the other;
2. what is remembered is bounded by `OPTION_BYTES_MAX` and what one `receive` brings;
3. nothing that was said before TLS, in the clear, counts after it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import Enum, IntEnum, IntFlag, auto
from typing import Final

from diskbuf.errors import ProtocolError
from diskbuf.wire import PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, Export, Terms

# "Newstyle negotiation", "Fixed newstyle negotiation"
INIT_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

ALLOCATION: Final = "base:allocation"
"""The one metadata context of this server."""
ALLOCATION_ID: Final = 1
_BASE_WILDCARD: Final = b"base:"

OPTION_BYTES_MAX: Final = 16384
"""The longest option whose data are looked at: a longest name, and room for a thousand queries."""
OPTION_SKIPPED_BYTES_MAX: Final = PAYLOAD_BYTES_MAX
"""The longest option that is skipped and refused; to send more is called a denial of service."""
OPTIONS_MAX: Final = 1024
"""The most options of one client: many for each of hundreds of exports, while a listing has to end."""

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_EXPORT_NAME_PADDING = bytes(124)
_LENGTH = struct.Struct(">I")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_INFO_TYPE = struct.Struct(">H")


class HandshakeFlag(IntFlag):
    """ "Handshake flags"; the client flags have the same two bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """ "Option types": those that get another answer than ERR_UNSUP"""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


_OPTIONS_KNOWN: Final = frozenset(Option)


class OptionReply(IntEnum):
    """ "Option reply types" """

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """Information types of NBD_REP_INFO"""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Tls(Enum):
    """ "Server-side requirements" of "TLS support" """

    NONE = auto()  # NOTLS
    OFFERED = auto()  # SELECTIVETLS, with no export that requires it
    REQUIRED = auto()  # FORCEDTLS


class _Refusal(Exception):  # noqa: N818 - an answer to the client, which no caller ever sees
    """The option is answered with an error, and the negotiation goes on."""

    def __init__(self, reply: OptionReply, message: str) -> None:
        super().__init__(message)
        self.reply = reply


class Negotiation:
    """One client's way from the greeting to an export.

    Send `greeting`, then feed what arrives to `receive` and send what it returns, until `finished`: either
    `terms` says what was agreed on, or the client has `aborted`. Whenever `start_tls` is set, send the
    answer, put TLS on the socket, and call `tls_started` before anything else.
    """

    greeting: Final = _GREETING.pack(
        INIT_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
    )

    def __init__(self, exports: Mapping[str, Export], tls: Tls = Tls.NONE) -> None:
        self.terms: Terms | None = None
        self.aborted = False
        self.start_tls = False
        self._exports = exports
        self._tls = tls
        self._encrypted = False
        self._received = bytearray()
        self._skipped: int | None = None
        self._skipping_bytes = 0
        self._client_flags: int | None = None
        self._options = 0
        self._structured_replies = False
        self._contexts: Mapping[int, str] = {}
        self._contexts_of: str | None = None

    @property
    def finished(self) -> bool:
        return self.aborted or self.terms is not None

    @property
    def chosen(self) -> str | None:
        """The name of the export, once the client has chosen it."""
        return None if self.terms is None else self.terms.name

    @property
    def tail(self) -> bytes:
        """What was received and isn't taken yet: once finished, the first requests."""
        return bytes(self._received)

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client; return the bytes to answer with.

        Raises `ProtocolError` if they aren't NBD, exceed a bound, or if the specification has no other
        answer than to hang up: EXPORT_NAME for what isn't served, or isn't without TLS.
        """
        assert not self.finished
        assert not self.start_tls, "tls_started() comes first"
        self._received += data
        replies = bytearray()
        if self._client_flags is None:
            if len(self._received) < _CLIENT_FLAGS.size:
                return b""
            self._take_client_flags()
        while not self.finished and (option := self._next_option()) is not None:
            replies += self._answer(*option)
        return bytes(replies)

    def tls_started(self) -> None:
        """From now on all bytes come and go through TLS; the client negotiates anew."""
        assert self.start_tls
        self.start_tls = False
        self._encrypted = True
        self._structured_replies = False
        self._select(None, {})

    def _take_client_flags(self) -> None:
        (flags,) = _CLIENT_FLAGS.unpack_from(self._received)
        if flags > HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES:
            raise ProtocolError(
                f"client flags are {flags:#x}, of which only 0x3 are known; use an NBD client"
            )
        self._client_flags = flags
        del self._received[: _CLIENT_FLAGS.size]

    def _next_option(self) -> tuple[int, bytes | None] | None:
        """The next whole option and its data, or None until more has come.

        The data are None if they were too many to be looked at, and have been thrown away.
        """
        if self._skipped is None:
            if len(self._received) < _OPTION.size:
                return None
            option, length = self._check_option()
            end = _OPTION.size + length
            if length <= OPTION_BYTES_MAX:
                if len(self._received) < end:
                    return None
                data = bytes(self._received[_OPTION.size : end])
                del self._received[:end]
                return option, data
            self._skipped, self._skipping_bytes = option, end
        skipped_now = min(self._skipping_bytes, len(self._received))
        del self._received[:skipped_now]
        self._skipping_bytes -= skipped_now
        if self._skipping_bytes:
            return None
        option, self._skipped = self._skipped, None
        return option, None

    def _check_option(self) -> tuple[int, int]:
        """The number and the data's length of the option that comes; it may be one that ends it all."""
        magic, option, length = _OPTION.unpack_from(self._received)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"option magic is {magic:#018x}, not {OPTION_MAGIC:#018x}; use an NBD client")
        if length > OPTION_SKIPPED_BYTES_MAX:
            raise ProtocolError(f"option {option} has {length} bytes, more than {OPTION_SKIPPED_BYTES_MAX}")
        if option != Option.EXPORT_NAME:
            if not (self._client_flags or 0) & HandshakeFlag.FIXED_NEWSTYLE:
                raise ProtocolError(
                    f"option {option}, but the client flags don't say that it knows fixed newstyle;"
                    " without it there is only NBD_OPT_EXPORT_NAME"
                )
        elif length > STRING_BYTES_MAX:
            raise ProtocolError(f"export name has {length} bytes, more than {STRING_BYTES_MAX}")
        elif self._tls_is_missing:
            raise ProtocolError(
                "NBD_OPT_EXPORT_NAME without TLS, which is required here; use NBD_OPT_STARTTLS"
            )
        return option, length

    @property
    def _tls_is_missing(self) -> bool:
        return self._tls is Tls.REQUIRED and not self._encrypted

    def _answer(self, option: int, data: bytes | None) -> bytes:
        self._options += 1
        if self._options > OPTIONS_MAX:
            raise ProtocolError(f"more than {OPTIONS_MAX} options and no export chosen")
        try:
            return self._reply_to(option, data)
        except _Refusal as refusal:
            return _option_reply(option, refusal.reply, str(refusal).encode())

    def _reply_to(self, option: int, data: bytes | None) -> bytes:
        """The replies to an option; raises `_Refusal` if there is but an error."""
        if self._tls_is_missing and option not in (Option.STARTTLS, Option.ABORT):
            raise _Refusal(OptionReply.ERR_TLS_REQD, "only NBD_OPT_STARTTLS is served without TLS")
        if option not in _OPTIONS_KNOWN:
            raise _Refusal(OptionReply.ERR_UNSUP, f"this server doesn't know option {option}")
        if option == Option.ABORT:
            self.aborted = True
            return _option_reply(option, OptionReply.ACK)
        if option == Option.SET_META_CONTEXT:
            self._select(None, {})  # even if it fails
        if data is None:
            raise _Refusal(OptionReply.ERR_TOO_BIG, f"more than {OPTION_BYTES_MAX} bytes of data")
        match option:
            case Option.EXPORT_NAME:
                return self._choose_by_name(data)
            case Option.LIST:
                return self._list(data)
            case Option.STARTTLS:
                return self._start_tls(data)
            case Option.STRUCTURED_REPLY:
                _check_no_data(option, data)
                self._structured_replies = True
                return _option_reply(option, OptionReply.ACK)
            case Option.INFO | Option.GO:
                return self._describe(option, data)
            case _:
                return self._meta_contexts(option, data)

    def _choose_by_name(self, data: bytes) -> bytes:
        name = data.decode("utf-8", "replace")
        found = self._find(name)
        if found is None:
            raise ProtocolError(
                f"export {name[:64]!r} (NBD_OPT_EXPORT_NAME) isn't served here; NBD_OPT_LIST lists all"
            )
        self.terms = terms = self._terms_for(found)
        assert self._client_flags is not None
        padding = b"" if self._client_flags & HandshakeFlag.NO_ZEROES else _EXPORT_NAME_PADDING
        return _EXPORT_NAME_REPLY.pack(terms.export.size_bytes, terms.flags) + padding

    def _list(self, data: bytes) -> bytes:
        _check_no_data(Option.LIST, data)
        replies = bytearray()
        for name, export in self._exports.items():
            encoded = name.encode()
            served = _LENGTH.pack(len(encoded)) + encoded + export.description.encode()
            replies += _option_reply(Option.LIST, OptionReply.SERVER, served)
        return bytes(replies + _option_reply(Option.LIST, OptionReply.ACK))

    def _start_tls(self, data: bytes) -> bytes:
        _check_no_data(Option.STARTTLS, data)
        if self._encrypted:
            raise _Refusal(OptionReply.ERR_INVALID, "TLS has been started already")
        if self._tls is Tls.NONE:
            raise _Refusal(OptionReply.ERR_POLICY, "this server was started without TLS")
        if self._received:  # who put them there may have put them in front of somebody else's TLS
            raise ProtocolError(
                f"{len(self._received)} bytes follow NBD_OPT_STARTTLS in the clear;"
                " the client must wait for the answer"
            )
        self.start_tls = True
        return _option_reply(Option.STARTTLS, OptionReply.ACK)

    def _describe(self, option: int, data: bytes) -> bytes:
        """INFO, and GO, which is the same and then chooses."""
        name, requested = _parse_info_untrusted(data)
        terms = self._terms_for(self._required(name))
        export = terms.export
        infos = [
            _INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, terms.flags),
            _INFO_BLOCK_SIZE.pack(
                Info.BLOCK_SIZE, export.block_bytes_min, export.block_bytes_preferred, export.block_bytes_max
            ),
        ]
        if Info.NAME in requested:
            infos.append(_INFO_TYPE.pack(Info.NAME) + terms.name.encode())
        if Info.DESCRIPTION in requested and export.description:
            infos.append(_INFO_TYPE.pack(Info.DESCRIPTION) + export.description.encode())
        if option == Option.GO:
            self.terms = terms
        replies = b"".join(_option_reply(option, OptionReply.INFO, info) for info in infos)
        return replies + _option_reply(option, OptionReply.ACK)

    def _meta_contexts(self, option: int, data: bytes) -> bytes:
        """ "Metadata querying": LIST_META_CONTEXT or SET_META_CONTEXT."""
        setting = option == Option.SET_META_CONTEXT
        name, queries = _parse_queries_untrusted(data)
        if setting and not self._structured_replies:
            raise _Refusal(OptionReply.ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY comes first")
        found = self._required(name)
        if setting:
            matched = ALLOCATION.encode() in queries
            self._select(found, {ALLOCATION_ID: ALLOCATION} if matched else {})
        else:
            matched = not queries or ALLOCATION.encode() in queries or _BASE_WILDCARD in queries
        if not matched:
            return _option_reply(option, OptionReply.ACK)
        # The identifier counts for SET only; in a list it is reserved.
        context = _LENGTH.pack(ALLOCATION_ID if setting else 0) + ALLOCATION.encode()
        return _option_reply(option, OptionReply.META_CONTEXT, context) + _option_reply(
            option, OptionReply.ACK
        )

    def _select(self, export_name: str | None, contexts: Mapping[int, str]) -> None:
        self._contexts_of, self._contexts = export_name, contexts

    def _terms_for(self, name: str) -> Terms:
        """What would be agreed on if the client chose the export now. Contexts of another don't count."""
        contexts = self._contexts if self._contexts_of == name else {}
        return Terms(name, self._exports[name], self._structured_replies, contexts)

    def _find(self, name: str) -> str | None:
        """The export that the client means; the empty name is the only one's, if there is only one."""
        if name in self._exports:
            return name
        return next(iter(self._exports)) if not name and len(self._exports) == 1 else None

    def _required(self, name: str) -> str:
        found = self._find(name)
        if found is None:
            raise _Refusal(
                OptionReply.ERR_UNKNOWN, f"export {name[:64]!r} isn't served here; NBD_OPT_LIST lists all"
            )
        return found


def _option_reply(option: int, reply: OptionReply, data: bytes = b"") -> bytes:
    return _OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def _check_no_data(option: int, data: bytes) -> None:
    if data:
        raise _Refusal(OptionReply.ERR_INVALID, f"NBD_OPT_{Option(option).name} takes no data")


def _parse_name_untrusted(data: bytes) -> tuple[str, int]:
    """The export name at the beginning of an option's data, and where it ends."""
    if len(data) < _LENGTH.size:
        raise _Refusal(OptionReply.ERR_INVALID, f"{len(data)} bytes of data, too few for an export name")
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    if length > STRING_BYTES_MAX or end > len(data):
        raise _Refusal(OptionReply.ERR_INVALID, f"export name of {length} bytes in {len(data)} bytes of data")
    try:
        return data[_LENGTH.size : end].decode(), end
    except UnicodeDecodeError:
        raise _Refusal(OptionReply.ERR_INVALID, "export name isn't UTF-8") from None


def _parse_info_untrusted(data: bytes) -> tuple[str, frozenset[int]]:
    """The export name and the information requests of INFO or GO, some of which may be unknown."""
    name, end = _parse_name_untrusted(data)
    requests = data[end:]
    count = len(requests) // 2 - 1
    if len(requests) % 2 or count < 0 or _INFO_TYPE.unpack_from(requests) != (count,):
        raise _Refusal(OptionReply.ERR_INVALID, f"{len(requests)} bytes of malformed information requests")
    return name, frozenset(struct.unpack_from(f">{count}H", requests, 2))


def _parse_queries_untrusted(data: bytes) -> tuple[str, frozenset[bytes]]:
    """The export name and the queries of LIST_META_CONTEXT or SET_META_CONTEXT, in any namespace."""
    name, start = _parse_name_untrusted(data)
    malformed = _Refusal(OptionReply.ERR_INVALID, f"malformed queries in {len(data)} bytes of data")
    if len(data) - start < _LENGTH.size:
        raise malformed
    (count,) = _LENGTH.unpack_from(data, start)
    start += _LENGTH.size
    queries = set()
    for _ in range(count):
        if len(data) - start < _LENGTH.size:
            raise malformed
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > min(STRING_BYTES_MAX, len(data) - start):
            raise malformed
        queries.add(data[start : start + length])
        start += length
    if start != len(data):
        raise malformed
    return name, frozenset(queries)
