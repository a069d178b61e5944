"""Several connections served by one thread at a time, where each having its own would cost more.

Of Python's threads one runs. If every client's thread receives for itself, each wakes the others out of their
turn, twice a request: measured with ten clients, that takes more time than all else. So who finds that there
are others joins the crowd: the first of them leads, which is to wait for all of the sockets at once and to
serve whoever has sent something; the threads of the others sleep. What needs a wait is no business of the
leader: it sends a connection back to its own thread, and goes on. When the leader's own connection is sent
back, another one leads.

Invariants:
1. while anybody is in the crowd, one thread leads: its own connection's, until that thread has passed on;
2. a connection is served by the leader only while its own thread is in `serve`.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Member(Protocol):
    """A connection, as the crowd knows it."""

    def serve_ready(self) -> bool:
        """Do what can be done without waiting, now that something has come; False if more is to be done.

        Never raises: what goes wrong is found by the connection's own thread.
        """


@dataclass(slots=True, eq=False)
class _Place:
    member: Member
    descriptor: int
    called: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))  # to lead, or to go


class Crowd:
    """The connections of a server. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._present = 0
        self._lock = threading.Lock()
        self._epoll: select.epoll | None = None  # while somebody leads
        self._places: dict[int, _Place] = {}
        self._leader: _Place | None = None

    @contextmanager
    def presence(self) -> Iterator[None]:
        """For as long as there is a connection that may join."""
        with self._lock:
            self._present += 1
        try:
            yield
        finally:
            with self._lock:
                self._present -= 1

    @property
    def crowded(self) -> bool:
        """Whether joining is worth it."""
        return self._present > 1

    def serve(self, member: Member, descriptor: int) -> None:
        """Have a connection served, until it needs its own thread, which calls this. It has a presence.

        Raises OSError if the kernel can't watch one more socket; then nothing has changed.
        """
        place = _Place(member, descriptor)
        with self._lock:
            epoll = self._epoll or select.epoll()
            self._places[descriptor] = place  # before a leader can hear of it
            try:
                epoll.register(descriptor, select.EPOLLIN)
            except OSError:
                del self._places[descriptor]
                if self._epoll is None:
                    epoll.close()
                raise
            self._epoll = epoll
            self._leader = self._leader or place
        if self._leader is not place:
            place.called.acquire()
        if self._leader is place:
            self._lead(place, epoll)

    def _lead(self, own: _Place, epoll: select.epoll) -> None:
        try:
            while own.descriptor in self._places:
                for descriptor, _ in epoll.poll():
                    place = self._places[descriptor]
                    if not place.member.serve_ready() or not self.crowded:
                        self._send_back(place, epoll)
        finally:
            self._pass_on(own, epoll)

    def _send_back(self, place: _Place, epoll: select.epoll) -> None:
        with self._lock:
            del self._places[place.descriptor]
            epoll.unregister(place.descriptor)
        if place is not self._leader:
            place.called.release()

    def _pass_on(self, own: _Place, epoll: select.epoll) -> None:
        """Have somebody else lead, if anybody is left."""
        with self._lock:
            if self._places.pop(own.descriptor, None) is not None:  # leading has failed
                epoll.unregister(own.descriptor)
            self._leader = next(iter(self._places.values()), None)
            if self._leader is not None:
                self._leader.called.release()
            else:
                self._epoll = None
                epoll.close()
