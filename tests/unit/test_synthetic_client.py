"""remuslike.synthetic.client, with guests on loopback that answer late, twice, or never."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from remuslike.synthetic import NoAnswerError
from remuslike.synthetic.client import Client, open_client
from remuslike.synthetic.service import (
    Operation,
    Reply,
    Report,
    Request,
    Status,
    decode_request,
    encode_reply,
)


class Guest:
    """Counts; `disturb` makes of each right answer what is sent."""

    def __init__(self, disturb: Callable[[Reply], list[Reply]] = lambda reply: [reply]) -> None:
        self.counters: dict[int, int] = {}
        self.sequences: dict[int, int] = {}
        self.passes = 0
        self._disturb = disturb

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            await udp.bind(("127.0.0.1", 0))
            task_status.started(udp.getsockname()[1])
            while True:
                payload, sender = await udp.recvfrom(2048)
                request = decode_request(payload)
                assert request is not None
                for reply in self._disturb(self._answer(request)):
                    await udp.sendto(encode_reply(reply), sender)

    def _answer(self, request: Request) -> Reply:
        client, report = request.client, None
        match request.operation:
            case Operation.COUNT | Operation.COUNT_DURABLY:
                if request.sequence > self.sequences.get(client, 0):
                    self.sequences[client] = request.sequence
                    self.counters[client] = self.counters.get(client, 0) + 1
            case Operation.VERIFY:
                self.passes += 1
        if request.operation in (Operation.VERIFY, Operation.REPORT):
            report = Report(self.passes, False, 0, 0, 0, 0, 0, 0, 0, 0)
        counter, sequence = self.counters.get(client, 0), self.sequences.get(client, 0)
        return Reply(request.operation, Status.OK, client, request.sequence, sequence, counter, report)


@asynccontextmanager
async def client_of(guest: Guest, answer_limit_s: float = 10) -> AsyncIterator[Client]:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(guest.serve)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        async with open_client(udp, "127.0.0.1", port=port, answer_limit_s=answer_limit_s) as client:
            yield client
        nursery.cancel_scope.cancel()


async def load(client: Client, answers: int) -> tuple[int, tuple[str, ...]]:
    """Until so many requests have been answered: how many were, and what was found."""
    async with trio.open_nursery() as nursery:
        work = await client.start_load(nursery, clients=3, durable=True)
        while work.acknowledged < answers:
            await trio.lowlevel.checkpoint()
        work.stop()
    await client.read_back(work)
    verdict = work.verdict
    assert len(verdict.latencies_ms) == verdict.acknowledged + sum(
        "was answered" in finding for finding in verdict.findings
    )
    return verdict.acknowledged, verdict.findings


async def test_a_right_guest_is_clean() -> None:
    async with client_of(Guest()) as client:
        acknowledged, findings = await load(client, 60)
        assert acknowledged >= 60
        assert findings == ()
        assert (await client.load(2, 0)).clean


async def test_what_is_not_answered_is_asked_again_and_answered_once() -> None:
    lost: set[tuple[Operation, int, int]] = set()

    def lose_each_first_answer(reply: Reply) -> list[Reply]:
        key = (reply.operation, reply.client, reply.asked)
        if reply.operation is not Operation.COUNT_DURABLY or key in lost or reply.asked > 2:
            return [reply, reply]
        lost.add(key)
        return []

    async with client_of(Guest(lose_each_first_answer)) as client:
        acknowledged, findings = await load(client, 12)
        assert acknowledged >= 12
        assert findings == ()
        assert len(lost) == 6


async def test_a_guest_that_forgets_is_found_out() -> None:
    guest = Guest()
    async with client_of(guest) as client:
        async with trio.open_nursery() as nursery:
            work = await client.start_load(nursery, clients=1)
            while work.acknowledged < 5:
                await trio.lowlevel.checkpoint()
            guest.counters[0] -= 2
            work.stop()
        await client.read_back(work)
        (finding,) = work.verdict.findings
        assert finding.startswith("client 0: 2 lost: ")


async def test_a_verification_is_waited_for() -> None:
    async with client_of(Guest()) as client:
        assert (await client.verify()).passes == 1
        assert (await client.verify()).passes == 2


async def test_a_silent_guest_is_given_up() -> None:
    async with client_of(Guest(lambda reply: []), answer_limit_s=0.05) as client:
        with pytest.raises(NoAnswerError, match=r"did not answer Request\(.*REPORT.*within 0\.05 s"):
            await client.report()
