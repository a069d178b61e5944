"""remuslike.daemon.control over a real unix socket: honest clients are answered, others do no harm."""

# ruff: noqa: ASYNC240  (a test may block for a file system call)

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from remuslike.daemon.control import _CLIENTS_MAX, _REQUEST_BYTES_MAX, integer_argument, serve_control
from remuslike.errors import ControlError, GuestError, RequestError


class Daemon:
    """Answers as a daemon does; `gate` holds the answer to "wait" back."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.requests: list[dict[str, Any]] = []

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        match request["command"]:
            case "statistics":
                return {"role": "primary"}
            case "wait":
                await self.gate.wait()
                return {"waited": True}
            case "fail":
                raise GuestError("QEMU died")
            case other:
                raise RequestError(f"command {other!r}: known are statistics, wait and fail")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
async def daemon(path: Path, nursery: trio.Nursery) -> Daemon:
    made = Daemon()
    await nursery.start(serve_control, path, made.answer)
    return made


@asynccontextmanager
async def client_of(path: Path) -> AsyncIterator[Callable[[bytes], Any]]:
    """Sends bytes and returns the next line of the answer; b"" at the end."""
    async with await trio.open_unix_socket(str(path)) as stream:
        pending = b""

        async def ask(data: bytes) -> bytes:
            nonlocal pending
            if data:
                await stream.send_all(data)
            while b"\n" not in pending:
                received = await stream.receive_some(65536)
                if not received:
                    return pending
                pending += received
            line, _, pending = pending.partition(b"\n")
            return line

        yield ask


async def asked(path: Path, data: bytes) -> dict[str, Any]:
    async with client_of(path) as ask:
        answer: dict[str, Any] = json.loads(await ask(data))
        return answer


async def test_a_request_is_answered(daemon: Daemon, path: Path) -> None:
    assert await asked(path, b'{"command": "statistics"}\n') == {"role": "primary"}


async def test_one_connection_takes_many_requests(daemon: Daemon, path: Path) -> None:
    async with client_of(path) as ask:
        for _ in range(3):
            assert json.loads(await ask(b'{"command": "statistics"}\n')) == {"role": "primary"}


async def test_requests_in_one_piece_are_answered_in_order(daemon: Daemon, path: Path) -> None:
    async with client_of(path) as ask:
        first = await ask(b'{"command": "statistics"}\n{"command": "fail"}\n{"command": "statistics"}\n')
        assert [json.loads(line) for line in (first, await ask(b""), await ask(b""))] == [
            {"role": "primary"},
            {"error": "QEMU died"},
            {"role": "primary"},
        ]


async def test_a_request_byte_by_byte_is_one_request(daemon: Daemon, path: Path) -> None:
    async with await trio.open_unix_socket(str(path)) as stream:
        for byte in b'{"command": "statistics"}\n':
            await stream.send_all(bytes([byte]))
        assert json.loads(await stream.receive_some(4096)) == {"role": "primary"}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"garbage\n", "the request is not JSON"),
        (b"\n", "the request is not JSON"),
        (b"\xff\xfe\n", "the request is not JSON"),
        (b"[" * 4000 + b"\n", "the request is not JSON"),
        (b"1" * 4096 + b"\n", ""),
        (b"[]\n", 'an object with a "command"'),
        (b"null\n", 'an object with a "command"'),
        (b"{}\n", 'an object with a "command"'),
        (b'{"command": 7}\n', 'an object with a "command"'),
        (b'{"command": "unknown"}\n', "command 'unknown': known are"),
        (b'{"command": "fail"}\n', "QEMU died"),
    ],
)
async def test_what_cannot_be_done_is_named_and_the_connection_goes_on(
    daemon: Daemon, path: Path, line: bytes, complaint: str
) -> None:
    async with client_of(path) as ask:
        answer = json.loads(await ask(line))
        assert list(answer) == ["error"]
        assert complaint in answer["error"]
        assert json.loads(await ask(b'{"command": "statistics"}\n')) == {"role": "primary"}


async def test_a_request_without_end_is_cut_off(daemon: Daemon, path: Path) -> None:
    async with client_of(path) as ask:
        answer = json.loads(await ask(b"x" * (_REQUEST_BYTES_MAX + 1)))
        assert f"at most {_REQUEST_BYTES_MAX} bytes" in answer["error"]
        assert await ask(b"") == b""
    assert await asked(path, b'{"command": "statistics"}\n') == {"role": "primary"}


async def test_a_client_that_hangs_up_half_way_is_forgotten(daemon: Daemon, path: Path) -> None:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b'{"command": "stat')
    assert await asked(path, b'{"command": "statistics"}\n') == {"role": "primary"}


async def test_a_client_that_does_not_wait_for_its_answer_is_forgotten(daemon: Daemon, path: Path) -> None:
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(b'{"command": "wait"}\n{"command": "wait"}\n')
        await wait_all_tasks_blocked()
    daemon.gate.set()
    await wait_all_tasks_blocked()
    assert await asked(path, b'{"command": "statistics"}\n') == {"role": "primary"}


async def test_a_slow_answer_holds_up_nobody_else(daemon: Daemon, path: Path) -> None:
    async with client_of(path) as slow, trio.open_nursery() as nursery:
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(json.loads(await slow(b'{"command": "wait"}\n')))

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert await asked(path, b'{"command": "statistics"}\n') == {"role": "primary"}
        assert answers == []
        daemon.gate.set()
    assert answers == [{"waited": True}]


async def test_clients_beyond_the_limit_wait_for_their_turn(daemon: Daemon, path: Path) -> None:
    streams = [await trio.open_unix_socket(str(path)) for _ in range(_CLIENTS_MAX)]
    await wait_all_tasks_blocked()
    answers: list[dict[str, Any]] = []

    async def come_late() -> None:
        answers.append(await asked(path, b'{"command": "statistics"}\n'))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_late)
        await wait_all_tasks_blocked()
        assert answers == []
        for stream in streams:
            await stream.aclose()
    assert answers == [{"role": "primary"}]


async def test_only_root_reaches_it(daemon: Daemon, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_stale_socket_is_replaced_and_ours_is_removed(path: Path) -> None:
    path.write_text("left by somebody who died")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, Daemon().answer)
        assert await asked(path, b'{"command": "statistics"}\n') == {"role": "primary"}
        nursery.cancel_scope.cancel()
    assert not path.exists()


@pytest.mark.parametrize("name", ["missing/control.sock", "n" * 120])
async def test_a_place_without_room_for_it_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ControlError, match=r"control socket '.*': can't be made"):
        await serve_control(tmp_path / name, Daemon().answer)


async def test_a_defect_is_not_hidden(path: Path) -> None:
    """An error that isn't expected ends the daemon: it must not look like an answer."""

    async def defective(_request: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("a defect of ours")

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, path, defective)
            async with client_of(path) as ask:
                assert await ask(b'{"command": "statistics"}\n') == b""


@pytest.mark.parametrize("value", [1, 5, 10])
def test_an_integer_of_a_request(value: int) -> None:
    assert integer_argument({"count": value}, "count", 1, 10, 3) == value


def test_an_integer_that_is_missing_has_a_default() -> None:
    assert integer_argument({}, "count", 1, 10, 3) == 3


@pytest.mark.parametrize("value", [0, 11, -1, "5", 5.0, True, None, [], 1 << 70])
def test_what_is_no_integer_in_range_is_named(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        integer_argument({"count": value}, "count", 1, 10, 3)
    assert f"count = {value!r}: must be an integer from 1 to 10" in str(caught.value)
