"""The synthetic guest's program as a process: its monitor, what `stop` means, and the way to another."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remuslike.synthetic import Rates, program_path
from remuslike.synthetic.registers import decode_registers

RATES = Rates(dirty_pages_s=20_000, working_set_mib=1)
MEMORY_MIB = 4
LIMIT_S = 60
IDENTITY = f"{RATES} {MEMORY_MIB << 20} None".encode()


class Started:
    """The process, its monitor, and its memory as we have it."""

    def __init__(self, stack: ExitStack, log: Path, append: str, *, standby: bool) -> None:
        self.log = log
        memory = os.memfd_create("ram")
        self.devices = os.memfd_create("devices")
        ours, theirs = socket.socketpair()
        source, self.incoming = socket.socketpair()
        stack.enter_context(ours)
        self.state_end = stack.enter_context(source)
        stack.callback(os.close, self.devices)
        ours.settimeout(LIMIT_S)
        os.ftruncate(memory, MEMORY_MIB << 20)
        self.memory = np.frombuffer(mmap.mmap(memory, MEMORY_MIB << 20), np.uint8)
        arguments = [
            *("-nodefaults", "-m", str(MEMORY_MIB)),
            *("-object", f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path=/dev/fd/{memory},share=on"),
            *("-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-add-fd", f"fd={self.devices},set=1"),
            *("-append", append, *(("-incoming", "defer") if standby else ("-S",))),
        ]
        inherited = [memory, theirs.fileno(), self.devices, self.incoming.fileno()]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [program_path(), *arguments], pass_fds=inherited, stdout=output, stderr=output
            )
        stack.callback(self.process.wait, LIMIT_S)
        stack.callback(self.process.kill)
        theirs.close()
        self.incoming_number = self.incoming.fileno()
        self.incoming.close()
        os.close(memory)
        self._lines = stack.enter_context(ours.makefile("rw"))
        self.events: list[str] = []

    def hear(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._lines.readline())
        return message

    def say(self, line: str) -> dict[str, Any]:
        """The answer; events before it are kept."""
        self._lines.write(line + "\n")
        self._lines.flush()
        while "event" in (message := self.hear()):
            self.events.append(message["event"])
        return message

    def execute(self, command: str, **arguments: Any) -> Any:
        answer = self.say(json.dumps({"execute": command, "arguments": arguments}))
        assert "return" in answer, answer
        return answer["return"]

    def refusal(self, command: str, **arguments: Any) -> tuple[str, str]:
        error = self.say(json.dumps({"execute": command, "arguments": arguments}))["error"]
        return error["class"], error["desc"]

    @property
    def status(self) -> str:
        return str(self.execute("query-status")["status"])

    def save(self) -> bytes:
        self.execute("xen-save-devices-state", filename="/dev/fdset/1", live=False)
        state = os.pread(self.devices, 1 << 20, 0)
        os.ftruncate(self.devices, 0)
        os.lseek(self.devices, 0, os.SEEK_SET)
        return state


@contextmanager
def started(
    directory: Path, append: str | None = None, *, standby: bool = False, negotiated: bool = True
) -> Iterator[Started]:
    with ExitStack() as stack:
        words = RATES.append() if append is None else append
        guest = Started(stack, directory / "log", words, standby=standby)
        if negotiated:
            assert guest.hear()["QMP"]["version"]["package"] == "remuslike-synthetic"
            guest.execute("qmp_capabilities")
        yield guest


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Started]:
    with started(tmp_path) as one:
        yield one


def run_until_written(guest: Started, pages: int) -> None:
    """Have it run until it has written so many pages at least, and stop it."""
    written = 0
    while written < pages:
        guest.execute("cont")
        guest.execute("query-status")
        guest.execute("stop")
        written = decode_registers(guest.save(), IDENTITY).pages


def test_before_the_negotiation_it_obeys_nothing(tmp_path: Path) -> None:
    with started(tmp_path, negotiated=False) as guest:
        guest.hear()
        expected = ("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
        assert guest.refusal("query-status") == expected
        guest.execute("qmp_capabilities")
        assert guest.status == "prelaunch"
        assert guest.refusal("qmp_capabilities")[0] == "CommandNotFound"


def test_what_it_does_not_understand_it_says_as_qemu_does(guest: Started) -> None:
    assert guest.refusal("eject") == ("CommandNotFound", "The command eject has not been found")
    assert guest.say("{")["error"]["desc"].startswith("JSON parse error")
    assert guest.say("[1]")["error"]["desc"] == "QMP input must be a JSON object"
    assert guest.say('{"execute": "query-version", "id": 7}')["id"] == 7
    missing = ("GenericError", "Parameter 'filename' is missing")
    assert guest.refusal("xen-save-devices-state") == missing
    nowhere = guest.refusal("xen-save-devices-state", filename="/dev/fdset/2")
    assert nowhere == ("GenericError", "Could not open '/dev/fdset/2': No such file or directory")
    assert guest.refusal("migrate-incoming", uri="fd:9")[0] == "GenericError"


def test_once_it_is_stopped_nothing_changes(guest: Started) -> None:
    run_until_written(guest, 50)
    before = guest.memory.copy()
    assert before[1 << 20 :].any()
    first = guest.save()
    for _ in range(100):
        assert guest.status == "paused"
    assert (guest.memory == before).all()
    assert guest.save() == first
    assert guest.events == ["RESUME", "STOP"] * (len(guest.events) // 2)


def test_device_state_of_a_running_guest_is_saved_in_a_pause(guest: Started) -> None:
    guest.execute("cont")
    decode_registers(guest.save(), IDENTITY)
    assert guest.status == "running"
    assert guest.events == ["RESUME", "STOP", "RESUME"]


def test_it_goes_on_in_another_process(tmp_path: Path, guest: Started) -> None:
    run_until_written(guest, 50)
    state = guest.save()
    with started(tmp_path, standby=True) as other:
        assert other.status == "inmigrate"
        assert other.refusal("xen-save-devices-state", filename="/dev/fdset/1")[0] == "GenericError"
        other.memory[:] = guest.memory
        other.execute("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared"}])
        other.execute("migrate-incoming", uri=f"fd:{other.incoming_number}")
        other.execute("stop")
        other.state_end.sendall(state)
        other.state_end.close()
        while other.status == "inmigrate":
            pass
        assert other.status == "paused"
        before = decode_registers(state, IDENTITY)
        after = decode_registers(other.save(), IDENTITY)
        assert (after.pages, after.clock_ns, after.activations) == (before.pages, before.clock_ns, 1)
        run_until_written(other, before.pages + 50)


def test_damaged_device_state_ends_it(tmp_path: Path) -> None:
    with started(tmp_path, standby=True) as guest:
        guest.execute("migrate-incoming", uri=f"fd:{guest.incoming_number}")
        guest.state_end.sendall(b"devices")
        guest.state_end.close()
        assert guest.process.wait(LIMIT_S) == 1
        assert "device state of 7 bytes is damaged" in guest.log.read_text()


def test_it_powers_itself_off_and_stays_for_the_last_checkpoint(guest: Started) -> None:
    guest.execute("cont")
    guest.execute("system_powerdown")
    assert guest.status == "shutdown"
    assert guest.events == ["RESUME", "SHUTDOWN", "STOP"]
    guest.save()
    assert guest.refusal("cont") == ("GenericError", "Resetting the Virtual Machine is required")
    guest.execute("quit")
    assert guest.process.wait(LIMIT_S) == 0


@pytest.mark.parametrize(
    ("append", "words"),
    [
        ("synthetic.seed=x", "synthetic.seed = 'x': must be a whole number\n"),
        (
            "synthetic.working_set_mib=4",
            "synthetic.working_set_mib = 4: needs a guest.memory_mib of 5",
        ),
        ("synthetic.working_set_mib=1 synthetic.disk_writes_s=1", "synthetic.disk_writes_s = 1: guest.disks"),
    ],
)
def test_a_bad_word_is_one_line_and_a_status(tmp_path: Path, append: str, words: str) -> None:
    with started(tmp_path, append, negotiated=False) as guest:
        assert guest.process.wait(LIMIT_S) == 2
        said = guest.log.read_text()
        assert said.startswith(f"remuslike-synthetic-guest: {words}")
        assert said.count("\n") == 1
