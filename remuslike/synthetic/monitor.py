"""QMP as QEMU's monitor speaks it (docs/interop/qmp-spec.txt): lines in, lines out. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

LINE_BYTES_MAX = 1 << 20
"""Far above any command; bounds what a broken client can make us keep."""

VERSION: dict[str, Any] = {"qemu": {"major": 1, "minor": 0, "micro": 0}, "package": "remuslike-synthetic"}


class RefusedError(Exception):
    """A command that is answered with an error; never leaves the monitor."""

    def __init__(self, description: str, error_class: str = "GenericError") -> None:
        super().__init__(description)
        self.description = description
        self.error_class = error_class


@dataclass(frozen=True, slots=True)
class Execute:
    """A command as it came. `tag` is what its answer repeats, if there is any."""

    name: str
    arguments: dict[str, Any]
    tag: dict[str, Any]


class Lines:
    """Cuts a byte stream into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes. RefusedError for one that doesn't end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest = b""
            raise RefusedError(f"JSON parse error, a line of more than {LINE_BYTES_MAX} bytes")
        return [line for line in lines if line.strip()]


def parse_execute(line: bytes) -> Execute:
    """RefusedError in QEMU's words if it is no command."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"JSON parse error, {error}") from error
    if not isinstance(body, dict):
        raise RefusedError("QMP input must be a JSON object")
    if not isinstance(body.get("execute"), str):
        raise RefusedError("QMP input lacks member 'execute'")
    arguments = body.get("arguments", {})
    if not isinstance(arguments, dict):
        raise RefusedError("QMP input member 'arguments' must be an object")
    tag = {"id": body["id"]} if "id" in body else {}
    return Execute(body["execute"], arguments, tag)


def argument(execute: Execute, name: str, kind: type) -> Any:
    """RefusedError in QEMU's words if it isn't there, or another kind of value."""
    if name not in execute.arguments:
        raise RefusedError(f"Parameter '{name}' is missing")
    value = execute.arguments[name]
    if not isinstance(value, kind):
        raise RefusedError(f"Invalid parameter type for '{name}', expected: {kind.__name__}")
    return value


def encode(message: dict[str, Any]) -> bytes:
    """A line."""
    return json.dumps(message).encode() + b"\r\n"


def greeting() -> dict[str, Any]:
    """What a monitor begins with."""
    return {"QMP": {"version": VERSION, "capabilities": []}}


def event(name: str, seconds: float, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Something that happened, and when by the wall clock."""
    whole = int(seconds)
    stamp = {"seconds": whole, "microseconds": int((seconds - whole) * 1e6)}
    return {"event": name, "timestamp": stamp, **({"data": data} if data else {})}


def failure(error: RefusedError, tag: dict[str, Any]) -> dict[str, Any]:
    """The answer to a refused command."""
    return {"error": {"class": error.error_class, "desc": error.description}, **tag}
