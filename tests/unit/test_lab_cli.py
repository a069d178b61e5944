"""`remuslike lab`: output, status and errors pass through. The lab behind it is a process of this machine."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from remuslike.cli.main import cli
from remuslike.lab.errors import CommandTimeoutError
from remuslike.lab.lab import Lab
from remuslike.lab.machine import start_machine

AGENT = (
    "read -r python <&$0; read -r packages <&$0;"
    ' PYTHONPATH=$packages exec "$python" -S -m remuslike.lab.agent $0'
)


@pytest.fixture(autouse=True)
def _no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def boot(**arguments: Any) -> Lab:
        return Lab(start_machine(lambda channel: ("bash", "-c", AGENT, str(channel))))

    monkeypatch.setattr(Lab, "boot", boot)


def test_output_errors_and_status_pass_through() -> None:
    result = CliRunner().invoke(cli, ["lab", "run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 7)


def test_options_of_the_command_are_its_own() -> None:
    result = CliRunner().invoke(cli, ["lab", "run", "echo", "--timeout-s", "--help"])
    assert (result.stdout, result.exit_code) == ("--timeout-s --help\n", 0)


def test_a_signal_becomes_a_status_as_in_a_shell() -> None:
    assert CliRunner().invoke(cli, ["lab", "run", "--", "sh", "-c", "kill -KILL $$"]).exit_code == 137


def test_a_command_that_takes_too_long_is_an_error() -> None:
    result = CliRunner().invoke(cli, ["lab", "run", "--timeout-s", "1", "--", "sleep", "1000"])
    assert isinstance(result.exception, CommandTimeoutError)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "90000"])
def test_a_time_that_makes_no_sense_is_refused(value: str) -> None:
    result = CliRunner().invoke(cli, ["lab", "run", "--timeout-s", value, "--", "true"])
    assert result.exit_code == 2
    assert "timeout" in result.stderr


def test_a_command_is_needed() -> None:
    assert CliRunner().invoke(cli, ["lab", "run"]).exit_code == 2
