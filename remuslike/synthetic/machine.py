"""The synthetic guest's machine: what QEMU is to another guest. One thread, and one wait for all that
happens."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from remuslike.synthetic import monitor
from remuslike.synthetic.command import Command
from remuslike.synthetic.disk import NbdDisk
from remuslike.synthetic.errors import SyntheticCommandError
from remuslike.synthetic.monitor import Execute, RefusedError, argument
from remuslike.synthetic.program import Program
from remuslike.synthetic.ram import Ram
from remuslike.synthetic.registers import Registers, decode_registers, encode_registers
from remuslike.synthetic.storage import Storage

_TUNGETVNETHDRSZ = 0x800454D7  # linux/if_tun.h
_FRAME_BYTES_MAX = 128 * 1024
_TURN_RECEIVED_MAX = 32
_TICK_MS = 1
_LISTENED_BYTES = 1 << 16


class Tap:
    """The inherited end of an interface, whose frames have a virtio header in front."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        size = fcntl.ioctl(descriptor, _TUNGETVNETHDRSZ, struct.pack("i", 0))
        self._header = bytes(struct.unpack("i", size)[0])
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        return self._descriptor

    def send(self, frame: bytes) -> bool:
        try:
            os.write(self._descriptor, self._header + frame)
        except BlockingIOError:
            return False
        except OSError:
            # The interface is down, and a frame on a cable that is unplugged is lost.
            return True
        return True

    def receive(self) -> bytes | None:
        try:
            return os.read(self._descriptor, _FRAME_BYTES_MAX)[len(self._header) :]
        except OSError:
            return None


class Machine:
    """RAM, disk, interface, monitor and the program. Raises SyntheticError if they don't fit together."""

    def __init__(self, command: Command) -> None:
        self._command = command
        memory = np.frombuffer(mmap.mmap(command.memory, command.memory_bytes), np.uint8)
        self._ram = Ram(memory, command.rates.working_set_mib, command.rates.seed)
        self._disk = NbdDisk(command.disk.socket, command.disk.export) if command.disk else None
        storage = Storage(self._disk, command.rates, self._ram) if self._disk else None
        if command.rates.disk_writes_s and storage is None:
            raise SyntheticCommandError(
                f"synthetic.disk_writes_s = {command.rates.disk_writes_s}: guest.disks has none to write to"
            )
        self._tap = Tap(command.nic.tap) if command.nic else None
        mac = command.nic.mac if command.nic else None
        send = self._tap.send if self._tap else _send_nowhere
        self._program = Program(command.rates, Registers(), self._ram, storage, mac, send)
        # What must agree, for device state to be this guest's.
        self._identity = f"{command.rates} {command.memory_bytes} {mac!r}".encode()
        self._monitor = socket.socket(fileno=command.monitor)
        self._lines = monitor.Lines()
        self._negotiated = False
        self._status = "inmigrate" if command.standby else "prelaunch"
        self._starts_itself = command.standby
        self._incoming: int | None = None
        self._stream = b""
        self._resumed_ns = 0
        self._clock_ns = 0
        self._ended = False
        self._poll = select.poll()

    # --- the wait -------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `quit`, or the monitor's end."""
        self._say(monitor.greeting())
        self._poll.register(self._monitor, select.POLLIN)
        if self._disk is not None:
            self._poll.register(self._disk.fileno(), select.POLLIN)
        more = False
        while not self._ended:
            ready = {descriptor for descriptor, _ in self._poll.poll(self._patience_ms(more))}
            if self._monitor.fileno() in ready:
                self._listen()
            if self._incoming is not None and self._incoming in ready:
                self._load()
            if self._disk is not None and self._disk.fileno() in ready:
                self._disk.send()
                self._disk.receive()
            more = self._running and self._work(ready)
            if self._disk is not None:
                writing = select.POLLOUT if self._disk.sending else 0
                self._poll.modify(self._disk.fileno(), select.POLLIN | writing)

    def _patience_ms(self, more: bool) -> int | None:
        if more:
            return 0
        return None if not self._running or self._program.idle else _TICK_MS

    def _work(self, ready: set[int]) -> bool:
        program = self._program
        program.registers.clock_ns = self._clock_ns + time.monotonic_ns() - self._resumed_ns
        if self._tap is not None and self._tap.fileno() in ready:
            for _ in range(_TURN_RECEIVED_MAX):
                frame = self._tap.receive()
                if frame is None:
                    break
                program.receive(frame)
        return program.turn()

    @property
    def _running(self) -> bool:
        return self._status == "running"

    def _resume(self) -> None:
        self._status = "running"
        self._clock_ns = self._program.registers.clock_ns
        self._resumed_ns = time.monotonic_ns()
        self._program.resume()
        if self._tap is not None:
            self._poll.register(self._tap.fileno(), select.POLLIN)
        self._tell("RESUME")

    def _pause(self, status: str) -> None:
        if self._running:
            self._program.pause()
            self._ram.note(self._program.registers)
            if self._tap is not None:
                self._poll.unregister(self._tap.fileno())
            self._tell("STOP")
        self._status = status

    # --- device state ---------------------------------------------------------------------------

    def _save(self, descriptor: int) -> None:
        state = memoryview(encode_registers(self._program.registers, self._identity))
        while state:
            state = state[os.write(descriptor, state) :]

    def _load(self) -> None:
        """Take in what has come; at its end, live. DeviceStateError ends the process."""
        assert self._incoming is not None
        part = os.read(self._incoming, _LISTENED_BYTES)
        self._stream += part
        if part:
            return
        self._poll.unregister(self._incoming)
        os.close(self._incoming)
        self._incoming = None
        self._program.registers = decode_registers(self._stream, self._identity)
        self._stream = b""
        self._status = "paused"
        self._program.activate()
        if self._starts_itself:
            self._resume()

    # --- the monitor ----------------------------------------------------------------------------

    def _say(self, message: dict[str, Any]) -> None:
        self._monitor.sendall(monitor.encode(message))

    def _tell(self, name: str, data: dict[str, Any] | None = None) -> None:
        self._say(monitor.event(name, time.time(), data))

    def _listen(self) -> None:
        data = self._monitor.recv(_LISTENED_BYTES)
        if not data:
            self._ended = True
            return
        try:
            lines = self._lines.receive(data)
        except RefusedError as error:
            self._say(monitor.failure(error, {}))
            return
        for line in lines:
            self._answer(line)

    def _answer(self, line: bytes) -> None:
        tag: dict[str, Any] = {}
        try:
            execute = monitor.parse_execute(line)
            tag = execute.tag
            self._say({"return": self._obey(execute), **tag})
        except RefusedError as error:
            self._say(monitor.failure(error, tag))

    def _obey(self, execute: Execute) -> Any:
        if not self._negotiated and execute.name != "qmp_capabilities":
            raise RefusedError(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        if execute.name not in _COMMANDS:
            raise RefusedError(f"The command {execute.name} has not been found", "CommandNotFound")
        return _COMMANDS[execute.name](self, execute)

    def _qmp_capabilities(self, _execute: Execute) -> Any:
        if self._negotiated:
            raise RefusedError(
                "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
            )
        self._negotiated = True
        return {}

    def _query_version(self, _execute: Execute) -> Any:
        return monitor.VERSION

    def _query_status(self, _execute: Execute) -> Any:
        return {"status": self._status, "running": self._running, "singlestep": False}

    def _stop(self, _execute: Execute) -> Any:
        if self._status == "inmigrate":
            self._starts_itself = False
        elif self._running:
            self._pause("paused")
        return {}

    def _cont(self, _execute: Execute) -> Any:
        if self._status == "shutdown":
            raise RefusedError("Resetting the Virtual Machine is required")
        if self._status == "inmigrate":
            self._starts_itself = True
        elif not self._running:
            self._resume()
        return {}

    def _xen_save_devices_state(self, execute: Execute) -> Any:
        name = argument(execute, "filename", str)
        prefix, _, number = name.rpartition("/")
        sets = self._command.descriptor_sets
        if prefix != "/dev/fdset" or not number.isdigit() or int(number) not in sets:
            raise RefusedError(f"Could not open '{name}': No such file or directory")
        if self._status == "inmigrate":
            raise RefusedError("Guest is waiting for an incoming migration")
        was_running = self._running
        if was_running:
            self._pause("paused")
        self._save(sets[int(number)])
        if was_running:
            self._resume()
        return {}

    def _migrate_set_capabilities(self, execute: Execute) -> Any:
        for each in argument(execute, "capabilities", list):
            if each.get("capability") != "x-ignore-shared":
                raise RefusedError(f"Invalid parameter '{each.get('capability')}'")
        return {}

    def _migrate_incoming(self, execute: Execute) -> Any:
        uri = argument(execute, "uri", str)
        if self._status != "inmigrate" or self._incoming is not None:
            raise RefusedError("'-incoming' was not specified on the command line")
        if not uri.removeprefix("fd:").isdigit():
            raise RefusedError(f"unknown migration protocol: {uri}")
        self._incoming = int(uri.removeprefix("fd:"))
        self._poll.register(self._incoming, select.POLLIN)
        return {}

    def _system_powerdown(self, _execute: Execute) -> Any:
        """As a guest that obeys, under `-action shutdown=pause`."""
        if self._running:
            self._tell("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
            self._pause("shutdown")
        return {}

    def _quit(self, _execute: Execute) -> Any:
        self._tell("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        self._ended = True
        return {}


_COMMANDS: dict[str, Callable[[Machine, Execute], Any]] = {
    "qmp_capabilities": Machine._qmp_capabilities,
    "query-version": Machine._query_version,
    "query-status": Machine._query_status,
    "stop": Machine._stop,
    "cont": Machine._cont,
    "xen-save-devices-state": Machine._xen_save_devices_state,
    "migrate-set-capabilities": Machine._migrate_set_capabilities,
    "migrate-incoming": Machine._migrate_incoming,
    "system_powerdown": Machine._system_powerdown,
    "quit": Machine._quit,
}


def _send_nowhere(_frame: bytes) -> bool:
    return True
