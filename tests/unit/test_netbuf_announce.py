"""netbuf.announce: the frame, octet by octet, and what is refused."""

import pytest

from netbuf.announce import ETH_FRAME_BYTES_MIN, rarp_frame
from netbuf.errors import MacAddressError


def test_frame_is_the_reverse_arp_request_of_rfc_903() -> None:
    mac = bytes.fromhex("525400123456")
    frame = rarp_frame("52:54:00:12:34:56")
    assert frame[:6] == b"\xff" * 6
    assert frame[6:12] == mac
    assert frame[12:14] == bytes.fromhex("8035")
    assert frame[14:22] == bytes.fromhex("0001 0800 06 04 0003")
    assert frame[22:42] == mac + bytes(4) + mac + bytes(4)
    assert frame[42:] == bytes(18)
    assert len(frame) == ETH_FRAME_BYTES_MIN


def test_either_case_gives_the_same_frame() -> None:
    assert rarp_frame("52:54:00:AB:CD:EF") == rarp_frame("52:54:00:ab:cd:ef")


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:56:78",
        "52-54-00-12-34-56",
        "52:54:00:12:34:5g",
        "52:54:00:12:34:56\n",
        "53:54:00:12:34:56",  # a group address
        "00:00:00:00:00:00",
    ],
)
def test_what_is_no_station_is_refused_by_value(mac: str) -> None:
    with pytest.raises(MacAddressError) as refusal:
        rarp_frame(mac)
    assert repr(mac) in str(refusal.value)
