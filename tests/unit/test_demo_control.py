"""Asking a control socket: answers, refusals, and daemons that misbehave. Unix sockets only."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from remuslike.demo.control import ask
from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import REPLY_LIMIT_BYTES, Pauses, Samples

Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def daemon(path: Path, handle: Handler) -> AsyncIterator[None]:
    """Something that listens at `path`."""
    socket = trio.socket.socket(trio.socket.AF_UNIX)
    await socket.bind(os.fspath(path))
    socket.listen(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(socket)])
        yield
        nursery.cancel_scope.cancel()


def answering(answer: bytes) -> Handler:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            request = json.loads(await stream.receive_some(4096))
            assert request.keys() <= {"command", "since", "count"}
            await stream.send_all(answer)

    return handle


async def test_an_answer_comes_in_pieces(tmp_path: Path) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            assert json.loads(await stream.receive_some(4096)) == {"command": "measure-pause", "count": 2}
            for piece in (b'{"pause_', b'ms": [1.5, 2]}\n', b"rest"):
                await stream.send_all(piece)

    path = tmp_path / "s"
    async with daemon(path, handle):
        assert (await ask(path, Pauses, "measure-pause", count=2)).pause_ms == [1.5, 2.0]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b'{"error": "not now"}\n', "refuses 'samples': not now"),
        (b"garbage\n", "answered 'samples' with"),
        (b'{"next": 1}\n', "answered 'samples' with"),
        (b'{"next": 1, "samples"', "hung up on 'samples'"),
        (b"", "hung up on 'samples'"),
    ],
)
async def test_other_answers_are_named(tmp_path: Path, answer: bytes, complaint: str) -> None:
    path = tmp_path / "s"
    async with daemon(path, answering(answer)):
        with pytest.raises(DaemonError, match=complaint):
            await ask(path, Samples, "samples", since=0)


async def test_an_answer_without_an_end_is_given_up(tmp_path: Path) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                while True:
                    await stream.send_all(bytes(REPLY_LIMIT_BYTES // 8))
        except trio.BrokenResourceError:
            pass

    path = tmp_path / "s"
    async with daemon(path, handle):
        with pytest.raises(DaemonError, match="without an end"):
            await ask(path, Samples, "samples", since=0)


async def test_silence_has_a_limit(tmp_path: Path) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    path = tmp_path / "s"
    async with daemon(path, handle):
        with pytest.raises(DaemonError, match=r"doesn't answer 'samples' within 0\.01 s"):
            await ask(path, Samples, "samples", limit_s=0.01, since=0)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await ask(tmp_path / "s", Samples, "samples", since=0)
