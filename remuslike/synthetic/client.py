"""Clients of a synthetic guest: each asks, repeats until it is answered, and asks again.

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    async with open_client(udp, "10.77.0.2") as client:
        verdict = await client.load(clients=16, seconds=5, durable=True)
        report = await client.verify()
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import trio

from remuslike.synthetic.errors import NoAnswerError
from remuslike.synthetic.history import History, Verdict, judge
from remuslike.synthetic.service import (
    SERVICE_PORT,
    Operation,
    Reply,
    Report,
    Request,
    decode_reply,
    encode_request,
)

REPEAT_S = 0.1
"""A request is sent again after so long, as one of the guest's answers may have died with its host."""

ANSWER_LIMIT_S = 30.0
"""Above any takeover; past it the guest counts as gone."""

_POLL_S = 0.02
_REPLY_BYTES_MAX = 2048


@dataclass(slots=True)
class Load:
    """Clients at work. `stop` has each end with the answer that it waits for."""

    histories: list[History]
    latencies_ms: list[float] = field(default_factory=list)
    answered_at_s: list[float] = field(default_factory=list)
    _stopping: bool = False

    def stop(self) -> None:
        self._stopping = True

    @property
    def stopping(self) -> bool:
        return self._stopping

    @property
    def acknowledged(self) -> int:
        return sum(history.acknowledged for history in self.histories)

    @property
    def verdict(self) -> Verdict:
        return judge(self.histories, self.latencies_ms, self.answered_at_s)


@dataclass(slots=True)
class _Waiting:
    reply: Reply | None = None
    answered: trio.Event = field(default_factory=trio.Event)


class Client:
    """One socket, and any number of clients behind it. `open_client` makes one."""

    def __init__(self, udp: trio.socket.SocketType, address: tuple[str, int], answer_limit_s: float) -> None:
        self._udp = udp
        self._destination = address
        self._answer_limit_s = answer_limit_s
        self._waiting: dict[tuple[Operation, int, int], _Waiting] = {}
        self._questions = count()

    async def run(self) -> None:
        """Take answers in, for as long as anybody asks."""
        while True:
            try:
                payload = await self._udp.recv(_REPLY_BYTES_MAX)
            except OSError:
                # An ICMP error to something sent before: the guest, or its host, isn't there.
                continue
            if (reply := decode_reply(payload)) is not None:
                self._receive(reply)

    def _receive(self, reply: Reply) -> None:
        """What was asked twice may be answered twice: the second answer is to nobody."""
        waiting = self._waiting.pop((reply.operation, reply.client, reply.asked), None)
        if waiting is not None:
            waiting.reply = reply
            waiting.answered.set()

    async def ask(self, request: Request) -> Reply:
        """The first answer. Raises NoAnswerError."""
        key = (request.operation, request.client, request.sequence)
        waiting = self._waiting[key] = _Waiting()
        try:
            with trio.move_on_after(self._answer_limit_s):
                while waiting.reply is None:
                    await self._send(encode_request(request))
                    with trio.move_on_after(REPEAT_S):
                        await waiting.answered.wait()
                return waiting.reply
        finally:
            self._waiting.pop(key, None)
        raise NoAnswerError(
            f"{self._destination[0]} did not answer {request} within {self._answer_limit_s:g} s"
        )

    async def _ask(self, operation: Operation, client: int = 0) -> Reply:
        """What counts nothing, under a number of its own."""
        return await self.ask(Request(operation, client, next(self._questions)))

    async def _send(self, payload: bytes) -> None:
        try:
            await self._udp.sendto(payload, self._destination)
        except OSError:
            # Nobody is there to be found; it is sent again.
            await trio.lowlevel.checkpoint()

    async def start_load(self, nursery: trio.Nursery, clients: int, *, durable: bool = False) -> Load:
        """So many clients at work, from number 0 on, each with one request under way."""
        replies = [await self._ask(Operation.READ, number) for number in range(clients)]
        load = Load([History(number) for number in range(clients)])
        for history, reply in zip(load.histories, replies, strict=True):
            history.begin(reply)
            nursery.start_soon(self._work, load, history, durable)
        return load

    async def _work(self, load: Load, history: History, durable: bool) -> None:
        operation = Operation.COUNT_DURABLY if durable else Operation.COUNT
        while not load.stopping:
            began = trio.current_time()
            history.answer(await self.ask(Request(operation, history.client, history.next())))
            now = trio.current_time()
            load.latencies_ms.append((now - began) * 1e3)
            load.answered_at_s.append(now)

    async def read_back(self, load: Load) -> None:
        """Compare what the guest has now. Prerequisite: the load has stopped."""
        for history in load.histories:
            history.compare(await self._ask(Operation.READ, history.client))

    async def load(self, clients: int, seconds: float, *, durable: bool = False) -> Verdict:
        """Have so many clients ask for so long, and read back what was counted."""
        async with trio.open_nursery() as nursery:
            load = await self.start_load(nursery, clients, durable=durable)
            await trio.sleep(seconds)
            load.stop()
        await self.read_back(load)
        return load.verdict

    async def report(self) -> Report:
        """The guest about itself."""
        return _report_of(await self._ask(Operation.REPORT))

    async def verify(self) -> Report:
        """Have the guest look at all that it consists of; its report after that. Raises NoAnswerError."""
        before = await self.report()
        wanted = before.passes + 1
        if before.verifying:
            wanted += 1  # the pass under way has begun before now
            await self._wait_passes(before.passes + 1)
        await self._ask(Operation.VERIFY)
        return await self._wait_passes(wanted)

    async def _wait_passes(self, passes: int) -> Report:
        with trio.move_on_after(self._answer_limit_s):
            while True:
                report = await self.report()
                if report.passes >= passes:
                    return report
                await trio.sleep(_POLL_S)
        raise NoAnswerError(f"{self._destination[0]} did not verify itself within {self._answer_limit_s:g} s")


def _report_of(reply: Reply) -> Report:
    assert reply.report is not None, "the guest reports when it is asked to"
    return reply.report


@asynccontextmanager
async def open_client(
    udp: socket.socket, address: str, *, port: int = SERVICE_PORT, answer_limit_s: float = ANSWER_LIMIT_S
) -> AsyncIterator[Client]:
    """A client of the guest at `address`, on a datagram socket of any network namespace; the socket is closed
    at the end."""
    with trio.socket.from_stdlib_socket(udp) as own:
        client = Client(own, (address, port), answer_limit_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield client
            nursery.cancel_scope.cancel()
