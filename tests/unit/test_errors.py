"""remuslike.errors: one tree, whose leaves say whose fault they are."""

from __future__ import annotations

import inspect
import re

import pytest

from diskbuf.errors import DiskbufError
from netbuf.errors import NetbufError
from remuslike import errors
from remuslike.errors import (
    ConfigurationError,
    GuestError,
    HandshakeError,
    RemusError,
    UsageError,
    expected_errors,
    first_message,
)
from remuslike.image.errors import ImageError
from transport.errors import TransportError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
]


def test_all_are_of_one_tree() -> None:
    assert CLASSES
    assert all(issubclass(each, RemusError) for each in CLASSES)


def test_the_drawn_tree_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"([│├└─ ]*)([A-Z]\w+Error)\b", line)
        if match:
            depth = len(match[1])
            above = [(deep, name) for deep, name in above if deep < depth]
            drawn[match[2]] = above[-1][1] if above else "Exception"
            above.append((depth, match[2]))
    assert drawn == {each.__name__: each.__base__.__name__ for each in CLASSES if each.__base__}


@pytest.mark.parametrize("each", CLASSES, ids=lambda each: each.__name__)
def test_each_says_whose_fault_it_is(each: type[Exception]) -> None:
    assert each.__doc__
    assert each is RemusError or re.search(r"[Yy]our|host's|peer's", each.__doc__)


def test_the_root_is_never_raised_itself() -> None:
    with pytest.raises(AssertionError, match="leaf"):
        RemusError("something")
    assert str(ConfigurationError("a.toml: x: is missing")) == "a.toml: x: is missing"


def test_expected_errors_are_the_roots_of_all_packages() -> None:
    assert set(expected_errors()) == {RemusError, NetbufError, DiskbufError, TransportError, ImageError}


def test_defects_are_not_expected() -> None:
    for defect in (AssertionError, OSError, KeyError, ValueError, ExceptionGroup):
        assert not issubclass(defect, expected_errors())


def test_the_command_line_can_tell_usage_from_the_rest() -> None:
    assert issubclass(ConfigurationError, UsageError)
    assert not issubclass(GuestError, UsageError)


def test_the_first_message_of_an_error_or_a_group() -> None:
    assert first_message(GuestError("QEMU died")) == "QEMU died"
    group = ExceptionGroup("", [ExceptionGroup("", [HandshakeError("first")]), GuestError("second")])
    assert first_message(group) == "first"
