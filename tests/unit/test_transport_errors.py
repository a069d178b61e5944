"""The error tree is what its drawing says."""

import re

import pytest

from transport import errors


def _classes() -> dict[str, type[Exception]]:
    return {name: found for name, found in vars(errors).items() if isinstance(found, type)}


def test_drawing_shows_every_error_under_its_base() -> None:
    drawn: dict[str, str] = {}
    ancestors: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        match = re.match(r"^ {4}((?:[│├└─] ?|─| )*)(\w+)", line)
        if match and match[2] in _classes():
            depth = len(match[1]) // 4
            del ancestors[depth:]
            drawn[match[2]] = ancestors[-1] if ancestors else "Exception"
            ancestors.append(match[2])
    assert drawn == {name: found.__bases__[0].__name__ for name, found in _classes().items()}


@pytest.mark.parametrize("error", _classes().values())
def test_every_error_says_whose_fault_it_is(error: type[Exception]) -> None:
    assert error.__doc__ is not None
    assert "fault" in error.__doc__ or "never raised itself" in error.__doc__
