"""The frames of benchmarks, iperf3's report, the relay, and who used a processor."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from netbuf.tap import VNET_HEADER_BYTES
from remuslike.bench.errors import MeasurementError
from remuslike.bench.lan import HOST_ADDRESS, HOST_MAC, Guest, counters
from remuslike.bench.relay import relay
from remuslike.bench.sealing import netlink_messages
from remuslike.bench.traffic import checksum, read_iperf3, udp_frame, usage

GUEST = cast(Guest, SimpleNamespace(address="10.111.0.2", mac="52:54:00:6f:00:01"))
END: dict[str, Any] = {
    "sum_received": {"bits_per_second": 16.2e9},
    "cpu_utilization_percent": {"host_total": 67.2, "remote_total": 32.0},
}


def test_a_frame_is_the_shortest_of_ethernet_and_whole() -> None:
    frame = udp_frame(GUEST)[VNET_HEADER_BYTES:]
    assert len(frame) == 64 - 4  # the frame check sequence is the wire's
    assert frame[:14].hex(":") == f"{HOST_MAC}:{GUEST.mac}:08:00"
    assert checksum(frame[14:34]) == 0
    assert socket.inet_ntoa(frame[26:30]) == GUEST.address
    assert socket.inet_ntoa(frame[30:34]) == HOST_ADDRESS


def test_the_checksum_is_that_of_the_rfc() -> None:
    """RFC 1071, section 3: the sum of these bytes is ddf2."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


def test_the_receiver_says_how_fast_it_was() -> None:
    found = read_iperf3(json.dumps({"end": END}))
    assert (found.gbit_per_s, found.cores) == (16.2, {"client": 0.672, "server": 0.32})


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ('{"error": "unable to connect", "end": {}}', "iperf3 failed: unable to connect"),
        ("", "can't be understood"),
        ("[]", "can't be understood"),
        ('{"end": {}}', "can't be understood"),
        ('{"end": {"cpu_utilization_percent": 1}}', "can't be understood"),
    ],
)
def test_no_figure_is_made_of_a_report_that_has_none(output: str, reason: str) -> None:
    with pytest.raises(MeasurementError, match=reason):
        read_iperf3(output)


def test_the_relay_moves_frames_both_ways_in_order_and_whole_until_it_is_told() -> None:
    kind = socket.SOCK_SEQPACKET
    (lan, one), (guest, other) = (
        socket.socketpair(socket.AF_UNIX, kind),
        socket.socketpair(socket.AF_UNIX, kind),
    )
    until, told = os.pipe()
    for end in (one, other):
        end.setblocking(False)
    with lan, one, guest, other:
        moving = threading.Thread(target=relay, args=(one.fileno(), other.fileno(), until, 1 << 17))
        moving.start()
        try:
            frames = [bytes([number]) * (1 + number * 997) for number in range(60)]
            for sender, receiver in ((lan, guest), (guest, lan)):
                receiver.settimeout(10)
                for frame in frames:
                    sender.send(frame)
                    assert receiver.recv(1 << 17) == frame
        finally:
            os.close(told)
            moving.join()
            os.close(until)


def test_time_on_a_processor_is_told_from_waiting() -> None:
    with usage(busy=0) as used:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
    assert 0 < used.cores["busy"] <= 1.1


def test_counters_of_an_interface_that_is_gone_are_an_error() -> None:
    assert counters("lo").received_bytes >= 0
    with pytest.raises(MeasurementError, match="'gone0' is gone"):
        counters("gone0")


def test_only_netlink_messages_are_counted() -> None:
    left, right = socket.socketpair()
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    get_link = bytes.fromhex("20000000 1200 0103 00000000 00000000".replace(" ", "")) + bytes(16)
    with left, right, netlink, netlink_messages() as counted:
        left.send(b"no netlink")
        assert counted.sent == 0
        netlink.send(get_link)
        netlink.sendto(get_link, (0, 0))
        assert counted.sent == 2
        netlink.recv(1 << 16)
    assert counted.sent == 2
