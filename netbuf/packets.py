"""Packet sockets (packet(7)) on a guest's tap: what the guest sends, seen before any redirect or gate.

A frame that a hold lets out comes back to the tap as if just received, but the kernel shows it to no packet
socket a second time. Frames to the guest are left out.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from netbuf.tap import FRAME_BYTES_MAX, VNET_HEADER_BYTES

_ETH_P_ALL = 3  # linux/if_ether.h
_SOL_PACKET = 263

# linux/if_packet.h
_PACKET_STATISTICS = 6
_PACKET_AUXDATA = 8
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23

# asm-generic/socket.h
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SO_RCVBUFFORCE = 33

_REFUSE = struct.pack("=HBBI", 6, 0, 0, 0)  # struct sock_filter: BPF_RET of no bytes
_INSTRUCTIONS = struct.Struct("@HP")  # struct sock_fprog
_STATISTICS = struct.Struct("=II")  # struct tpacket_stats: frames, of which lost

_AUXILIARY = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status first, a VLAN tag and its kind last
_AUXILIARY_BYTES = socket.CMSG_SPACE(_AUXILIARY.size)
_TAG_IS_VALID = 0x10  # TP_STATUS_VLAN_VALID
_TAG = struct.Struct(">HH")
_TAG_AT = 12  # behind both addresses

# A packet socket gives struct virtio_net_hdr, a tap of ours struct virtio_net_hdr_mrg_rxbuf, which is longer
# by a number that no tap sets.
_HEADER_BYTES = 10
_MERGED = bytes(VNET_HEADER_BYTES - _HEADER_BYTES)
_NEEDS_CHECKSUM = 1  # VIRTIO_NET_HDR_F_NEEDS_CSUM, in the first byte
_CHECKSUM_START = struct.Struct("=H")
_CHECKSUM_START_AT = 6

# The kernel counts what a waiting frame takes of its memory, for a small one 15 times its bytes.
_ROOM = 16
_ROOM_BYTES_MAX = 1 << 29


def open_packets(guest: str, *, vnet_header: bool = False) -> socket.socket:
    """A non-blocking packet socket on the tap `guest`, in the current network namespace.

    With `vnet_header` frames begin with a struct virtio_net_hdr, so that GSO frames can be told, and a VLAN
    tag comes beside its frame. Raises OSError.
    """
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        made.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        if vnet_header:
            made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        made.bind((guest, _ETH_P_ALL))
    except OSError:
        made.close()
        raise
    return made


class PacketNotice:
    """Says that a frame has come from the guest, once whenever it is armed; in between it costs a filter."""

    def __init__(self, guest: str) -> None:
        """Not armed. Raises OSError."""
        self._socket = open_packets(guest)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least: one frame is enough
        self.take()  # a tap that is down has been said by now, and is no frame

    def arm(self) -> None:
        """Be readable from the next frame on; nothing once closed."""
        if self._socket.fileno() >= 0:
            self.take()
            _accept(self._socket)

    def take(self) -> bool:
        """Whether one has come; not armed any more."""
        if self._socket.fileno() < 0:
            return False
        _refuse(self._socket)
        came = False
        with suppress(OSError):  # none waits, or the tap has been down, which is said once
            while self._socket.recv(1):
                came = True
        return came

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


class PacketCopies:
    """Copies of the frames that a guest sends, as a tap with vnet headers gives them."""

    def __init__(self, guest: str, limit_bytes: int) -> None:
        """`limit_bytes` of frames are to wait here at the most. Raises OSError."""
        self._socket = open_packets(guest, vnet_header=True)
        room = min(_ROOM_BYTES_MAX, _ROOM * limit_bytes)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room)
        self._header = bytearray(_HEADER_BYTES)
        self._frame = memoryview(bytearray(FRAME_BYTES_MAX))
        self._buffers = (self._header, self._frame)
        self._lost_items = 0

    def heed(self, wanted: bool) -> None:
        """Whether frames are to be copied; at first they are. What waits stays."""
        (_accept if wanted else _refuse)(self._socket)

    def read(self) -> Iterator[bytes]:
        """Those that wait."""
        while True:
            try:
                length, ancillary, _, _ = self._socket.recvmsg_into(self._buffers, _AUXILIARY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # Said once after the tap has been down; else a kind of GSO that a vnet header can't express.
                self._lost_items += error.errno != errno.ENETDOWN
                continue
            yield _with_tag(self._header, self._frame[: length - _HEADER_BYTES], ancillary)

    def take_lost(self) -> int:
        """How many there was no room for since the last call."""
        counters = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        _, refused_items = _STATISTICS.unpack(counters)
        lost_items: int = self._lost_items + refused_items
        self._lost_items = 0
        return lost_items

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()


def _with_tag(header: bytearray, frame: memoryview, ancillary: Sequence[tuple[int, int, bytes]]) -> bytes:
    """A frame with a tap's header, and the VLAN tag that the kernel took out of it put back."""
    for _, _, data in ancillary:
        status, _, _, _, _, tag, protocol = _AUXILIARY.unpack_from(data)
        if status & _TAG_IS_VALID:
            flags, start = header[0], _CHECKSUM_START.unpack_from(header, _CHECKSUM_START_AT)[0]
            if flags & _NEEDS_CHECKSUM:
                _CHECKSUM_START.pack_into(header, _CHECKSUM_START_AT, start + _TAG.size)
            put_back = _TAG.pack(protocol, tag)
            return b"".join((header, _MERGED, frame[:_TAG_AT], put_back, frame[_TAG_AT:]))
    return b"".join((header, _MERGED, frame))


def _refuse(packets: socket.socket) -> None:
    refuse = ctypes.create_string_buffer(_REFUSE, len(_REFUSE))
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _INSTRUCTIONS.pack(1, ctypes.addressof(refuse)))


def _accept(packets: socket.socket) -> None:
    with suppress(FileNotFoundError):  # it has no filter
        packets.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
