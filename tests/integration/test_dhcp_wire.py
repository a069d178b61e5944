"""The DHCP messages of the made-up clients, against messages put together by hand from RFC 2131 and 2132."""

from __future__ import annotations

import pytest
from dhcp_wire import DhcpWireError, Kind, Reply, discover, parse_reply, request

MAC = "02:00:00:00:01:2c"
HARDWARE = bytes.fromhex("02000000012c").ljust(16, b"\0")
COOKIE = bytes.fromhex("63825363")
NAMES = bytes(64 + 128)
OFFERED = bytes([10, 77, 16, 9])
SERVER = bytes([10, 77, 0, 2])
OFFER = Reply(Kind.OFFER, 300, MAC, "10.77.16.9", SERVER)


def head(operation: int, flags: int, address: bytes) -> bytes:
    fixed = bytes([operation, 1, 6, 0]) + (300).to_bytes(4) + bytes(2) + flags.to_bytes(2)
    return fixed + bytes(4) + address + bytes(8) + HARDWARE + NAMES + COOKIE


def reply(options: bytes, *, operation: int = 2) -> bytes:
    return head(operation, 0x8000, OFFERED) + options


GOOD_OPTIONS = bytes([0, 53, 1, 2, 54, 4, *SERVER, 51, 4, 0, 0, 168, 192, 255, 99])


def test_a_discover_asks_for_a_broadcast() -> None:
    assert discover(300, MAC, rapid=False) == (head(1, 0x8000, bytes(4)) + bytes([53, 1, 1, 255])).ljust(
        300, b"\0"
    )


def test_a_rapid_discover_has_the_option_without_a_value() -> None:
    options = bytes([53, 1, 1, 80, 0, 255])
    assert discover(300, MAC, rapid=True) == (head(1, 0x8000, bytes(4)) + options).ljust(300, b"\0")


def test_a_request_names_address_and_server() -> None:
    options = bytes([53, 1, 3, 50, 4, *OFFERED, 54, 4, *SERVER, 255])
    assert request(OFFER) == (head(1, 0x8000, bytes(4)) + options).ljust(300, b"\0")


def test_an_offer_is_read_whatever_stands_before_and_behind() -> None:
    assert parse_reply(reply(GOOD_OPTIONS)) == OFFER


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes are no DHCP message"),
        (reply(b"")[:-1], "239 bytes are no DHCP message"),
        (reply(GOOD_OPTIONS, operation=1), "op 1,"),
        (reply(GOOD_OPTIONS).replace(COOKIE, bytes(4)), "cookie 0x0"),
        (reply(b""), "no message type"),
        (reply(bytes([53, 1, 99, 54, 4, *SERVER, 255])), "no message type that is known"),
        (reply(bytes([53, 1, 2, 255])), "or no server"),
        (reply(bytes([53, 0, 54, 4, *SERVER, 255])), "no message type"),
        (reply(bytes([53, 1, 2, 54, 4, 10])), "option 54 is cut short"),
        (reply(bytes([53])), "option 53 is cut short"),
    ],
)
def test_what_is_no_reply_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DhcpWireError, match=message):
        parse_reply(data)
