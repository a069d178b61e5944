"""The demo's client: connections that stay open, write, never reconnect, and at the end read all back.

A process of its own, since it lives in the client's network namespace: `python -m
remuslike.demo.client`. It says what happens in JSON lines on standard output (`events` below) and
is told what to do by words on standard input, one a line:

```
(start)      -> {"event":"connected"}, then {"event":"progress",...} every REPORT_S
drain        -> stops writing, waits for what is under way, reads back -> {"event":"verified",...}
stop-guest   -> has the guest's agent stop the guest cleanly -> {"event":"stopping"}
(end)        -> the process ends, whatever it was doing
```

The history, for the checks that follow, is left in a file (`History`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

import click
import trio

from remuslike.demo.workload import (
    AcknowledgementReader,
    ConnectionHistory,
    Finding,
    ReplyError,
    ValueReader,
    check_values,
    encode,
    encode_write,
    key,
)

REPORT_S = 0.25
CONNECT_ATTEMPT_S = 1.0
ANSWER_LIMIT_S = 10.0
"""So long a connection that stands waits for its first answer: where each output is a checkpoint, those of
all the others may come first, and whoever gives up and begins anew adds to them."""
RECEIVE_BYTES = 1 << 18
READ_BATCH = 64
DRAIN_S = 20.0
READ_BACK_S = 120.0
AGENT_S = 20.0
REDIS_OVERHEAD_BYTES = 128  # of a short key with its value: dictionary entry, two objects, headers

Emit = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be written. `limit_bytes` bounds what redis needs for the values of all connections."""

    seed: int
    connections: int
    pipeline: int
    payload_bytes: int
    limit_bytes: int

    @property
    def writes_per_connection(self) -> int:
        """How many fit into the limit, redis's own needs included."""
        return max(1, self.limit_bytes // (self.payload_bytes + REDIS_OVERHEAD_BYTES) // self.connections)


@dataclass(slots=True)
class Connection:
    """One connection's life; `failure` says why it ended before its time."""

    number: int
    stream: trio.abc.Stream
    sent: int = 0
    acknowledged: int = 0
    failure: str | None = None

    def history(self) -> ConnectionHistory:
        return ConnectionHistory(self.number, self.sent, self.acknowledged)


@dataclass(slots=True)
class Load:
    """Writes on every connection until told to drain."""

    work: Work
    connections: list[Connection]
    draining: trio.Event = field(default_factory=trio.Event)
    reply_times: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Returns when every connection has drained, has failed, or DRAIN_S are over."""
        async with trio.open_nursery() as nursery:
            for connection in self.connections:
                nursery.start_soon(self._write, connection)
            await self.draining.wait()
            nursery.cancel_scope.deadline = trio.current_time() + DRAIN_S
        for connection in self.connections:
            if connection.failure is None and connection.acknowledged < connection.sent:
                connection.failure = f"no reply for {DRAIN_S:g} s"

    async def _write(self, connection: Connection) -> None:
        reader = AcknowledgementReader()
        try:
            await self._send(connection, self.work.pipeline)
            while not (self.draining.is_set() and connection.acknowledged == connection.sent):
                if connection.acknowledged == connection.sent:
                    await self.draining.wait()  # at the limit
                    continue
                data = await connection.stream.receive_some(RECEIVE_BYTES)
                if not data:
                    connection.failure = "the server closed the connection"
                    return
                self.reply_times.append(monotonic())
                count = reader.feed(bytes(data))
                connection.acknowledged += count
                if count and not self.draining.is_set():
                    await self._send(connection, count)
        except (trio.BrokenResourceError, ReplyError) as error:
            connection.failure = _reason(error)

    async def _send(self, connection: Connection, count: int) -> None:
        end = min(connection.sent + count, self.work.writes_per_connection)
        numbers = range(connection.sent, end)
        connection.sent = end  # before the send: what is cut half-way may have been done all the same
        work = self.work
        writes = (encode_write(work.seed, connection.number, n, work.payload_bytes) for n in numbers)
        if batch := b"".join(writes):
            await connection.stream.send_all(batch)


async def read_back(work: Work, connection: Connection) -> list[Finding]:
    """Every value of a connection through the connection itself, compared with what was written.

    A connection that fails here gets its `failure` set, and what it didn't read is left unjudged;
    the append-only file judges it as well.
    """
    history = connection.history()
    findings: list[Finding] = []
    reader = ValueReader()
    values: list[bytes | None] = []
    asked = 0
    judged = 0
    try:
        while judged < history.sent:
            if asked == judged:
                asked = min(judged + READ_BATCH, history.sent)
                numbers = range(judged, asked)
                await connection.stream.send_all(
                    b"".join(encode(b"GET", key(connection.number, number)) for number in numbers)
                )
            data = await connection.stream.receive_some(RECEIVE_BYTES)
            if not data:
                connection.failure = "the server closed the connection"
                break
            values += reader.feed(bytes(data))
            if judged + len(values) >= asked:
                findings += check_values(
                    history, judged, values, seed=work.seed, payload_bytes=work.payload_bytes
                )
                judged = asked
                values = []
    except (trio.BrokenResourceError, ReplyError) as error:
        connection.failure = _reason(error)
    return findings


def _reason(error: Exception) -> str:
    return str(error.__cause__ or error) or "the connection broke"


async def connect(number: int, host: str, port: int) -> Connection:
    """Tries until the service answers; the caller sets the time limit."""
    while True:
        if (stream := await _reach(host, port)) is None:
            continue
        answered = False
        try:
            with trio.move_on_after(ANSWER_LIMIT_S):
                await stream.send_all(encode(b"PING"))
                answered = await stream.receive_some(RECEIVE_BYTES) == b"+PONG\r\n"
        except trio.BrokenResourceError:
            pass
        finally:
            if not answered:
                await trio.aclose_forcefully(stream)
        if answered:
            return Connection(number, stream)


async def _reach(host: str, port: int) -> trio.SocketStream | None:
    with trio.move_on_after(CONNECT_ATTEMPT_S):
        try:
            return await trio.open_tcp_stream(host, port)
        except OSError:
            await trio.sleep(CONNECT_ATTEMPT_S / 10)
    return None


def history_document(load: Load, findings: list[Finding]) -> dict[str, object]:
    """What the client leaves behind: connections, findings of the read-back, times of replies."""
    return {
        "seed": load.work.seed,
        "payload_bytes": load.work.payload_bytes,
        "connections": [
            {**asdict(connection.history()), "failure": connection.failure} for connection in load.connections
        ],
        "findings": [asdict(finding) for finding in findings],
        "reply_times": [round(time, 5) for time in load.reply_times],
    }


class Session:
    """The process: commands in, events out."""

    def __init__(self, work: Work, host: str, ports: tuple[int, int], history: Path, emit: Emit) -> None:
        self._work = work
        self._host = host
        self._service_port, self._agent_port = ports
        self._history = history
        self._emit = emit

    async def run(self, commands: trio.abc.ReceiveStream) -> None:
        """Returns at the end of `commands`."""
        async with trio.open_nursery() as nursery:
            load = Load(self._work, [])
            nursery.start_soon(self._write_and_verify, load)
            async for line in lines(commands):
                match line:
                    case b"drain":
                        load.draining.set()
                    case b"stop-guest":
                        nursery.start_soon(self._stop_guest)
            nursery.cancel_scope.cancel()
        for connection in load.connections:
            await trio.aclose_forcefully(connection.stream)

    async def _write_and_verify(self, load: Load) -> None:

        async def open_connection(number: int) -> None:
            load.connections.append(await connect(number, self._host, self._service_port))

        async with trio.open_nursery() as nursery:
            for number in range(self._work.connections):
                nursery.start_soon(open_connection, number)
        self._emit({"event": "connected", "connections": len(load.connections)})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, load)
            await load.run()
            nursery.cancel_scope.cancel()
        await self._verify(load)

    async def _report(self, load: Load) -> None:
        while True:
            await trio.sleep(REPORT_S)
            self._emit({"event": "progress", **self._totals(load)})

    def _totals(self, load: Load) -> dict[str, object]:
        return {
            "at": monotonic(),
            "sent": sum(connection.sent for connection in load.connections),
            "acknowledged": sum(connection.acknowledged for connection in load.connections),
            "failed": sum(connection.failure is not None for connection in load.connections),
            "limited": all(
                connection.sent >= self._work.writes_per_connection for connection in load.connections
            ),
        }

    async def _verify(self, load: Load) -> None:
        findings: list[Finding] = []

        async def read(connection: Connection) -> None:
            findings.extend(await read_back(self._work, connection))

        with trio.move_on_after(READ_BACK_S) as scope:
            async with trio.open_nursery() as nursery:
                for connection in load.connections:
                    if connection.failure is None:
                        nursery.start_soon(read, connection)
        document = json.dumps(history_document(load, findings))
        self._history.write_text(document, "utf-8")
        self._emit({"event": "verified", "complete": not scope.cancelled_caught, **self._totals(load)})

    async def _stop_guest(self) -> None:
        try:
            with trio.fail_after(AGENT_S):
                agent = await trio.open_tcp_stream(self._host, self._agent_port)
            async with agent:
                await agent.send_all(b"stop-guest\n")
                self._emit({"event": "stopping"})
                # Its shell ends with the connection, so the connection stays for as long as the guest does.
                async for _ in agent:
                    pass
        except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
            self._emit({"event": "refused", "reason": f"the guest's agent doesn't answer: {error!r}"})


async def lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    """Whole lines of `stream`, without their ends."""
    rest = b""
    async for data in stream:
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line


def emit_line(event: dict[str, object]) -> None:
    """One JSON line on standard output, written at once."""
    os.write(sys.stdout.fileno(), json.dumps(event).encode() + b"\n")


@click.command()
@click.option("--host", required=True)
@click.option("--service-port", type=int, required=True)
@click.option("--agent-port", type=int, required=True)
@click.option("--seed", type=int, required=True)
@click.option("--connections", type=int, required=True)
@click.option("--pipeline", type=int, required=True)
@click.option("--payload-bytes", type=int, required=True)
@click.option("--limit-bytes", type=int, required=True)
@click.option("--history", type=click.Path(path_type=Path), required=True)
def main(host: str, service_port: int, agent_port: int, history: Path, **work: int) -> None:
    """The demo's client; the demo starts it."""
    session = Session(Work(**work), host, (service_port, agent_port), history, emit_line)

    async def run() -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as commands:
            await session.run(commands)

    trio.run(run)


if __name__ == "__main__":
    main()
