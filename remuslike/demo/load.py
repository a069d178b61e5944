"""The demo's end of the client process: what it reports, and what it is told."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import trio
from pydantic import ValidationError

from remuslike.demo.errors import LoadError
from remuslike.demo.messages import Message
from remuslike.demo.processes import Process, Program
from remuslike.demo.workload import ConnectionHistory, Finding

RECEIVE_BYTES = 1 << 16


class Progress(Message):
    """The client's count of writes, all connections together; `at` is CLOCK_MONOTONIC seconds."""

    at: float = 0.0
    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    limited: bool = False
    complete: bool = False


class HistoryConnection(Message):
    """A connection as the client left it; `failure` says why it ended before its time."""

    connection: int
    sent: int
    acknowledged: int
    failure: str | None


class HistoryFinding(Message):
    """What the client missed when it read its values back."""

    kind: str
    connection: int
    number: int
    acknowledged: bool


class History(Message):
    """The client's file, `remuslike.demo.client.history_document`."""

    seed: int
    payload_bytes: int
    connections: list[HistoryConnection]
    findings: list[HistoryFinding]
    reply_times: list[float]

    @property
    def by_connection(self) -> dict[int, ConnectionHistory]:
        return {
            entry.connection: ConnectionHistory(entry.connection, entry.sent, entry.acknowledged)
            for entry in self.connections
        }

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(entry.failure for entry in self.connections if entry.failure is not None)

    @property
    def found(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(entry.kind, entry.connection, entry.number, entry.acknowledged) for entry in self.findings
        )


def load_history(path: Path) -> History:
    """Raises LoadError when the client left none."""
    try:
        return History.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise LoadError(f"the client's history {path} can't be read: {error}") from error


def client_program(namespace: str, log: Path, **options: object) -> Program:
    """The client's command line; `options` are those of `remuslike.demo.client.main`."""
    words = (word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value)))
    arguments = (sys.executable, "-m", "remuslike.demo.client", *words)
    return Program("the client", namespace, arguments, log, pipes=True)


class LoadClient:
    """A running client. `progress` is its latest count."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.progress = Progress()
        self._seen: set[str] = set()
        self._heard = trio.Event()

    async def run(self) -> None:
        """Take in its reports until cancelled. Raises LoadError when it ends or talks nonsense."""
        pipe = self._process.popen.stdout
        assert pipe is not None
        rest = b""
        async with trio.lowlevel.FdStream(os.dup(pipe.fileno())) as stream:
            async for data in stream:
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    self._take(line)
                self._heard.set()
                self._heard = trio.Event()
        raise LoadError(f"the client ended early. {self._process.log_tail()}")

    async def wait_for(self, event: str, what: str, limit_s: float) -> None:
        """Returns when the client has reported `event`; raises LoadError after `limit_s`."""
        with trio.move_on_after(limit_s):
            while event not in self._seen:
                await self._heard.wait()
            return
        raise LoadError(f"{what}: not done within {limit_s:g} s. {self._process.log_tail()}")

    def tell(self, command: str) -> None:
        """A command of `remuslike.demo.client`; short, so that the pipe takes it at once."""
        pipe = self._process.popen.stdin
        assert pipe is not None
        try:
            os.write(pipe.fileno(), command.encode() + b"\n")
        except BrokenPipeError as error:
            raise LoadError(f"the client ended early. {self._process.log_tail()}") from error

    def _take(self, line: bytes) -> None:
        try:
            report = json.loads(line)
            event = report["event"]
            if event == "refused":
                raise LoadError(f"the client can't go on: {report['reason']}")
            if event in ("progress", "verified"):
                self.progress = Progress.model_validate(report)
        except (ValueError, KeyError, TypeError) as error:
            raise LoadError(f"the client reports {line[:200]!r}: {error}") from error
        self._seen.add(event)
