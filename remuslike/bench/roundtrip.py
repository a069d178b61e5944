"""How long the hosts' link takes there and back: what no protocol between them can be quicker than."""

from __future__ import annotations

import socket
from statistics import median
from time import perf_counter

from remuslike.bench.errors import MeasurementError
from remuslike.bench.stage import socket_in
from remuslike.demo.plan import PEER_ADDRESSES, Namespaces

_TIMES = 21
_LIMIT_S = 1.0
_PING = b"remuslike"


def link_round_trip_ms(namespaces: Namespaces) -> float:
    """The median of some datagrams' ways from the primary's host to the secondary's and back.

    One thread stands at both ends, so that it is the network's time and no scheduler's. Raises
    MeasurementError when one doesn't come.
    """
    hosts = namespaces.hosts
    with (
        socket_in(hosts["primary"], socket.SOCK_DGRAM) as here,
        socket_in(hosts["secondary"], socket.SOCK_DGRAM) as there,
    ):
        try:
            for end, address in zip((here, there), PEER_ADDRESSES.values(), strict=True):
                end.settimeout(_LIMIT_S)
                end.bind((address, 0))
            here.connect(there.getsockname())
            there.connect(here.getsockname())
            return median(_once_ms(here, there) for _ in range(_TIMES))
        except OSError as error:
            raise MeasurementError(f"the link between the hosts carries no datagrams: {error}") from error


def _once_ms(here: socket.socket, there: socket.socket) -> float:
    began = perf_counter()
    for one, other in ((here, there), (there, here)):
        one.send(_PING)
        other.recv(len(_PING))
    return (perf_counter() - began) * 1e3
