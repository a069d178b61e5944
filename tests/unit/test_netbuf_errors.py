"""netbuf.errors: the tree is the one drawn at its head, and says whose fault each error is."""

import inspect
import re

import pytest

from netbuf import errors

CLASSES = [
    item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__
]


def test_the_drawing_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn: dict[str, int] = {}
    for line in errors.__doc__.splitlines():
        if found := re.match(r"[ │├└─]*\b([A-Z]\w+Error)\b", line):
            drawn[found.group(1)] = found.start(1)
    assert set(drawn) == {item.__name__ for item in CLASSES}
    for item in CLASSES:
        depth = len(item.__mro__) - len(errors.NetbufError.__mro__)
        assert drawn[item.__name__] == 4 + 4 * depth, item.__name__


@pytest.mark.parametrize("item", CLASSES, ids=lambda item: str(item.__name__))
def test_every_error_says_whose_fault_it_is_or_is_never_raised(item: type) -> None:
    assert item.__doc__ is not None
    assert re.search(r"fault|[Nn]ever raised", item.__doc__), item.__name__
