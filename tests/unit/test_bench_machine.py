"""The agent of a benchmark's real guest, played by a server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
import trio

from netbuf import GuestTap
from remuslike.bench import machine
from remuslike.bench.errors import MeasurementError
from remuslike.bench.machine import QemuGuest

GUEST = QemuGuest(cast(GuestTap, None), 1, "127.0.0.1", "52:54:00:6f:00:02")
Handler = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def agent(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # who asked may hang up before the end
            async with stream:
                await handler(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        monkeypatch.setattr(machine, "AGENT_PORT", listener.socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield
        nursery.cancel_scope.cancel()


async def test_a_command_is_one_line_and_the_answer_comes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        asked = b"".join([bytes(part) async for part in stream])
        for part in (b"asked: ", asked, b"x" * 100_000):
            await stream.send_all(part)

    async with agent(echo, monkeypatch):
        await GUEST.ready()
        answer = await GUEST.run("echo", "two words", "$HOME")
    assert answer == "asked: echo 'two words' '$HOME'\n" + "x" * 100_000


async def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def babble(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"x" * 65_536)

    async with agent(babble, monkeypatch):
        with pytest.raises(MeasurementError, match=r"yes in 127.0.0.1 prints without end"):
            await GUEST.run("yes")


async def test_a_guest_that_never_answers_has_not_booted(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    monkeypatch.setattr(machine, "AGENT_PORT", listener.socket.getsockname()[1])
    await listener.aclose()
    with pytest.raises(MeasurementError, match="hasn't booted within 90 s"):
        await GUEST.ready()
    with pytest.raises(MeasurementError, match=r"agent of 127.0.0.1 is gone.*has QEMU died"):
        await GUEST.run("true")
