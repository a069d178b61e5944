"""remuslike.guest.qmp_wire: fed whole, byte by byte, with a tail, and with rubbish."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuslike.errors import GuestError
from remuslike.guest.qmp_wire import (
    LINE_LENGTH_MAX,
    Event,
    Failure,
    Greeting,
    LineReader,
    Message,
    Reply,
    encode_command,
    parse_message,
)

repeatable = settings(derandomize=True, deadline=None, max_examples=200)

MESSAGES: list[tuple[dict[str, Any], Message]] = [
    (
        {
            "QMP": {
                "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"},
                "capabilities": [],
            }
        },
        Greeting("7.2.22", "p"),
    ),
    ({"return": {}}, Reply({})),
    ({"return": [1, "two"], "id": 3}, Reply([1, "two"])),
    ({"return": None}, Reply(None)),
    ({"error": {"class": "GenericError", "desc": "no such thing"}}, Failure("GenericError", "no such thing")),
    ({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}, Event("STOP", {})),
    ({"event": "SHUTDOWN", "data": {"guest": True}}, Event("SHUTDOWN", {"guest": True})),
]


@pytest.mark.parametrize(("body", "message"), MESSAGES)
def test_each_kind_of_message(body: dict[str, Any], message: Message) -> None:
    assert parse_message(json.dumps(body).encode()) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"\xff\xfe\x00",
        b"{",
        b"null",
        b"7",
        b'"event"',
        b"[]",
        b"{}",
        b'{"unknown": 1}',
        b'{"error": 1}',
        b'{"error": {"class": "x"}}',
        b'{"error": null}',
        b'{"QMP": null}',
        b'{"QMP": {"version": {"qemu": {"major": 7}, "package": ""}}}',
        b'{"event": "STOP", "data": 7}',
        b'{"event": "STOP", "data": "text"}',
        b'{"event": "STOP", "data": null}',
        b"[" * 4000,
        b'{"return": ' + b"[" * 4000,
        b"1" * 5000,
    ],
)
def test_what_is_no_message_is_named(line: bytes) -> None:
    with pytest.raises(GuestError, match="QEMU's monitor sent") as caught:
        parse_message(line)
    assert len(str(caught.value)) < 1000


@repeatable
@given(line=st.binary(max_size=100))
def test_any_bytes_are_a_message_or_a_guest_error(line: bytes) -> None:
    try:
        parse_message(line)
    except GuestError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@repeatable
@given(body=st.dictionaries(st.sampled_from(["event", "data", "return", "error", "QMP", "class"]), JSON))
def test_any_json_is_a_message_or_a_guest_error(body: dict[str, Any]) -> None:
    try:
        parse_message(json.dumps(body).encode())
    except GuestError:
        return


def test_a_command_is_one_line() -> None:
    assert encode_command("stop", {}) == b'{"execute": "stop"}\n'
    line = encode_command("migrate", {"uri": "a\nb", "detach": True})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"execute": "migrate", "arguments": {"uri": "a\nb", "detach": True}}


STREAM = b'{"a": 1}\r\n\r\n{"b": 2}\n  \n{"c": 3}\r\n'
LINES = [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']


def test_lines_of_a_whole() -> None:
    assert LineReader().receive(STREAM) == LINES


def test_lines_of_single_bytes() -> None:
    reader = LineReader()
    assert [line for byte in STREAM for line in reader.receive(bytes([byte]))] == LINES


def test_a_tail_waits_for_its_end() -> None:
    reader = LineReader()
    assert reader.receive(STREAM + b'{"d"') == LINES
    assert reader.receive(b": 4}") == []
    assert reader.receive(b"\n") == [b'{"d": 4}']


@repeatable
@given(data=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_cuts_do_not_matter(data: bytes, cuts: list[int]) -> None:
    reader = LineReader()
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert [line for piece in pieces for line in reader.receive(piece)] == LineReader().receive(data)


def test_a_line_without_end_is_given_up() -> None:
    reader = LineReader()
    reader.receive(b"x" * LINE_LENGTH_MAX)
    with pytest.raises(GuestError, match=f"a line of more than {LINE_LENGTH_MAX} bytes"):
        reader.receive(b"x")
