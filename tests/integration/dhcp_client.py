"""Clients that ask a guest for leases and echoes without end, and remember every answer in its order.

Nothing is asked twice: a question whose answer was lost stays unanswered, as if its client had given up.
"""

from __future__ import annotations

import itertools
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from daemon_harness import Cluster, wait_for
from dhcp_history import Answer, Books, Echoed, Leased, Offered, read_books, violations
from dhcp_wire import CLIENT_PORT, SERVER_PORT, Kind, discover, parse_reply, request
from guest_client import shell
from pyroute2 import netns

from remuslike.demo.plan import GUEST_ADDRESS, LAN
from remuslike.image import ECHO_LOG, ECHO_PORT, LEASE_FILE


@dataclass(frozen=True, slots=True)
class Wants:
    """What clients ask for: five echoes to an epoch, so that a host that dies has given some answers that are
    not out yet, and leases as often as dnsmasq manages when it has given hundreds. Of these, each second one
    is to come without an offer, or every one if `offers` is false."""

    echoes_per_s: float = 200
    leases_per_s: float = 10
    offers: bool = True


READINGS = 10
"""Of the guest's books, some 0.1 s each, while nobody seeks a lease: dnsmasq writes its whole file anew for
each, but is done with the last one in far less than all of them take."""

_DATAGRAM_BYTES = 2048
_SEPARATOR = "=== leases"


@dataclass(slots=True)
class Clients:
    """The questions under way, and `answers`, the history."""

    echo: trio.socket.SocketType
    dhcp: trio.socket.SocketType
    wants: Wants
    answers: list[Answer] = field(default_factory=list)
    seekers_wait: bool = False
    _words: set[str] = field(default_factory=set)
    _macs: set[str] = field(default_factory=set)

    @property
    def counts(self) -> Counter[type[Answer]]:
        """How many answers there are of each kind."""
        return Counter(type(answer) for answer in self.answers)

    async def ask_for_echoes(self) -> None:
        """A word of its own each time."""
        for number in itertools.count():
            word = f"word-{number}"
            self._words.add(word)
            await self.echo.sendto(word.encode(), (GUEST_ADDRESS, ECHO_PORT))
            await trio.sleep(1 / self.wants.echoes_per_s)

    async def hear_echoes(self) -> None:
        while True:
            data = await self.echo.recv(_DATAGRAM_BYTES)
            number, word = data.decode().split()
            assert word in self._words, f"an echo of {word!r}, which nobody said"
            self.answers.append(Echoed(int(number), word))

    async def ask_for_leases(self) -> None:
        """A host of its own each time."""
        for number in itertools.count(1):
            await trio.sleep(1 / self.wants.leases_per_s)
            if self.seekers_wait:
                continue
            mac = (0x02 << 40 | number).to_bytes(6).hex(":")
            self._macs.add(mac)
            await self._broadcast(discover(number, mac, rapid=not self.wants.offers or number % 2 == 0))

    async def hear_of_leases(self) -> None:
        while True:
            reply = parse_reply(await self.dhcp.recv(_DATAGRAM_BYTES))
            assert reply.mac in self._macs, f"an answer to {reply.mac}, which never asked"
            match reply.kind:
                case Kind.OFFER:
                    self.answers.append(Offered(reply.mac, reply.address))
                    await self._broadcast(request(reply))
                case Kind.ACK:
                    self.answers.append(Leased(reply.mac, reply.address))
                case Kind.NAK:
                    # Two were offered the same address, and the other one was quicker.
                    pass
                case kind:
                    raise AssertionError(f"a server said {kind.name}")

    async def _broadcast(self, message: bytes) -> None:
        await self.dhcp.sendto(message, ("255.255.255.255", SERVER_PORT))

    async def wait_answers(self, kind: type[Answer], count: int = 1) -> None:
        """Returns when there are so many more of that kind."""
        goal = self.counts[kind] + count
        await wait_for(f"clients: {count} more {kind.__name__}", lambda: self.counts[kind] >= goal or None)


@asynccontextmanager
async def asking(cluster: Cluster, wants: Wants = Wants()) -> AsyncIterator[Clients]:
    """Clients at work while the body runs."""
    namespace = cluster.namespaces.client
    with _udp_socket_in(namespace) as echo, _udp_socket_in(namespace) as dhcp:
        dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LAN.encode())
        await dhcp.bind(("", CLIENT_PORT))
        clients = Clients(echo, dhcp, wants)
        async with trio.open_nursery() as nursery:
            if wants.echoes_per_s:
                nursery.start_soon(clients.hear_echoes)
                nursery.start_soon(clients.ask_for_echoes)
            if wants.leases_per_s:
                nursery.start_soon(clients.hear_of_leases)
                nursery.start_soon(clients.ask_for_leases)
            yield clients
            nursery.cancel_scope.cancel()


def _udp_socket_in(namespace: str) -> trio.socket.SocketType:
    netns.pushns()
    try:
        netns.setns(namespace, flags=0)
        return trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        netns.popns()


async def read_guest_books(cluster: Cluster) -> Books:
    """What the guest that runs now knows."""
    said = await shell(cluster, f"cat {ECHO_LOG}; echo '{_SEPARATOR}'; cat {LEASE_FILE}")
    echo_log, separator, lease_file = said.partition(_SEPARATOR + "\n")
    assert separator, f"the guest's books: {said[-200:]!r}"
    return read_books(echo_log, lease_file)


async def find_violations(cluster: Cluster, clients: Clients) -> list[str]:
    """What is wrong with the answers up to now, as the guest that runs now has it in its books.

    A file that is just being written doesn't show all that the guest knows, but nothing else either; and what
    it doesn't know it never learns, since nobody asks twice. So what is wrong is so in every reading.
    """
    answers = tuple(clients.answers)
    found: list[str] = []
    clients.seekers_wait = True
    for _ in range(READINGS):
        found = violations(answers, await read_guest_books(cluster))
        if not found:
            break
    clients.seekers_wait = False
    return found
