"""Frames as a guest sends them, of every protocol that the holds are tried with."""

from __future__ import annotations

import socket
import struct

from netbuf import rarp_frame
from netbuf.tap import VNET_HEADER_BYTES

GUEST_MAC = bytes.fromhex("525400000001")
LAN_MAC = bytes.fromhex("525400000002")
HOST_MAC = bytes.fromhex("525400000003")
BROADCAST = b"\xff" * 6
GUEST_IP = socket.inet_aton("10.66.0.9")
LAN_IP = socket.inet_aton("10.66.0.2")

NO_OFFLOAD = bytes(VNET_HEADER_BYTES)


def ethernet(payload: bytes, ethertype: int = 0x88B5, *, to: bytes = LAN_MAC, by: bytes = GUEST_MAC) -> bytes:
    return (to + by + struct.pack(">H", ethertype) + payload).ljust(60, b"\0")


def numbered(first: int, count: int = 1) -> list[bytes]:
    return [ethernet(struct.pack(">I", number)) for number in range(first, first + count)]


def number_of(frame: bytes) -> int:
    """Of a numbered frame."""
    number: int = struct.unpack_from(">I", frame, 14)[0]
    return number


def ones_sum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ipv4(protocol: int, payload: bytes) -> bytes:
    header = (
        struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, protocol, 0) + GUEST_IP + LAN_IP
    )
    checksum = ~ones_sum(header) & 0xFFFF
    return header[:10] + struct.pack(">H", checksum) + header[12:] + payload


def arp_request() -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + GUEST_MAC + GUEST_IP + bytes(6) + LAN_IP
    return ethernet(body, 0x0806, to=BROADCAST)


def icmp_echo(payload: bytes) -> bytes:
    body = struct.pack(">BBHHH", 8, 0, 0, 7, 1) + payload
    return ethernet(ipv4(1, body[:2] + struct.pack(">H", ~ones_sum(body) & 0xFFFF) + body[4:]), 0x0800)


def udp(payload: bytes, port: int) -> bytes:
    return ethernet(ipv4(17, struct.pack(">HHHH", 5000, port, 8 + len(payload), 0) + payload), 0x0800)


def dhcp_discover() -> bytes:
    """RFC 2131, as far as its fixed fields."""
    body = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0x8000).ljust(240, b"\0")
    header = struct.pack(">HHHH", 68, 67, 8 + len(body), 0)
    return ethernet(ipv4(17, header + body), 0x0800, to=BROADCAST)


def neighbour_solicitation() -> bytes:
    """IPv6, ICMPv6 type 135; nobody on the LAN has the address."""
    body = struct.pack(">BBHI", 135, 0, 0, 0) + bytes(15) + b"\x09"
    source, target = bytes.fromhex("fe80") + bytes(13) + b"\x09", bytes.fromhex("ff02") + bytes(13) + b"\x01"
    return ethernet(struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source + target + body, 0x86DD)


def vlan_tagged() -> bytes:
    return ethernet(struct.pack(">HH", 42, 0x88B5) + b"tagged", 0x8100)


def tcp_frame(
    port: int, payload: bytes = b"", *, sequence: int = 1000, flags: int = 2, gso_bytes: int = 0
) -> bytes:
    """A TCP segment as a virtio guest hands it over: vnet header, checksum (and segmentation) left to do."""
    length = 20 + len(payload)
    pseudo = ones_sum(GUEST_IP + LAN_IP + struct.pack(">HH", 6, length))
    header = struct.pack(">HHIIBBHHH", 5000, port, sequence, 0, 0x50, flags, 65535, pseudo, 0)
    frame = ethernet(ipv4(6, header + payload), 0x0800)
    needs_checksum, gso_tcp4 = 1, 1 if gso_bytes else 0
    return struct.pack("<BBHHHHH", needs_checksum, gso_tcp4, 54, gso_bytes, 34, 16, 0) + frame


def frames_of_every_kind() -> dict[str, bytes]:
    """By protocol; each arrives as it is."""
    return {
        "ARP": arp_request(),
        "ICMP": icmp_echo(b"abcdefghijklmnopqrst"),
        "UDP": udp(b"a datagram of some length", 7000),
        "DHCP": dhcp_discover(),
        "TCP": tcp_frame(7001, b"a segment")[VNET_HEADER_BYTES:],
        "IPv6": neighbour_solicitation(),
        "VLAN": vlan_tagged(),
        "RARP": rarp_frame(GUEST_MAC.hex(":")),
        "experimental": numbered(7)[0],
    }
