"""What the client writes and how it is judged: the oracle must be able to fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remuslike.demo.workload import (
    OK_REPLY,
    AcknowledgementReader,
    ConnectionHistory,
    Finding,
    ReplyError,
    ValueReader,
    check_values,
    encode,
    encode_write,
    key,
    parse_key,
    value,
)

SEED, PAYLOAD = 7, 48
HISTORY = ConnectionHistory(connection=3, sent=10, acknowledged=6)


def stored(count: int) -> list[bytes | None]:
    return [value(SEED, 3, number, PAYLOAD) for number in range(count)]


def judge(values: list[bytes | None], history: ConnectionHistory = HISTORY, first: int = 0) -> list[Finding]:
    return check_values(history, first, values, seed=SEED, payload_bytes=PAYLOAD)


@pytest.mark.parametrize("kept", range(6, 11))
def test_unanswered_writes_may_or_may_not_be_there(kept: int) -> None:
    assert judge(stored(kept) + [None] * (10 - kept)) == []


def test_a_missing_acknowledged_write_is_found() -> None:
    values = stored(10)
    values[5] = None
    assert judge(values) == [Finding("missing", 3, 5, acknowledged=True)]


@pytest.mark.parametrize(("number", "acknowledged"), [(2, True), (8, False)])
def test_a_changed_value_is_found_whether_acknowledged_or_not(number: int, acknowledged: bool) -> None:
    values = stored(10)
    original = values[number]
    assert original is not None
    values[number] = original[:-1] + b"!"
    assert judge(values) == [Finding("changed", 3, number, acknowledged)]


def test_another_writes_value_is_found() -> None:
    values = stored(10)
    values[4] = value(SEED, 3, 5, PAYLOAD)
    assert judge(values) == [Finding("changed", 3, 4, acknowledged=True)]


def test_a_batch_is_judged_by_its_own_numbers() -> None:
    assert judge([None, None], first=5) == [Finding("missing", 3, 5, acknowledged=True)]
    assert judge([None], replace(HISTORY, acknowledged=10), first=9) == [Finding("missing", 3, 9, True)]


def test_values_differ_by_seed_connection_and_number_and_have_their_length() -> None:
    values = {value(seed, c, n, 100) for seed in range(3) for c in range(3) for n in range(3)}
    assert len(values) == 27
    assert {len(item) for item in values} == {100}


def test_a_write_is_one_resp_array() -> None:
    assert encode_write(1, 0, 2, 16) == b"*3\r\n$3\r\nSET\r\n$5\r\nk:0:2\r\n$16\r\n%b\r\n" % value(
        1, 0, 2, 16
    )
    assert encode(b"PING") == b"*1\r\n$4\r\nPING\r\n"


def test_keys_are_read_as_they_are_written() -> None:
    assert parse_key(key(12, 345)) == (12, 345)
    for text in (b"", b"k:1", b"k:1:x", b"q:1:2", b"k:1:2:3", b"k:-1:2", b"k::"):
        assert parse_key(text) is None


@given(st.integers(0, 40), st.lists(st.integers(1, 30), max_size=20))
def test_acknowledgements_are_counted_wherever_the_stream_is_cut(count: int, cuts: list[int]) -> None:
    reader = AcknowledgementReader()
    data = OK_REPLY * count
    total = 0
    for cut in [*cuts, len(data)]:
        total += reader.feed(data[:cut])
        data = data[cut:]
    assert total == count


@pytest.mark.parametrize("data", [b"-ERR no\r\n", b"+OK\r\n-MISCONF\r\n", b"+OK\r\n+O!", b"+PONG\r\n"])
def test_any_other_answer_to_a_write_is_named(data: bytes) -> None:
    with pytest.raises(ReplyError, match="answered a write"):
        AcknowledgementReader().feed(data)
    with pytest.raises(ReplyError):
        reader = AcknowledgementReader()
        for position in range(len(data)):
            reader.feed(data[position : position + 1])


@given(st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=12), st.integers(1, 50))
def test_values_are_read_wherever_the_stream_is_cut(values: list[bytes | None], step: int) -> None:
    data = b"".join(b"$-1\r\n" if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in values)
    reader = ValueReader()
    found: list[bytes | None] = []
    for position in range(0, len(data), step):
        found += reader.feed(data[position : position + step])
    assert found == values


@pytest.mark.parametrize("data", [b"-LOADING\r\n", b"$x\r\n", b"$-2\r\n", b"$99999999999\r\n", b":1\r\n"])
def test_any_other_answer_to_a_read_is_named(data: bytes) -> None:
    with pytest.raises(ReplyError, match="answered a read"):
        ValueReader().feed(data)
