"""The guest's own scripts, under the shell of this machine; the boot test runs them where they belong."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remuslike.image.recipe import GUEST_DIRECTORY

SCRIPTS = sorted(GUEST_DIRECTORY.glob("*.sh"))
LIMIT_S = 10


def function(script: Path, name: str) -> str:
    """The text of one function of a script: from its head to the closing brace at the line's start."""
    text = script.read_text()
    start = text.index(f"\n{name}() {{")
    return text[start : text.index("\n}\n", start) + 3]


def parameter(tmp_path: Path, command_line: str, *arguments: str) -> str:
    """What guest-init's `parameter` answers under a kernel command line."""
    cmdline = tmp_path / "cmdline"
    cmdline.write_text(command_line + "\n")
    text = function(GUEST_DIRECTORY / "guest-init.sh", "parameter").replace("/proc/cmdline", str(cmdline))
    command = ["sh", "-c", f'{text}\nparameter "$@"', "sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.removesuffix("\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_well_formed(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("address", "10.77.0.2/24"),
        ("address1", "10.78.0.2/24"),
        ("address2", "default"),
        ("data", "vdb"),
        ("service", ""),
        ("root", "default"),
    ],
)
def test_parameters_are_found_by_their_whole_name(tmp_path: Path, name: str, expected: str) -> None:
    line = "quiet root=x remus.address1=10.78.0.2/24 remus.address=10.77.0.2/24 remus.data=vdb remus.service="
    assert parameter(tmp_path, line, name, "default") == expected


def test_the_first_of_two_equal_parameters_counts(tmp_path: Path) -> None:
    assert parameter(tmp_path, "remus.data=vdb remus.data=vdc", "data", "") == "vdb"


@contextmanager
def udp_echo(log: Path) -> Iterator[socket.socket]:
    """The guest's echo on a port that is free here, and a client of it on the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        address = found.getsockname()
    process = subprocess.Popen(["perl", "-w", GUEST_DIRECTORY / "udp-echo.pl", str(address[1]), str(log)])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(address)
            client.settimeout(LIMIT_S)
            yield client
    finally:
        process.kill()
        process.wait()


def ask(client: socket.socket, word: str) -> str:
    """The answer; asks again for as long as nobody has the port."""
    limit = time.monotonic() + LIMIT_S
    while True:
        try:
            client.send(word.encode())
            return client.recv(600).decode()
        except ConnectionRefusedError:
            assert time.monotonic() < limit, "the echo doesn't come up"


@pytest.mark.skipif(shutil.which("perl") is None, reason="perl isn't installed")
def test_the_echo_counts_and_goes_on_where_its_log_ends(tmp_path: Path) -> None:
    log = tmp_path / "echo.log"
    with udp_echo(log) as client:
        assert ask(client, "one") == "1 one"
        assert log.read_text() == "1 one\n"
        for nothing in (b"", b"two words", b"a\n", b"\x80"):
            client.send(nothing)
        assert ask(client, "~" * 512) == "2 " + "~" * 512
    with udp_echo(log) as client:
        assert ask(client, "three") == "3 three"
    assert log.read_text() == "1 one\n2 " + "~" * 512 + "\n3 three\n"
