"""Ethernet frames of the synthetic guest: what it understands of the LAN, and what it says. Pure.

Checksums of what comes in are not looked at: a frame that never left the machine may have none yet, and the
virtio header that says so is of no other use here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_ARP, _IPV4 = 0x0806, 0x0800
_ICMP, _UDP = 1, 17
_BROADCAST = b"\xff" * 6
_FRAME_BYTES_MIN = 60  # IEEE 802.3, without the frame check sequence

_ETHERNET = struct.Struct(">6s6sH")
_ARP_BODY = struct.Struct(">HHBBH6s4s6s4s")  # RFC 826
_ARP_REQUEST, _ARP_REPLY = 1, 2
_IP = struct.Struct(">BBHHHBBH4s4s")  # RFC 791, without options
_IP_WORDS = struct.Struct(">10H")
_DONT_FRAGMENT, _FRAGMENT = 0x4000, 0x3FFF
_UDP_HEADER = struct.Struct(">HHHH")
_ETHERNET_BYTES, _IP_BYTES, _UDP_BYTES = _ETHERNET.size, _IP.size, _UDP_HEADER.size
HEADERS_BYTES = _ETHERNET_BYTES + _IP_BYTES + _UDP_BYTES
_ICMP_ECHO = 8


@dataclass(frozen=True, slots=True)
class Station:
    """An end of a conversation."""

    mac: bytes
    address: bytes
    port: int = 0


@dataclass(frozen=True, slots=True)
class Datagram:
    """UDP to one of our ports."""

    sender: Station
    port: int
    payload: bytes


def receive(frame: bytes, own: Station) -> Datagram | bytes | None:
    """What a frame is to us: a datagram, something that these bytes answer, or nothing."""
    if len(frame) < _ETHERNET_BYTES:
        return None
    destination, source, kind = _ETHERNET.unpack_from(frame)
    if kind == _ARP:
        return _answer_arp(frame, own)
    if kind != _IPV4 or destination != own.mac or len(frame) < _ETHERNET_BYTES + _IP_BYTES:
        return None
    header = _IP.unpack_from(frame, _ETHERNET_BYTES)
    version, _, length, _, fragment, _, protocol, _, sender, recipient = header
    if version != 0x45 or recipient != own.address or fragment & _FRAGMENT:
        return None
    body = frame[_ETHERNET_BYTES + _IP_BYTES : _ETHERNET_BYTES + length]
    if protocol == _ICMP:
        return _answer_echo(frame[: _ETHERNET_BYTES + _IP_BYTES], body)
    if protocol != _UDP or len(body) < _UDP_BYTES:
        return None
    source_port, port, _, _ = _UDP_HEADER.unpack_from(body)
    return Datagram(Station(source, sender, source_port), port, body[_UDP_BYTES:])


def _answer_arp(frame: bytes, own: Station) -> bytes | None:
    if len(frame) < _ETHERNET_BYTES + _ARP_BODY.size:
        return None
    *_, operation, mac, address, _, wanted = _ARP_BODY.unpack_from(frame, _ETHERNET_BYTES)
    if operation != _ARP_REQUEST or wanted != own.address:
        return None
    return _arp(mac, _ARP_REPLY, own, Station(mac, address))


def announcement(own: Station) -> bytes:
    """A gratuitous ARP request: whoever knows our address learns our place anew (RFC 5227, section 3)."""
    return _arp(_BROADCAST, _ARP_REQUEST, own, Station(bytes(6), own.address))


def _arp(destination: bytes, operation: int, own: Station, other: Station) -> bytes:
    body = _ARP_BODY.pack(1, _IPV4, 6, 4, operation, own.mac, own.address, other.mac, other.address)
    return (_ETHERNET.pack(destination, own.mac, _ARP) + body).ljust(_FRAME_BYTES_MIN, b"\0")


def _answer_echo(headers: bytes, body: bytes) -> bytes | None:
    """The same with the ends exchanged, which leaves the IP header's checksum as it is."""
    if len(body) < 8 or body[0] != _ICMP_ECHO:
        return None
    destination, source = headers[:6], headers[6:12]
    addresses = headers[-4:] + headers[-8:-4]
    checksum = int.from_bytes(body[2:4], "big") + (_ICMP_ECHO << 8)  # RFC 1624: a word less by as much
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    answer = bytes(2) + checksum.to_bytes(2, "big") + body[4:]
    return source + destination + headers[12:-8] + addresses + answer


def datagram(own: Station, other: Station, payload: bytes) -> bytes:
    """A whole frame that carries UDP, which over IPv4 needs no checksum of its own."""
    length = _IP_BYTES + _UDP_BYTES + len(payload)
    header = _IP.pack(0x45, 0, length, 0, _DONT_FRAGMENT, 64, _UDP, 0, own.address, other.address)
    total = sum(_IP_WORDS.unpack(header))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return b"".join(
        (
            _ETHERNET.pack(other.mac, own.mac, _IPV4),
            header[:10],
            checksum.to_bytes(2, "big"),
            header[12:],
            _UDP_HEADER.pack(own.port, other.port, _UDP_BYTES + len(payload), 0),
            payload,
        )
    )


def broadcast(network_broadcast: bytes, port: int) -> Station:
    """Everybody in the network."""
    return Station(_BROADCAST, network_broadcast, port)
