"""Frames that tell a LAN where a station now is."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

from netbuf.errors import AnnounceError, MacAddressError

ETH_FRAME_BYTES_MIN = 60  # IEEE 802.3, without the frame check sequence

_ETH_HEADER_BYTES = 14
_ETH_P_RARP = 0x8035
_BROADCAST = b"\xff" * 6
# RFC 903: Ethernet hardware, IPv4 protocol, their address lengths, "request reverse".
_RARP_REQUEST = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 3)
_NO_ADDRESS = bytes(4)
_MAC_PATTERN = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def rarp_frame(mac: str) -> bytes:
    """A broadcast reverse ARP request (RFC 903) from `mac` about `mac`, 60 bytes.

    Bridges and switches learn from its source address through which port the station is now to be reached;
    no host answers it. QEMU announces a migrated guest with the same frame, for it needs no IP address.
    Raises `MacAddressError` unless `mac` is six colon-separated octets of a unicast address.
    """
    if not _MAC_PATTERN.fullmatch(mac):
        raise MacAddressError(f"mac={mac!r} is no MAC address; write it like 52:54:00:12:34:56")
    station = bytes.fromhex(mac.replace(":", ""))
    if station[0] & 1 or not any(station):
        raise MacAddressError(f"mac={mac!r} is no station's address; its first octet must be even")
    body = _RARP_REQUEST + (station + _NO_ADDRESS) * 2
    frame = _BROADCAST + station + struct.pack(">H", _ETH_P_RARP) + body
    return frame.ljust(ETH_FRAME_BYTES_MIN, b"\0")


def check_frames(frames: Sequence[bytes]) -> None:
    """Raise `AnnounceError` unless each of `frames` has a whole Ethernet header; asked before any is sent."""
    for frame in frames:
        if len(frame) < _ETH_HEADER_BYTES:
            raise AnnounceError(
                f"a frame of {len(frame)} bytes has no whole Ethernet header; send whole frames"
            )
