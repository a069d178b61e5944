"""What the client writes, what it was told, and whether it is still there. Pure.

Connection `c` writes `k:c:0`, `k:c:1`, ... with a value that follows from seed, connection and
number, so that a value can be checked without having been kept. redis answers in order: what was
acknowledged on a connection is the first `acknowledged` of its `sent` writes.

Wire format: the redis serialization protocol, RESP 2, as in redis.io's "Redis serialization
protocol specification".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

OK_REPLY = b"+OK\r\n"
REPLY_LIMIT_BYTES = 1 << 20  # far above any value that the demo writes


class ReplyError(Exception):
    """The server's fault: a reply that doesn't answer what was asked. The connection is given up."""


def key(connection: int, number: int) -> bytes:
    """The name of a connection's write `number`."""
    return b"k:%d:%d" % (connection, number)


def parse_key(text: bytes) -> tuple[int, int] | None:
    """The inverse of `key`; None when `text` isn't one."""
    parts = text.split(b":")
    if len(parts) != 3 or parts[0] != b"k" or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    return int(parts[1]), int(parts[2])


def value(seed: int, connection: int, number: int, payload_bytes: int) -> bytes:
    """`payload_bytes` that no other write has in any eighth of them; a torn or mixed value shows."""
    token = blake2b(b"%d:%d:%d" % (seed, connection, number), digest_size=8).hexdigest().encode()
    return (token * (payload_bytes // len(token) + 1))[:payload_bytes]


def encode(*words: bytes) -> bytes:
    """One command as a RESP array of bulk strings."""
    return b"".join((b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)))


def encode_write(seed: int, connection: int, number: int, payload_bytes: int) -> bytes:
    """The SET command of a connection's write `number`."""
    return encode(b"SET", key(connection, number), value(seed, connection, number, payload_bytes))


class AcknowledgementReader:
    """Counts `+OK` replies in a stream that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> int:
        """How many replies became whole; raises ReplyError for any other reply."""
        data = self._rest + data
        count = len(data) // len(OK_REPLY)
        whole = count * len(OK_REPLY)
        self._rest = data[whole:]
        if data[:whole] != OK_REPLY * count or not OK_REPLY.startswith(self._rest):
            raise ReplyError(f"the server answered a write with {data[:80]!r}")
        return count


class ValueReader:
    """Takes bulk strings out of a stream that may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes | None]:
        """The values that became whole, None for a key that isn't there; raises ReplyError for any
        other reply."""
        self._rest += data
        rest = self._rest
        values: list[bytes | None] = []
        position = 0
        while (line_end := rest.find(b"\r\n", position)) >= 0:
            start = line_end + 2
            length = _bulk_length(bytes(rest[position:line_end]))
            if length is None:
                values.append(None)
                position = start
                continue
            if len(rest) < start + length + 2:
                break
            values.append(bytes(rest[start : start + length]))
            position = start + length + 2
        del rest[:position]
        return values


def _bulk_length(header: bytes) -> int | None:
    if header == b"$-1":
        return None
    if header[:1] != b"$" or not header[1:].isdigit() or int(header[1:]) > REPLY_LIMIT_BYTES:
        raise ReplyError(f"the server answered a read with {header[:80]!r}")
    return int(header[1:])


@dataclass(frozen=True, slots=True)
class ConnectionHistory:
    """What one connection sent and was told: `0 <= acknowledged <= sent`."""

    connection: int
    sent: int
    acknowledged: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A write that isn't as it must be; `kind` is "missing", "changed", "duplicate" or "unknown"."""

    kind: str
    connection: int
    number: int
    acknowledged: bool


def check_values(
    history: ConnectionHistory,
    first: int,
    values: Sequence[bytes | None],
    *,
    seed: int,
    payload_bytes: int,
) -> list[Finding]:
    """Judge values read back for the numbers from `first`.

    An acknowledged write must be there. One that was never answered may or may not be there; but a
    value that is there must be the one that was written.
    """
    findings: list[Finding] = []
    for number, found in enumerate(values, first):
        acknowledged = number < history.acknowledged
        if found is None:
            if acknowledged:
                findings.append(Finding("missing", history.connection, number, True))
        elif found != value(seed, history.connection, number, payload_bytes):
            findings.append(Finding("changed", history.connection, number, acknowledged))
    return findings
