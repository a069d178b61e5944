"""The control socket: one JSON object a line in, one out. For `remuslike status`, and whoever watches."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio

from remuslike.errors import ControlError, RemusError, RequestError

_log = structlog.get_logger(__name__)

# A request is a command and a number or two; a client that sends more is none (P6).
_REQUEST_BYTES_MAX = 4096
_CLIENTS_MAX = 16
# A client that asks nothing for so long gives up its place.
_IDLE_LIMIT_S = 30.0

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


async def serve_control(
    path: Path, handle: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer requests until cancelled."""
    listening = _listen(path)
    limit = trio.CapacityLimiter(_CLIENTS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        async with limit:
            await _serve_client(stream, handle)

    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, serve, [listener])
            task_status.started()
    finally:
        _unlink(path)


def _listen(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _unlink(path)  # stale: the run directory is locked
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(_CLIENTS_MAX)
    except OSError as error:
        listening.close()
        raise ControlError(f"control socket '{path}': can't be made: {error}") from error
    return listening


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _serve_client(stream: trio.SocketStream, handle: Handler) -> None:
    pending = b""
    try:
        async with stream:
            while True:
                with trio.move_on_after(_IDLE_LIMIT_S) as idle:
                    data = await stream.receive_some()
                if idle.cancelled_caught or not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                if max(map(len, [*lines, pending])) > _REQUEST_BYTES_MAX:
                    await stream.send_all(b'{"error": "a request is a line of at most 4096 bytes"}\n')
                    return
                for line in lines:
                    await stream.send_all(json.dumps(await _answer(line, handle)).encode() + b"\n")
    except trio.BrokenResourceError:
        _log.debug("control.client_gone")


async def _answer(line: bytes, handle: Handler) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"the request is not JSON: {error}"}
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        return {"error": 'a request is an object with a "command"'}
    try:
        return await handle(request)
    except RemusError as error:
        return {"error": str(error)}


def integer_argument(request: dict[str, Any], name: str, low: int, high: int, default: int) -> int:
    """An optional integer of a request, checked; RequestError names it."""
    value = request.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise RequestError(f"{name} = {value!r}: must be an integer from {low} to {high}")
    return value
