"""remuslike.witness.file: what tests/conformance doesn't ask, the file itself and its failures."""

# ruff: noqa: ASYNC240  (a test may block for a file of a few bytes)

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from remuslike.engine.ports import Token
from remuslike.errors import WitnessError
from remuslike.witness import FileWitness


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


async def test_the_record_is_readable_json(path: Path) -> None:
    await FileWitness(path).acquire(0, "node-a")
    assert json.loads(path.read_text()) == {"generation": 1, "holder": "node-a"}


async def test_nothing_but_record_and_lock_is_left(path: Path) -> None:
    await FileWitness(path).acquire(0, "a")
    assert {entry.name for entry in path.parent.iterdir()} == {"token", "token.lock"}


async def test_a_draft_of_somebody_who_died_does_not_matter(path: Path) -> None:
    witness = FileWitness(path)
    await witness.acquire(0, "a")
    path.with_name("token.new").write_text('{"generation": 9, "hol')
    assert await witness.read() == Token(1, "a")
    assert await witness.acquire(1, "b") == (True, Token(2, "b"))


async def test_reading_waits_for_no_lock(path: Path) -> None:
    witness = FileWitness(path)
    await witness.acquire(0, "a")
    lock = os.open(path.with_name("token.lock"), os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await witness.read() == Token(1, "a")
    finally:
        os.close(lock)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"garbage",
        b"[]",
        b"null",
        b"{}",
        b'{"generation": 1}',
        b'{"generation": "1", "holder": "a"}',
        b'{"generation": true, "holder": "a"}',
        b'{"generation": 0, "holder": "a"}',
        b'{"generation": -1, "holder": "a"}',
        b'{"generation": 1.5, "holder": "a"}',
        b'{"generation": 1, "holder": ""}',
        b'{"generation": 1, "holder": null}',
        b"\xff\xfe",
        b'{"generation": 1, "holder": "' + b"a" * 5000 + b'"}',
        b"[" * 4000,
    ],
)
async def test_a_record_that_is_none_is_named_and_never_overwritten(path: Path, record: bytes) -> None:
    path.write_bytes(record)
    witness = FileWitness(path)
    for ask in (witness.read, lambda: witness.acquire(0, "a"), lambda: witness.acquire(1, "a")):
        with pytest.raises(WitnessError, match="is not a witness's record") as caught:
            await ask()
        assert str(path) in str(caught.value)
    assert path.read_bytes() == record


@settings(derandomize=True, deadline=None, max_examples=100)
@given(record=st.binary(max_size=80))
def test_any_bytes_are_a_token_or_a_witness_error(
    tmp_path_factory: pytest.TempPathFactory, record: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-record"
    path.write_bytes(record)
    try:
        token = trio.run(FileWitness(path).read)
    except WitnessError:
        return
    assert token.generation >= 1
    assert token.holder


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "token"
    with pytest.raises(WitnessError, match=r"witness.path = '.*missing/token': can't be changed"):
        await FileWitness(path).acquire(0, "a")
    assert await FileWitness(path).read() == Token(0, "")


async def test_a_directory_in_its_place_is_named(path: Path) -> None:
    path.mkdir()
    witness = FileWitness(path)
    with pytest.raises(WitnessError, match=r"witness\.path"):
        await witness.read()
    with pytest.raises(WitnessError, match=r"witness\.path"):
        await witness.acquire(0, "a")
