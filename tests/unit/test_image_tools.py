"""How a program's failure is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from remuslike.image.errors import ToolFailedError, ToolMissingError
from remuslike.image.tools import OUTPUT_TAIL_BYTES, run


def test_the_output_comes_back(tmp_path: Path) -> None:
    command = ["sh", "-c", 'echo "$GREETING"; pwd']
    output = run(command, directory=tmp_path, environment={"GREETING": "hello"})
    assert output == f"hello\n{tmp_path}\n"


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remuslike.image.tools.DEBIAN_PACKAGES", {"mkwhatever": "whatever-tools"})
    with pytest.raises(ToolMissingError, match=r"mkwhatever isn't .*install whatever-tools"):
        run(["mkwhatever"])


def test_a_failure_has_the_status_and_the_end_of_the_output() -> None:
    with pytest.raises(ToolFailedError, match=r"sh ended with status 3: .*no room") as caught:
        run(["sh", "-c", "seq 3000 >&2; echo no room >&2; exit 3"])
    assert caught.value.status == 3
    assert len(caught.value.output) <= OUTPUT_TAIL_BYTES


def test_standard_output_stands_in_for_errors_that_a_program_prints_there() -> None:
    with pytest.raises(ToolFailedError, match="said here"):
        run(["sh", "-c", "echo said here; exit 1"])


def test_silence_is_told() -> None:
    with pytest.raises(ToolFailedError, match="false ended with status 1: it said nothing"):
        run(["false"])


def test_a_status_may_be_accepted() -> None:
    assert run(["false"], accepted=frozenset({0, 1})) == ""
