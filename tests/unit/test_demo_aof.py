"""The append-only file against the clients' histories: each way of being wrong is found."""

from __future__ import annotations

import pytest

from remuslike.demo.aof import AofError, check_commands, incremental_files, parse_commands
from remuslike.demo.workload import ConnectionHistory, Finding, encode, key, value

SEED, PAYLOAD = 5, 32
HISTORIES = {0: ConnectionHistory(0, sent=4, acknowledged=3), 1: ConnectionHistory(1, sent=2, acknowledged=2)}


def write(connection: int, number: int) -> tuple[bytes, ...]:
    return (b"SET", key(connection, number), value(SEED, connection, number, PAYLOAD))


GOOD = [(b"SELECT", b"0"), write(0, 0), write(1, 0), write(0, 1), write(0, 2), write(1, 1)]


def judge(commands: list[tuple[bytes, ...]]) -> list[Finding]:
    return check_commands(commands, HISTORIES, seed=SEED, payload_bytes=PAYLOAD)


def test_a_whole_file_has_no_findings_with_or_without_the_unanswered_write() -> None:
    assert judge(GOOD) == []
    assert judge([*GOOD, write(0, 3)]) == []


@pytest.mark.parametrize("dropped", range(1, 6))
def test_each_missing_write_is_found(dropped: int) -> None:
    commands = GOOD[:dropped] + GOOD[dropped + 1 :]
    assert [finding.kind for finding in judge(commands)] == ["missing"]
    assert all(finding.acknowledged for finding in judge(commands))


def test_an_empty_file_has_lost_everything() -> None:
    assert len(judge([])) == 5


def test_a_write_done_twice_is_found() -> None:
    assert judge([*GOOD, write(0, 1)]) == [Finding("duplicate", 0, 1, acknowledged=True)]


def test_a_write_that_overtook_another_is_found() -> None:
    commands = [GOOD[0], write(0, 1), write(0, 0), *GOOD[4:], write(1, 0)]
    assert {finding.kind for finding in judge(commands)} >= {"missing", "duplicate"}


def test_a_changed_value_is_found() -> None:
    commands = [*GOOD[:5], (b"SET", key(1, 1), b"x" * PAYLOAD)]
    assert judge(commands) == [Finding("changed", 1, 1, acknowledged=True)]


@pytest.mark.parametrize(
    "command",
    [write(0, 4), write(2, 0), (b"SET", b"other", b"1"), (b"SET", key(0, 0)), (b"set", b"k:0", b"")],
)
def test_a_write_that_nobody_sent_is_found(command: tuple[bytes, ...]) -> None:
    assert [finding.kind for finding in judge([*GOOD, command])] == ["unknown"]


def test_commands_are_parsed_between_annotations() -> None:
    data = b"#TS:1700000000\r\n" + encode(b"SELECT", b"0") + encode(b"SET", b"a", b"\r\n*1\r\n") + b"#end\r\n"
    assert list(parse_commands(data)) == [(b"SELECT", b"0"), (b"SET", b"a", b"\r\n*1\r\n")]


def test_every_truncation_is_noticed() -> None:
    command = encode(b"SET", b"k:0:0", b"value")
    for length in range(1, len(command)):
        with pytest.raises(AofError):
            list(parse_commands(command + command[:length]))


@pytest.mark.parametrize(
    "data",
    [b"garbage\r\n", b"*0\r\n", b"*9999\r\n", b"*1\r\n*1\r\n", b"*1\r\n$-1\r\n", b"*1\r\n$2\r\nabc\r\n"],
)
def test_what_redis_does_not_write_is_named(data: bytes) -> None:
    with pytest.raises(AofError):
        list(parse_commands(data))


def test_incremental_files_come_in_order_of_their_sequence() -> None:
    manifest = (
        "file appendonly.aof.1.base.rdb seq 1 type b\n"
        "file appendonly.aof.10.incr.aof seq 10 type i\n"
        "file appendonly.aof.2.incr.aof seq 2 type i\n"
    )
    assert incremental_files(manifest) == ("appendonly.aof.2.incr.aof", "appendonly.aof.10.incr.aof")


@pytest.mark.parametrize("line", ["nonsense", "file ../../etc/passwd seq 1 type i", "file a seq x type i"])
def test_a_manifest_line_that_is_not_one_is_named(line: str) -> None:
    with pytest.raises(AofError, match="manifest"):
        incremental_files(line)
