"""Watching daemons that answer, that stop answering, and that die. Shell programs stand in for them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from remuslike.demo.errors import DaemonError
from remuslike.demo.observer import Daemon, Observer

PRIMARY = {"role": "primary", "phase": "protected", "protected": True, "generation": 1, "checkpoints": 3}
SECONDARY = {"role": "secondary", "phase": "standby", "acknowledged": 3, "applied": 3}
SAMPLE = {
    **{"at": 1.0, "dirty_pages": 5, "pause_ms": 4.0, "stop_ms": 1.0, "scan_ms": 1.0, "copy_ms": 1.0},
    **{"seal_ms": 0.1, "gap_ms": 0.1},
    **{"devices_ms": 1.0, "resume_ms": 1.0, "raw_bytes": 20480, "wire_bytes": 200, "commit_ms": 7.0},
}


class ModelProcess:
    """A process that is alive until told otherwise."""

    def __init__(self, name: str) -> None:
        self.program = type("Program", (), {"name": name})()
        self.ended = trio.Event()
        self.ends_with: int | None = None

    def end(self, status: int) -> None:
        self.ends_with = status
        self.ended.set()

    def status(self) -> int | None:
        return self.ends_with

    async def wait(self) -> int:
        await self.ended.wait()
        assert self.ends_with is not None
        return self.ends_with

    def check_alive(self) -> None:
        if self.ends_with is not None:
            raise DaemonError(
                f"{self.program.name} ended early with status {self.ends_with}. {self.log_tail()}"
            )

    def log_tail(self) -> str:
        return f"the log of {self.program.name}"


class ModelDaemon:
    """Answers at a control socket, one sample an epoch."""

    def __init__(self, name: str, path: Path, statistics: dict[str, Any]) -> None:
        self.process = ModelProcess(name)
        self.path = path
        self.statistics = statistics
        self.epochs = 2
        self.garbage = False

    def observed(self) -> Daemon:
        return Daemon(self.process, self.path)  # type: ignore[arg-type]

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = json.loads(await stream.receive_some(4096))
            if self.garbage:
                await stream.send_all(b"garbage\n")
                return
            answer = self.statistics
            if request["command"] == "samples":
                numbers = range(request["since"], self.epochs)
                answer = {"next": self.epochs, "samples": [{"epoch": n, **SAMPLE} for n in numbers]}
            await stream.send_all(json.dumps(answer).encode() + b"\n")


@asynccontextmanager
async def served(*daemons: ModelDaemon) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for daemon in daemons:
            socket = trio.socket.socket(trio.socket.AF_UNIX)
            await socket.bind(os.fspath(daemon.path))
            socket.listen(4)
            nursery.start_soon(trio.serve_listeners, daemon.serve, [trio.SocketListener(socket)])
        yield nursery
        nursery.cancel_scope.cancel()


@pytest.fixture
def primary(tmp_path: Path) -> ModelDaemon:
    return ModelDaemon("the primary", tmp_path / "a", dict(PRIMARY))


@pytest.fixture
def secondary(tmp_path: Path) -> ModelDaemon:
    return ModelDaemon("the secondary", tmp_path / "b", dict(SECONDARY))


async def test_each_sample_is_seen_once(primary: ModelDaemon, secondary: ModelDaemon) -> None:
    observer = Observer(primary.observed(), secondary.observed())
    with trio.fail_after(10):
        async with served(primary, secondary) as nursery:
            nursery.start_soon(observer.run)
            await observer.wait_until(lambda: observer.secondary_said is not None, "an answer", 5)
            primary.epochs = 5
            await observer.wait_until(lambda: len(observer.samples) == 5, "samples", 5)
    assert [sample.epoch for sample in observer.samples] == [0, 1, 2, 3, 4]
    assert observer.primary_said is not None
    assert observer.primary_said.protected


async def test_a_daemon_that_does_not_listen_yet_is_waited_for(tmp_path: Path) -> None:
    observer = Observer(secondary=ModelDaemon("the secondary", tmp_path / "b", SECONDARY).observed())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observer.run)
        with pytest.raises(
            DaemonError, match=r"the control socket: not reached within 0.01 s\nthe secondary: the log"
        ):
            await observer.wait_until(lambda: False, "the control socket", 0.01)
        nursery.cancel_scope.cancel()


async def test_an_early_end_is_an_error(tmp_path: Path) -> None:
    daemon = ModelDaemon("the secondary", tmp_path / "b", SECONDARY)
    daemon.process.end(4)
    with pytest.RaisesGroup(pytest.RaisesExc(DaemonError, match="the secondary ended early with status 4")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Observer(secondary=daemon.observed()).run)


async def test_a_daemon_that_hangs_up_to_die_is_told_by_its_status(primary: ModelDaemon) -> None:
    primary.garbage = True
    observer = Observer(primary.observed())
    with pytest.RaisesGroup(
        pytest.RaisesExc(DaemonError, match="ended early with status 1"), flatten_subgroups=True
    ):
        async with served(primary), trio.open_nursery() as nursery:
            nursery.start_soon(observer.run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            primary.process.end(1)


async def test_a_daemon_that_talks_nonsense_is_an_error(
    primary: ModelDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remuslike.demo.observer.LAST_WORDS_S", 0.01)
    primary.garbage = True
    with pytest.RaisesGroup(
        pytest.RaisesExc(DaemonError, match="answered 'statistics'"), flatten_subgroups=True
    ):
        async with served(primary), trio.open_nursery() as nursery:
            nursery.start_soon(Observer(primary.observed()).run)


async def test_a_killed_primary_is_no_longer_asked(primary: ModelDaemon, secondary: ModelDaemon) -> None:
    observer = Observer(primary.observed(), secondary.observed())
    assert observer.primary is not None
    with trio.fail_after(10):
        async with served(primary, secondary) as nursery:
            nursery.start_soon(observer.run)
            await observer.wait_until(lambda: bool(observer.samples), "samples", 5)
            observer.primary.may_end = True
            primary.garbage = True
            primary.process.end(-9)
            secondary.statistics["phase"] = "active"
            await observer.wait_until(
                lambda: observer.secondary_said is not None and observer.secondary_said.phase == "active",
                "",
                5,
            )


@pytest.mark.parametrize(("status", "complaint"), [(0, None), (1, "ended with status 1. the log of")])
async def test_an_expected_end_must_be_a_clean_one(
    secondary: ModelDaemon, status: int, complaint: str | None
) -> None:
    secondary.process.end(status)
    if complaint is None:
        await Observer().wait_ended(secondary.observed(), "the end", 1)
    else:
        with pytest.raises(DaemonError, match=complaint):
            await Observer().wait_ended(secondary.observed(), "the end", 1)


async def test_an_end_that_does_not_come(secondary: ModelDaemon) -> None:
    began = time.monotonic()
    with pytest.raises(DaemonError, match=r"is still there after 0\.01 s"):
        await Observer().wait_ended(secondary.observed(), "the end", 0.01)
    assert time.monotonic() - began < 5
