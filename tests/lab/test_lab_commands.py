"""Outside: commands that go through a booted lab."""

from __future__ import annotations

from pathlib import Path

import pytest

from remuslike.lab.errors import CommandTimeoutError
from remuslike.lab.lab import Lab

pytestmark = pytest.mark.qemu


def test_output_and_status_pass_through(lab: Lab) -> None:
    assert lab.run(["sh", "-c", "uname -n; echo oh >&2; exit 7"], timeout_s=60) == (7, "lab\noh\n")


def test_directory_and_environment_are_ours(lab: Lab, tmp_path: Path) -> None:
    finished = lab.run(
        ["sh", "-c", 'pwd; echo "$GREETING"'], 60, directory=tmp_path, environment={"GREETING": "hi"}
    )
    assert finished == (0, f"{tmp_path}\nhi\n")


def test_what_is_written_stays_in_the_lab(lab: Lab, tmp_path: Path) -> None:
    assert lab.run(["sh", "-c", "echo x >file; cat file"], 60, directory=tmp_path) == (0, "x\n")
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_takes_too_long_takes_what_it_started_with_it(lab: Lab) -> None:
    with pytest.raises(CommandTimeoutError, match=r"timeout_s = 3.* was killed; its last output:\nbegun"):
        lab.run(["bash", "-c", "echo begun; setsid sleep 1000 & sleep 1001"], timeout_s=3)
    assert lab.run(["pgrep", "sleep"], timeout_s=60).status == 1
