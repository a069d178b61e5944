#!/usr/bin/env -S python3 -I -S
"""A program that stands in for QEMU: it takes QEMU's command line, maps the RAM, and answers the monitor.

What it does is said by REMUSLIKE_FAKE_QEMU, words separated by spaces:

    mute       say nothing on the monitor
    die        end at once, with a complaint and exit status 3
    split      map the RAM in two halves; "apart" as well: halves that don't touch
    half       map one half of the RAM
    no-ram     don't map the RAM
    refuse     answer every command but qmp_capabilities with an error
    deaf       don't read the incoming stream
    die-late   end when the incoming stream has come
"""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
import sys
import threading
from itertools import pairwise
from typing import Any


def _values(option: str) -> list[str]:
    return [value for argument, value in pairwise(sys.argv) if argument == option]


def _number(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    assert match, f"{pattern} is not in {text}"
    return int(match[1])


class FakeQemu:
    """One run of the program."""

    def __init__(self, wishes: list[str]) -> None:
        self._wishes = wishes
        self._monitor = socket.socket(fileno=_number(_values("-chardev")[0], r"fd=(\d+)"))
        self._device_state = _number(_values("-add-fd")[0], r"fd=(\d+)")
        self._mappings = self._map()
        self._state = "inmigrate" if "-incoming" in sys.argv else "prelaunch"
        self._lock = threading.Lock()

    def _map(self) -> list[mmap.mmap]:
        backend = _values("-object")[0]
        descriptor = os.open(f"/dev/fd/{_number(backend, r'/dev/fd/([0-9]+)')}", os.O_RDWR)
        size = _number(backend, r"size=(\d+)M") << 20
        if "no-ram" in self._wishes:
            return []
        if "split" in self._wishes:
            # The kernel maps downwards: with nothing between them the halves touch, in the wrong order.
            first = mmap.mmap(descriptor, size // 2)
            between = [mmap.mmap(-1, size)] if "apart" in self._wishes else []
            return [first, *between, mmap.mmap(descriptor, size // 2, offset=size // 2)]
        if "half" in self._wishes:
            return [mmap.mmap(descriptor, size // 2)]
        return [mmap.mmap(descriptor, size)]

    def run(self) -> None:
        if "mute" in self._wishes:
            self._monitor.recv(1)
            return
        version = {"qemu": {"major": 7, "minor": 2, "micro": 99}, "package": "fake"}
        self._say({"QMP": {"version": version, "capabilities": []}})
        with self._monitor.makefile() as lines:
            for line in lines:
                self._obey(json.loads(line))

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._monitor.sendall(json.dumps(message).encode() + b"\r\n")

    def _obey(self, request: dict[str, Any]) -> None:
        command, arguments = request["execute"], request.get("arguments", {})
        if "refuse" in self._wishes and command != "qmp_capabilities":
            self._say({"error": {"class": "GenericError", "desc": f"no {command} today"}})
            return
        result: Any = {}
        match command:
            case "stop":
                self._state = "paused"
                self._say({"event": "STOP"})
            case "cont":
                self._state = "running"
                self._say({"event": "RESUME"})
            case "query-status":
                result = {"status": self._state}
            case "xen-save-devices-state":
                os.write(self._device_state, f"devices of a {self._state} guest".encode())
            case "migrate-incoming":
                descriptor = int(arguments["uri"].removeprefix("fd:"))
                threading.Thread(target=self._take_over, args=[descriptor], daemon=True).start()
            case "remember":
                self._mappings[0][arguments["offset"]] = arguments["value"]
            case "event":
                self._say(arguments)
            case "exit":
                os._exit(arguments["status"])
        self._say({"return": result})

    def _take_over(self, descriptor: int) -> None:
        if "deaf" in self._wishes:
            return
        stream = socket.socket(fileno=os.dup(descriptor))
        received = b""
        while more := stream.recv(65536):
            received += more
        if "die-late" in self._wishes or not received.startswith(b"devices"):
            sys.stderr.write("qemu: error while loading state\n")
            sys.stderr.flush()
            os._exit(1)
        self._state = "running"
        self._say({"event": "RESUME"})


if __name__ == "__main__":
    wishes = os.environ.get("REMUSLIKE_FAKE_QEMU", "").split()
    if "die" in wishes:
        sys.exit("qemu: this machine doesn't start")
    FakeQemu(wishes).run()
