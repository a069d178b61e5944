"""remuslike.synthetic: registers, frames and the service's datagrams, there and back, and broken."""

from __future__ import annotations

import struct

import pytest

from remuslike.synthetic import DeviceStateError
from remuslike.synthetic.frames import Datagram, Station, announcement, broadcast, datagram, receive
from remuslike.synthetic.registers import Registers, decode_registers, encode_registers
from remuslike.synthetic.service import (
    CLIENTS_MAX,
    Operation,
    Reply,
    Report,
    Request,
    Status,
    decode_number,
    decode_reply,
    decode_request,
    encode_number,
    encode_reply,
    encode_request,
)

GUEST = Station(b"\x52\x54\0\0\0\1", bytes([10, 77, 0, 2]), 7777)
HOST = Station(b"\x52\x54\0\0\0\2", bytes([10, 77, 0, 1]), 4000)


def checksum(data: bytes) -> int:
    """RFC 1071, of what contains its own checksum: 0xFFFF if that is right."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


# --- registers ------------------------------------------------------------------------------------


def registers() -> Registers:
    made = Registers(*range(1, 10))
    made.transmit.extend([b"first", b"", b"second"])
    return made


def test_registers_are_bytes_and_back() -> None:
    assert decode_registers(encode_registers(registers(), b"guest"), b"guest") == registers()
    assert decode_registers(encode_registers(Registers(), b""), b"") == Registers()


def test_damaged_device_state_is_refused_whichever_byte_it_is() -> None:
    state = encode_registers(registers(), b"guest")
    for place in range(len(state)):
        broken = state[:place] + bytes([state[place] ^ 1]) + state[place + 1 :]
        with pytest.raises(DeviceStateError, match=f"{len(state)} bytes is damaged"):
            decode_registers(broken, b"guest")
        with pytest.raises(DeviceStateError, match=f"{place} bytes is damaged"):
            decode_registers(state[:place], b"guest")


def test_device_state_of_another_guest_is_refused() -> None:
    with pytest.raises(DeviceStateError, match="of the guest b'one', this one is b'two'"):
        decode_registers(encode_registers(registers(), b"one"), b"two")


# --- frames ---------------------------------------------------------------------------------------


def test_a_datagram_is_what_was_said() -> None:
    frame = datagram(GUEST, HOST, b"words")
    assert checksum(frame[14:34]) == 0xFFFF
    assert receive(frame, HOST) == Datagram(GUEST, HOST.port, b"words")


@pytest.mark.parametrize("padding", [0, 18])
def test_padding_is_no_part_of_a_datagram(padding: int) -> None:
    heard = receive(datagram(HOST, GUEST, b"x") + bytes(padding), GUEST)
    assert heard == Datagram(HOST, GUEST.port, b"x")


def test_who_asks_for_the_address_is_told() -> None:
    request = announcement(HOST)
    assert len(request) == 60
    assert receive(request, GUEST) is None
    wanted = request[:38] + GUEST.address + request[42:]
    answer = receive(wanted, GUEST)
    assert isinstance(answer, bytes)
    assert answer[:14] == HOST.mac + GUEST.mac + b"\x08\x06"
    assert answer[20:42] == b"\0\2" + GUEST.mac + GUEST.address + HOST.mac + HOST.address


def test_an_echo_comes_back_with_a_right_checksum() -> None:
    headers = datagram(HOST, GUEST, bytes(8))[:34]
    headers = headers[:23] + b"\1" + headers[24:]  # ICMP
    for identifier in (0, 0x1234, 0xF7FF, 0xFFFF):
        body = b"\x08\0\0\0" + struct.pack(">HH", identifier, 1) + b"payload."
        body = body[:2] + struct.pack(">H", 0xFFFF - checksum(body)) + body[4:]
        answer = receive(headers + body, GUEST)
        assert isinstance(answer, bytes)
        assert answer[:12] == HOST.mac + GUEST.mac
        assert answer[26:34] == GUEST.address + HOST.address
        assert (answer[34], checksum(answer[34:])) == (0, 0xFFFF)
        assert answer[38:] == body[4:]


def test_other_peoples_frames_are_nothing() -> None:
    frame = datagram(HOST, GUEST, b"words")
    other = Station(b"\x52\x54\0\0\0\3", bytes([10, 77, 0, 3]), 1)
    fragment = frame[:20] + b"\x20\0" + frame[22:]
    for nothing in (frame[:13], frame[:40], datagram(HOST, other, b""), fragment, b"\xff" * 60):
        assert receive(nothing, GUEST) is None
    assert receive(datagram(HOST, broadcast(bytes([10, 77, 0, 255]), 1), b""), GUEST) is None


# --- the service ----------------------------------------------------------------------------------

REPORT = Report(1, True, *range(3, 11))
REPLIES = [
    Reply(Operation.COUNT, Status.OK, 3, 4, 4, 5),
    Reply(Operation.REPORT, Status.OK, 0, 1, 0, 0, REPORT),
    Reply(Operation.COUNT_DURABLY, Status.DISK_ERROR, CLIENTS_MAX - 1, 2**64 - 1, 6, 7),
]


@pytest.mark.parametrize("reply", REPLIES)
def test_a_reply_is_bytes_and_back(reply: Reply) -> None:
    payload = encode_reply(reply)
    assert decode_reply(payload) == reply
    assert decode_reply(payload[:-1]) is None
    assert decode_reply(b"x" + payload[1:]) is None
    assert decode_reply(payload[:4] + b"\xff" + payload[5:]) is None


def test_a_request_is_bytes_and_back() -> None:
    request = Request(Operation.COUNT_DURABLY, 9, 2**40)
    payload = encode_request(request)
    assert decode_request(payload) == request
    for broken in (payload[:-1], payload + b"\0", b"x" + payload[1:], payload[:4] + b"\x77" + payload[5:]):
        assert decode_request(broken) is None
    assert decode_request(encode_request(Request(Operation.READ, CLIENTS_MAX))) is None


def test_a_number_is_bytes_and_back() -> None:
    payload = encode_number(2**40, 100)
    assert (len(payload), decode_number(payload)) == (100, 2**40)
    assert decode_number(b"") is None
    assert decode_number(b"x" * 100) is None
