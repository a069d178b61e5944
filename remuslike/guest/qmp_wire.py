"""QMP on the wire: JSON objects, one a line (QEMU, docs/interop/qmp-spec.txt). Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from remuslike.errors import GuestError

# Far above any reply we ask for; bounds what a broken monitor can make us keep (P6).
LINE_LENGTH_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first message of a monitor; `version` is such as "7.2.22"."""

    version: str
    package: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a command: `value` of "return"."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a command that failed."""

    error_class: str
    description: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened in QEMU, such as "STOP" or "SHUTDOWN"."""

    name: str
    data: dict[str, Any]


Message = Greeting | Reply | Failure | Event


def encode_command(command: str, arguments: dict[str, Any]) -> bytes:
    """One line that executes `command`."""
    body: dict[str, Any] = {"execute": command}
    if arguments:
        body["arguments"] = arguments
    return json.dumps(body).encode() + b"\n"


def parse_message(line: bytes) -> Message:
    """One line of a monitor; GuestError if it is none of the four kinds of message."""
    try:
        body = json.loads(line)
        if "event" in body:
            return Event(str(body["event"]), dict(body.get("data", {})))
        if "return" in body:
            return Reply(body["return"])
        if "error" in body:
            return Failure(str(body["error"]["class"]), str(body["error"]["desc"]))
        if "QMP" in body:
            version = body["QMP"]["version"]
            numbers = version["qemu"]
            return Greeting(
                f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}", str(version["package"])
            )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GuestError(f"QEMU's monitor sent {line[:200]!r}, which is not QMP: {error!r}") from error
    raise GuestError(f"QEMU's monitor sent {line[:200]!r}, which is no QMP message")


class LineReader:
    """Cuts a byte stream into lines, of LINE_LENGTH_MAX bytes at most."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LENGTH_MAX:
            raise GuestError(f"QEMU's monitor sent a line of more than {LINE_LENGTH_MAX} bytes")
        return [line for line in (line.strip() for line in lines) if line]
