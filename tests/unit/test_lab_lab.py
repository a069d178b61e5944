"""The lab's two sides against each other: the real agent, as a process of this machine, and failing ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remuslike.lab import lab as lab_module
from remuslike.lab.errors import (
    CommandTimeoutError,
    LabBootError,
    LabEndedError,
    LabProtocolError,
    LabRequestError,
    OutputLimitError,
)
from remuslike.lab.lab import Lab
from remuslike.lab.machine import Machine, start_machine
from remuslike.lab.wire import Frame, Kind, encode

# What guest/init.sh does with the first two lines.
BEGIN = "read -r python <&$0; read -r packages <&$0; "
AGENT = BEGIN + 'PYTHONPATH=$packages exec "$python" -S -m remuslike.lab.agent $0'

READY = encode(Frame(Kind.READY))

TIMEOUT_S = 30


def machine(script: str) -> Machine:
    """A machine that is a shell script; its $0 is the channel."""
    return start_machine(lambda channel: ("bash", "-c", script, str(channel)))


def says(*parts: bytes, then: str = "exec sleep 1000") -> str:
    """A script that answers the first lines with the first part, and each byte after them with the next."""
    texts = ["".join(f"\\x{byte:02x}" for byte in part) for part in parts]
    return BEGIN + "; read -n 1 <&$0; ".join(f"printf '{text}' >&$0" for text in texts) + f"; {then}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(machine(AGENT)) as lab:
        yield lab


def is_gone(process_id: int) -> bool:
    return not Path(f"/proc/{process_id}").exists()


def test_output_and_status(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "echo out; echo err >&2; exit 3"], TIMEOUT_S).status == 3
    assert lab.run(["printf", "a\\nb"], TIMEOUT_S) == (0, "a\nb")
    assert lab.run(["cat"], TIMEOUT_S) == (0, "")


def test_output_comes_in_parts_that_say_where_they_were_written(lab: Lab) -> None:
    running = lab.start(["sh", "-c", "echo out; echo err >&2"], TIMEOUT_S)
    assert running.status is None
    assert sorted(running) == [(Kind.OUTPUT, b"out\n"), (Kind.ERRORS, b"err\n")]
    assert running.status == 0
    assert list(running) == []


def test_directory_and_environment(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sh", "-c", 'echo "$PWD $COLOUR $REMUSLIKE_LAB"']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLOUR", "red")
    assert lab.run(command, TIMEOUT_S).output == f"{tmp_path} red 1\n"
    finished = lab.run(command, TIMEOUT_S, directory=Path("/"), environment={"PATH": os.environ["PATH"]})
    assert finished.output == "/  1\n"


def test_a_signal_that_ends_the_command(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "kill -TERM $$"], TIMEOUT_S).status == -15


def test_a_command_that_can_not_be_started(lab: Lab, tmp_path: Path) -> None:
    assert lab.run(["no-such-command"], TIMEOUT_S) == (
        127,
        "remuslike lab: no-such-command: No such file or directory\n",
    )
    assert lab.run([str(tmp_path)], TIMEOUT_S).status == 126
    status, output = lab.run(["true"], TIMEOUT_S, directory=tmp_path / "missing")
    assert (status, str(tmp_path / "missing") in output) == (127, True)


def test_more_output_than_pipes_and_sockets_hold(lab: Lab) -> None:
    assert lab.run(["head", "-c", "3000000", "/dev/zero"], TIMEOUT_S) == (0, "\0" * 3_000_000)


def test_what_a_command_leaves_running_is_killed(lab: Lab) -> None:
    script = "(setsid sleep 1000 & echo $!) & wait; (sleep 1001 & echo $!)"
    status, output = lab.run(["bash", "-c", script], TIMEOUT_S)
    assert status == 0
    left = [int(word) for word in output.split()]
    assert len(left) == 2
    assert all(is_gone(process_id) for process_id in left)


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(lab: Lab) -> None:
    message = r"echo .* timeout_s = 0.5 and was killed; its last output:\n[0-9]"
    with pytest.raises(CommandTimeoutError, match=message) as caught:
        lab.run(["bash", "-c", "setsid sleep 1000 & echo $!; exec sleep 1001"], timeout_s=0.5)
    assert is_gone(int(str(caught.value).split()[-1]))
    assert lab.run(["echo", "on"], TIMEOUT_S) == (0, "on\n")


def test_a_command_that_is_killed_just_when_it_ends(lab: Lab) -> None:
    running = lab.start(["echo"], TIMEOUT_S)
    running.kill()
    running.kill()
    assert running.status in (0, -9)
    assert lab.run(["echo", "on"], TIMEOUT_S) == (0, "on\n")


def test_a_command_that_was_left_is_killed_by_the_next(lab: Lab) -> None:
    left = lab.start(["sleep", "1000"], TIMEOUT_S)
    assert lab.run(["echo", "on"], TIMEOUT_S) == (0, "on\n")
    assert left.status == -9


def test_too_much_output(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "OUTPUT_LIMIT_BYTES", 1000)
    with pytest.raises(OutputLimitError, match="yes wrote more than 1000 bytes"):
        lab.run(["yes"], TIMEOUT_S)
    assert lab.run(["echo", "on"], TIMEOUT_S) == (0, "on\n")


def test_a_request_that_is_too_long_or_empty_is_refused_before_it_is_sent(lab: Lab) -> None:
    with pytest.raises(LabRequestError, match=r"echo .*1048576 is the limit"):
        lab.run(["echo", "x" * (1 << 20)], TIMEOUT_S)
    assert lab.run(["echo", "on"], TIMEOUT_S) == (0, "on\n")


def test_closing_ends_the_agent_and_a_command_that_runs() -> None:
    lab = Lab(machine(AGENT))
    running = lab.start(["bash", "-c", "echo $$; exec sleep 1000"], TIMEOUT_S)
    _, written = next(running)
    lab.close()
    lab.close()
    assert is_gone(int(written))
    with pytest.raises(LabEndedError, match="closed before"):
        lab.run(["echo"], TIMEOUT_S)
    with pytest.raises(LabEndedError, match="closed before"):
        next(running)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo lab failed: no disk; exit 1",
            "machine has ended; the end of its console:\n    lab failed: no disk",
        ),
        ("exec sleep 1000", r"isn't ready after 0\.5 s.*\n    \(nothing\)"),
        (
            "for n in $(seq 100); do echo line $n; done; exit 1",
            "console:\n    line 51\n(.*\n){48}    line 100$",
        ),
        (says(b"\xff\0\0\0\0"), "kind is 255"),
        (says(encode(Frame(Kind.OUTPUT, b"x"))), "begins with OUTPUT"),
    ],
    ids=["ends", "hangs", "tail", "garbage", "early"],
)
def test_a_lab_that_does_not_boot(script: str, message: str) -> None:
    started = machine(script)
    with pytest.raises(LabBootError, match=message):
        Lab(started, boot_limit_s=0.5)
    assert started.closed
    assert started.process.returncode is not None


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (says(READY, then="read -n 1 <&$0; echo Oops; exit 1"), LabEndedError, "machine has ended"),
        (says(READY, b"\0\0\0\0\0"), LabProtocolError, "kind is 0"),
        (says(READY, READY), LabProtocolError, "sends READY while a command runs"),
        (says(READY, encode(Frame(Kind.EXIT))), LabProtocolError, "EXIT has 0 bytes"),
    ],
    ids=["ends", "garbage", "unexpected", "status"],
)
def test_a_lab_that_fails_while_a_command_runs(script: str, error: type[Exception], message: str) -> None:
    started = machine(script)
    with Lab(started) as lab, pytest.raises(error, match=message):
        lab.run(["echo"], TIMEOUT_S)
    assert started.process.returncode is not None


def test_a_command_that_can_not_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "KILL_LIMIT_S", 0.01)
    started = machine(says(READY))
    with Lab(started) as lab, pytest.raises(LabEndedError, match=r"still there 0\.01 s after it was killed"):
        lab.run(["echo"], timeout_s=0.01)
    assert started.closed


def test_a_lab_that_does_not_power_off_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_module, "END_LIMIT_S", 0.01)
    started = machine(says(READY))
    Lab(started).close()
    assert started.process.returncode == -9
