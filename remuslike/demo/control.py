"""Asks a daemon through its control socket."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import REPLY_LIMIT_BYTES, Answer, parse_reply

RECEIVE_BYTES = 1 << 16


async def ask(
    path: Path, kind: type[Answer], request: str, *, limit_s: float = 5, **arguments: int
) -> Answer:
    """One request, one answer of `kind`, on a connection of its own.

    Raises DaemonError when the daemon refuses, says something else, hangs up or is silent for
    `limit_s`, and OSError when nobody listens there.
    """
    message = json.dumps({"command": request, **arguments}).encode() + b"\n"
    reply = bytearray()
    try:
        with trio.fail_after(limit_s):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(message)
                while b"\n" not in reply:
                    data = await stream.receive_some(RECEIVE_BYTES)
                    if not data:
                        raise DaemonError(f"the daemon at {path} hung up on {request!r}")
                    reply += data
                    if len(reply) > REPLY_LIMIT_BYTES:
                        raise DaemonError(f"the daemon at {path} answers {request!r} without an end")
    except trio.TooSlowError as error:
        raise DaemonError(f"the daemon at {path} doesn't answer {request!r} within {limit_s:g} s") from error
    except trio.BrokenResourceError as error:
        raise DaemonError(f"the daemon at {path} broke off at {request!r}") from error
    return parse_reply(bytes(reply.partition(b"\n")[0]), kind, request)
