"""The `remuslike` command as a process: exit statuses, and one line for every expected error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from remuslike.cli import main
from remuslike.config import parse_settings
from remuslike.engine.effects import ExitStatus

NODE = """
name = "node-a"
run_directory = "{directory}/run"

[guest]
memory_mib = 64
extra_arguments = ["-device", "virtio-rng-pci"]
{guest}

[link]
address = "127.0.0.1:7000"

[witness]
kind = "none"
"""

Call = Callable[..., subprocess.CompletedProcess[str]]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")


def remuslike(
    *arguments: str, interpreter: Sequence[str] = (), in_front: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as a process: a daemon changes its process's logs and scheduling."""
    program = "from remuslike.cli import main; main()"
    return subprocess.run(
        [*in_front, sys.executable, *interpreter, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The same within this process, for what ends before a daemon begins."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["remuslike", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run


def configuration(directory: Path, guest: str = "") -> str:
    path = directory / "node.toml"
    path.write_text(NODE.format(directory=directory, guest=guest))
    return str(path)


def assert_one_line(done: subprocess.CompletedProcess[str], status: ExitStatus) -> str:
    """The one line of the error."""
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr
    line, end = done.stderr.split("\n")
    assert end == ""
    assert line.startswith("remuslike: ")
    return line


# --- help -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(call: Call, option: str) -> None:
    done = call(option)
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(command in done.stdout for command in ("primary", "secondary", "status"))


@pytest.mark.parametrize("command", ["primary", "secondary", "status"])
def test_help_of_each_command(call: Call, command: str) -> None:
    done = call(command, "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_version(call: Call) -> None:
    done = call("--version")
    assert done.returncode == 0
    assert version("remuslike") in done.stdout


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["unknown"],
        ["primary"],
        ["primary", "--unknown"],
        ["primary", "--config", "x", "--mode", "remus"],
        ["--unknown"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(call: Call, arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == ExitStatus.USAGE
    assert "Usage:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["primary", "secondary"])
def test_an_unknown_mode_is_named_with_those_that_are_known(call: Call, command: str) -> None:
    said = call(command, "--config", "x", "--mode", "remus").stderr
    assert "'--mode': 'remus' is not one of 'epoch', 'event-tap', 'adaptive'" in said


@pytest.mark.parametrize("command", ["primary", "secondary", "status"])
def test_a_missing_file_is_named(call: Call, command: str, tmp_path: Path) -> None:
    line = assert_one_line(call(command, "--config", str(tmp_path / "no.toml")), ExitStatus.USAGE)
    assert str(tmp_path / "no.toml") in line


@pytest.mark.parametrize("command", ["primary", "secondary", "status"])
def test_a_mistake_in_the_file_is_named(call: Call, command: str, tmp_path: Path) -> None:
    line = assert_one_line(call(command, "--config", configuration(tmp_path, "vcpus = 0")), ExitStatus.USAGE)
    assert "node.toml: guest.vcpus = 0: " in line


def test_several_mistakes_are_one_line(call: Call, tmp_path: Path) -> None:
    path = configuration(tmp_path, 'vcpus = 0\ncolour = "two\\nlines"')
    line = assert_one_line(call("primary", "--config", path), ExitStatus.USAGE)
    assert "guest.vcpus" in line
    assert "guest.colour" in line


# --- the host -------------------------------------------------------------------------------------


@pytest.mark.root
@as_root
def test_without_root_the_reason_is_named() -> None:
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", "--"]
    if remuslike("--version", in_front=nobody).returncode:
        pytest.skip("the virtual environment can't be read by other users")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        path = configuration(Path(directory))
        done = remuslike("primary", "--config", path, in_front=nobody)
    line = assert_one_line(done, ExitStatus.FAILED)
    assert "run the daemon as root" in line


@pytest.mark.root
@as_root
@pytest.mark.parametrize("command", ["primary", "secondary"])
def test_a_missing_qemu_is_named(command: str, tmp_path: Path) -> None:
    path = configuration(tmp_path, 'qemu = "qemu-of-nobody"')
    done = remuslike(command, "--config", path)
    assert "Traceback" not in done.stderr
    assert done.returncode == ExitStatus.FAILED
    assert "remuslike: 'qemu-of-nobody' is not installed" in done.stderr.splitlines()[-1]


@pytest.mark.root
@as_root
def test_a_missing_disk_is_named(tmp_path: Path) -> None:
    path = configuration(tmp_path, f'[[guest.disks]]\nname = "data"\nstore = "{tmp_path}/no.img"')
    done = remuslike("primary", "--config", path)
    assert "Traceback" not in done.stderr
    assert done.returncode == ExitStatus.FAILED
    assert f"remuslike: store {tmp_path}/no.img: No such file" in done.stderr.splitlines()[-1]


@pytest.mark.root
@as_root
def test_optimised_python_is_refused(tmp_path: Path) -> None:
    done = remuslike("secondary", "--config", configuration(tmp_path), interpreter=["-O"])
    line = assert_one_line(done, ExitStatus.USAGE)
    assert "python -O removes the assertions" in line


def test_status_of_no_daemon_is_named(call: Call, tmp_path: Path) -> None:
    line = assert_one_line(call("status", "--config", configuration(tmp_path)), ExitStatus.FAILED)
    assert f"control socket '{tmp_path}/run/control.sock': nobody answers" in line


# --- what README says -----------------------------------------------------------------------------

README = Path(__file__).parents[2] / "README.md"

# As the sentence of README words them.
STATUSES = {
    "CLEAN": (0, "ended in order"),
    "FAILED": (1, "failed or something on the host is missing"),
    "USAGE": (2, "a mistake in the configuration"),
    "FENCED": (3, "fenced (the other side has the guest)"),
    "GUEST_DIED": (4, "QEMU died"),
}


def test_exit_statuses_are_as_documented() -> None:
    assert {status.name: int(status) for status in ExitStatus} == {
        name: number for name, (number, _) in STATUSES.items()
    }
    (sentence,) = re.findall(r"^Exit status: (.*)\.$", README.read_text("utf-8"), re.MULTILINE)
    assert sentence == ", ".join(f"{number} {meaning}" for number, meaning in STATUSES.values())


def test_the_configuration_in_readme_is_one() -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        parse_settings(block, "README.md")
    # What is commented out as a choice must be one, too.
    with_choices = re.sub(r"^# (\w+ = )", r"\1", blocks[0], flags=re.MULTILINE)
    assert with_choices != blocks[0]
    assert parse_settings(with_choices, "README.md").link.successor is not None
