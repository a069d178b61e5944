"""The demo's tree of errors."""

from __future__ import annotations

import pytest

from remuslike.demo import errors
from remuslike.errors import RemusError


def test_every_error_is_an_expected_one_and_is_drawn() -> None:
    classes = [item for item in vars(errors).values() if isinstance(item, type) and item is not RemusError]
    assert len(classes) == 6
    for item in classes:
        assert issubclass(item, RemusError)
        assert item.__name__ in (errors.__doc__ or "")
        assert item.__doc__


def test_messages_are_kept() -> None:
    with pytest.raises(errors.LoadError, match="why"):
        raise errors.LoadError("why")
