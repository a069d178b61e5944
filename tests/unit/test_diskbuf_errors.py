import inspect
import re

from diskbuf import errors


def test_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([ │├└─]*)(\w+)", line):
            depth = len(match[1]) // 4
            above[depth:] = [match[2]]
            drawn[match[2]] = above[depth - 1] if depth else "Exception"
    classes = [found for _, found in inspect.getmembers(errors, inspect.isclass)]
    assert drawn == {found.__name__: found.__base__.__name__ for found in classes}


def test_every_error_says_whose_fault_it_is() -> None:
    assert all(found.__doc__ for _, found in inspect.getmembers(errors, inspect.isclass))
