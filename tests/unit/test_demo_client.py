"""The client against a model of redis: it counts what it is told, and notices what is wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked

from remuslike.demo import client
from remuslike.demo.client import (
    DRAIN_S,
    Connection,
    Load,
    Session,
    Work,
    connect,
    history_document,
    lines,
    read_back,
)
from remuslike.demo.load import History
from remuslike.demo.workload import Finding, key

WORK = Work(seed=11, connections=2, pipeline=3, payload_bytes=64, limit_bytes=1 << 20)


@dataclass(slots=True)
class ModelRedis:
    """SET, GET and PING. `silent_after` writes it answers no more; `closes_after` it hangs up."""

    values: dict[bytes, bytes] = field(default_factory=dict)
    silent_after: int = 1 << 30
    closes_after: int = 1 << 30
    write_answer: bytes = b"+OK\r\n"
    writes: int = 0
    on_write: Callable[[int], None] = lambda count: None

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with aclosing(commands(stream)) as received:
            async for words in received:
                if self.writes >= self.closes_after:
                    await stream.aclose()
                    return
                answer = self.answer(words)
                if self.writes <= self.silent_after:
                    await stream.send_all(answer)

    def answer(self, words: list[bytes]) -> bytes:
        match words:
            case [b"SET", name, value]:
                self.writes += 1
                self.values[name] = value
                self.on_write(self.writes)
                return self.write_answer
            case [b"GET", name]:
                value = self.values.get(name)
                return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
            case _:
                return b"+PONG\r\n"


async def commands(stream: trio.abc.ReceiveStream) -> AsyncGenerator[list[bytes], None]:
    data = b""
    async for more in stream:
        data += more
        while b"\r\n" in data:
            header, _, rest = data.partition(b"\r\n")
            words: list[bytes] = []
            for _ in range(int(header[1:])):
                length, separator, tail = rest.partition(b"\r\n")
                if not separator or len(tail) < int(length[1:]) + 2:
                    break
                words.append(tail[: int(length[1:])])
                rest = tail[int(length[1:]) + 2 :]
            if len(words) < int(header[1:]):
                break
            data = rest
            yield words


@asynccontextmanager
async def loaded(redis: ModelRedis, work: Work = WORK) -> AsyncIterator[Load]:
    """A load over memory streams; the block says when it drains, and ends when it has drained."""
    async with trio.open_nursery() as servers:
        connections = []
        for number in range(work.connections):
            near, far = memory_stream_pair()
            servers.start_soon(redis.serve, far)
            connections.append(Connection(number, near))
        load = Load(work, connections)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            yield load
        servers.cancel_scope.cancel()


async def run_writes(redis: ModelRedis, count: int, work: Work = WORK) -> Load:
    enough = trio.Event()
    redis.on_write = lambda writes: enough.set() if writes >= count else None
    async with loaded(redis, work) as load:
        await enough.wait()
        load.draining.set()
    return load


async def test_every_write_is_acknowledged_and_drained(autojump_clock: MockClock) -> None:
    redis = ModelRedis()
    load = await run_writes(redis, 50)
    assert sum(connection.acknowledged for connection in load.connections) == redis.writes >= 50
    for connection in load.connections:
        assert connection.failure is None
        assert connection.acknowledged == connection.sent
    assert len(redis.values) == redis.writes
    assert load.reply_times == sorted(load.reply_times)


async def test_the_pipeline_bounds_what_is_unanswered(autojump_clock: MockClock) -> None:
    redis = ModelRedis(silent_after=0)
    load = await run_writes(redis, WORK.pipeline * WORK.connections)
    assert [connection.sent for connection in load.connections] == [3, 3]
    assert [connection.failure for connection in load.connections] == [f"no reply for {DRAIN_S:g} s"] * 2


async def test_the_limit_ends_the_writing(autojump_clock: MockClock) -> None:
    work = Work(seed=1, connections=2, pipeline=3, payload_bytes=72, limit_bytes=2000)
    assert work.writes_per_connection == 5
    redis = ModelRedis()
    load = await run_writes(redis, 10, work)
    assert [connection.sent for connection in load.connections] == [5, 5]


async def test_a_closed_connection_is_a_failure(autojump_clock: MockClock) -> None:
    load = await run_writes(ModelRedis(closes_after=20), 20)
    assert any(connection.failure for connection in load.connections)


async def test_an_error_reply_is_a_failure_and_no_acknowledgement(autojump_clock: MockClock) -> None:
    load = await run_writes(ModelRedis(write_answer=b"-OOM no memory\r\n"), 6)
    for connection in load.connections:
        assert connection.acknowledged == 0
        assert "-OOM" in str(connection.failure)


async def read_all(redis: ModelRedis, load: Load) -> list[Finding]:
    findings: list[Finding] = []
    async with trio.open_nursery() as servers:
        for connection in load.connections:
            near, far = memory_stream_pair()
            servers.start_soon(redis.serve, far)
            connection.stream = near
            findings += await read_back(load.work, connection)
        servers.cancel_scope.cancel()
    return findings


async def test_reading_back_finds_nothing_when_nothing_is_lost(autojump_clock: MockClock) -> None:
    redis = ModelRedis()
    load = await run_writes(redis, 200)
    assert await read_all(redis, load) == []


@pytest.mark.parametrize("number", [0, 63, 64, 70])
async def test_reading_back_finds_each_loss(autojump_clock: MockClock, number: int) -> None:
    redis = ModelRedis()
    load = await run_writes(redis, 200)
    del redis.values[key(1, number)]
    redis.values[key(0, number)] = redis.values[key(0, number + 1)]
    assert await read_all(redis, load) == [
        Finding("changed", 0, number, acknowledged=True),
        Finding("missing", 1, number, acknowledged=True),
    ]


async def test_a_connection_that_ends_while_reading_is_a_failure(autojump_clock: MockClock) -> None:
    redis = ModelRedis()
    load = await run_writes(redis, 20)
    redis.closes_after = 0
    await read_all(redis, load)
    assert all(connection.failure for connection in load.connections)


async def test_the_history_is_what_the_demo_reads(autojump_clock: MockClock) -> None:
    load = await run_writes(ModelRedis(), 20)
    finding = Finding("missing", 0, 1, acknowledged=True)
    document = json.dumps(history_document(load, [finding]))
    history = History.model_validate_json(document)
    assert history.found == (finding,)
    assert history.by_connection[1] == load.connections[1].history()
    assert history.failures == ()


async def test_lines_are_whole_wherever_the_stream_is_cut() -> None:
    near, far = memory_stream_pair()
    for piece in (b"dr", b"ain\nstop", b"-guest\nrest"):
        await far.send_all(piece)
    await far.aclose()
    assert [line async for line in lines(near)] == [b"drain", b"stop-guest"]


async def test_a_session_over_real_sockets(tmp_path: Path) -> None:
    """Loopback only: connects, writes, drains, reads back, has the agent stop the guest."""
    redis = ModelRedis()
    agent_heard: list[bytes] = []
    events: list[dict[str, object]] = []
    told, tells = memory_stream_pair()

    async def agent(stream: trio.SocketStream) -> None:
        agent_heard.append(await stream.receive_some(100))
        await stream.aclose()

    def emit(event: dict[str, object]) -> None:
        events.append(event)
        following = {"connected": b"drain\n", "verified": b"stop-guest\n"}
        if command := following.get(str(event["event"])):
            nursery.start_soon(tells.send_all, command)
        elif event["event"] == "stopping":
            nursery.start_soon(tells.aclose)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            ports = []
            for handler in (redis.serve, agent):
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, handler, listeners)
                ports.append(listeners[0].socket.getsockname()[1])
            history = tmp_path / "history.json"
            await Session(WORK, "127.0.0.1", (ports[0], ports[1]), history, emit).run(told)
            nursery.cancel_scope.cancel()
    assert [event["event"] for event in events if event["event"] != "progress"] == [
        "connected",
        "verified",
        "stopping",
    ]
    verified = next(event for event in events if event["event"] == "verified")
    assert verified["complete"]
    assert verified["acknowledged"] == verified["sent"] == len(redis.values)
    assert agent_heard == [b"stop-guest\n"]
    assert History.model_validate_json(history.read_bytes()).findings == []


async def connect_to(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    """Returns when `serve` has answered client 4."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            connection = await connect(4, "127.0.0.1", listeners[0].socket.getsockname()[1])
            assert connection.number == 4
            await connection.stream.aclose()
            nursery.cancel_scope.cancel()


async def test_a_connection_that_stands_is_not_given_up_for_a_late_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "CONNECT_ATTEMPT_S", 0.02)
    attempts = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        await wait_all_tasks_blocked(0.1)  # longer than an attempt may take
        await ModelRedis().serve(stream)

    await connect_to(serve)
    assert attempts == 1


async def test_connecting_goes_on_until_the_service_answers() -> None:
    attempts = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await stream.aclose()
        else:
            await ModelRedis().serve(stream)

    await connect_to(serve)
    assert attempts == 2
