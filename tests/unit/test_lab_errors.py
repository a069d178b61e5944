"""remuslike.lab.errors: one tree, whose leaves say whose fault they are."""

from __future__ import annotations

import inspect
import re

import pytest

from remuslike.errors import expected_errors
from remuslike.lab import errors
from remuslike.lab.errors import CommandTimeoutError, LabError, OutputLimitError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
]


def test_all_are_of_one_tree_and_expected() -> None:
    assert CLASSES
    assert all(issubclass(each, LabError) for each in CLASSES)
    assert issubclass(LabError, expected_errors())


def test_the_drawn_tree_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+Error)\b", line)
        if match:
            depth = len(match[1])
            above = [(deep, name) for deep, name in above if deep < depth]
            drawn[match[2]] = above[-1][1] if above else "RemusError"
            above.append((depth, match[2]))
    assert drawn == {each.__name__: each.__base__.__name__ for each in CLASSES if each.__base__}


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_each_says_whose_fault_it_is(each: type[Exception]) -> None:
    assert each.__doc__
    assert each is LabError or re.search(r"([Yy]our|host's|lab's).* fault", each.__doc__)


def test_messages_name_the_command_and_the_limit() -> None:
    silent = CommandTimeoutError(["sleep", "9"], 2.5, "")
    assert str(silent) == "sleep 9 had not ended after timeout_s = 2.5 and was killed; it had written nothing"
    assert str(CommandTimeoutError(["a"], 2, "b")).endswith("was killed; its last output:\nb")
    assert "yes wrote more than 10 bytes" in str(OutputLimitError(["yes"], 10))
