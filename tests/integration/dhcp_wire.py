"""The DHCP messages of a client and the answers to it (RFC 2131, RFC 2132; rapid commit: RFC 4039). Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

SERVER_PORT = 67
CLIENT_PORT = 68

# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, magic cookie
_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128sI")
_REQUEST, _REPLY = 1, 2
_ETHERNET = 1
_MAC_BYTES = 6
_BROADCAST = 0x8000  # the client has no address yet at which it could be answered
_COOKIE = 0x63825363
_NONE = bytes(4)
_BYTES_MIN = 300  # what BOOTP relays expect at least (RFC 1542, 2.1)

_PAD, _END = 0, 255
_REQUESTED_ADDRESS, _MESSAGE_TYPE, _SERVER, _RAPID_COMMIT = 50, 53, 54, 80


class Kind(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6


class DhcpWireError(ValueError):
    """The server's fault: what it sent is no DHCP reply."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client reads in an answer; `address` is the one that is offered or granted."""

    kind: Kind
    transaction: int
    mac: str
    address: str
    server: bytes


def discover(transaction: int, mac: str, *, rapid: bool) -> bytes:
    """Looks for a server; `rapid`: one that may grant a lease at once."""
    return _message(transaction, mac, Kind.DISCOVER, {_RAPID_COMMIT: b""} if rapid else {})


def request(offer: Reply) -> bytes:
    """Takes the offer."""
    options = {_REQUESTED_ADDRESS: IPv4Address(offer.address).packed, _SERVER: offer.server}
    return _message(offer.transaction, offer.mac, Kind.REQUEST, options)


def _message(transaction: int, mac: str, kind: Kind, options: Mapping[int, bytes]) -> bytes:
    hardware = bytes.fromhex(mac.replace(":", ""))
    fixed = _FIXED.pack(
        *(_REQUEST, _ETHERNET, _MAC_BYTES, 0, transaction, 0, _BROADCAST),
        *(_NONE, _NONE, _NONE, _NONE, hardware, b"", b"", _COOKIE),
    )
    chosen = {_MESSAGE_TYPE: bytes([kind]), **options}
    coded = b"".join(bytes([code, len(value)]) + value for code, value in chosen.items())
    return (fixed + coded + bytes([_END])).ljust(_BYTES_MIN, bytes([_PAD]))


def parse_reply(data: bytes) -> Reply:
    """The answer in a datagram. Raises DhcpWireError."""
    if len(data) < _FIXED.size:
        raise DhcpWireError(f"{len(data)} bytes are no DHCP message; it has {_FIXED.size} at least")
    (op, _, length, _, transaction, _, _, _, address, _, _, hardware, _, _, cookie) = _FIXED.unpack_from(data)
    if op != _REPLY or length != _MAC_BYTES or cookie != _COOKIE:
        raise DhcpWireError(f"op {op}, hlen {length}, cookie {cookie:#x}: no DHCP reply to an Ethernet host")
    options = _parse_options(data[_FIXED.size :])
    try:
        kind = Kind(options[_MESSAGE_TYPE][0])
        server = options[_SERVER]
    except (LookupError, ValueError):
        raise DhcpWireError(f"options {options}: no message type that is known, or no server") from None
    mac = hardware[:_MAC_BYTES].hex(":")
    return Reply(kind, transaction, mac, str(IPv4Address(address)), server)


def _parse_options(data: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        value = data[at + 2 : at + 2 + data[at + 1]] if at + 1 < len(data) else b""
        if at + 1 >= len(data) or len(value) < data[at + 1]:
            raise DhcpWireError(f"option {data[at]} is cut short")
        options[data[at]] = value
        at += 2 + len(value)
    return options
