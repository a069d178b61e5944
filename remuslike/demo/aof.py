"""Reads a redis append-only file and holds it against what the clients were told. Pure.

It shares nothing with the read-back through redis: it finds a write that redis still has in memory
but never got onto the disk, one that was done twice, and one that overtook another.

Format: redis 7's multi-part append-only file (`src/aof.c`): a manifest of `file NAME seq N type T`
lines with T in b (base), h (history), i (incremental); incremental files are RESP commands between
`#` annotation lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from remuslike.demo.workload import ConnectionHistory, Finding, parse_key, value

WORDS_LIMIT = 1024  # per command; the demo's have three


class AofError(Exception):
    """The file's fault: it is not what redis writes, or it ends within a command."""


def incremental_files(manifest: str) -> tuple[str, ...]:
    """File names of type `i` in the order of their sequence numbers."""
    numbered: list[tuple[int, str]] = []
    for line in manifest.splitlines():
        words = line.split()
        fields = dict(zip(words[::2], words[1::2], strict=False))
        if not fields.get("file") or "/" in fields["file"] or not fields.get("seq", "").isdigit():
            raise AofError(f"the manifest has the line {line[:200]!r}")
        if fields.get("type") == "i":
            numbered.append((int(fields["seq"]), fields["file"]))
    return tuple(name for _, name in sorted(numbered))


def parse_commands(data: bytes) -> Iterator[tuple[bytes, ...]]:
    """The commands of an incremental file; raises AofError where it stops being one."""
    position = 0
    while position < len(data):
        if data[position : position + 1] == b"#":
            position = _line_end(data, position)[1]
            continue
        count, position = _count(data, position, b"*")
        if not 0 < count <= WORDS_LIMIT:
            raise AofError(f"a command of {count} words before byte {position}")
        words: list[bytes] = []
        for _ in range(count):
            length, position = _count(data, position, b"$")
            words.append(data[position : position + length])
            position += length + 2
            if position > len(data) or data[position - 2 : position] != b"\r\n":
                raise AofError(f"a word of {length} bytes doesn't end at byte {position}")
        yield tuple(words)


def _line_end(data: bytes, position: int) -> tuple[int, int]:
    end = data.find(b"\r\n", position)
    if end < 0:
        raise AofError(f"the line at byte {position} has no end")
    return end, end + 2


def _count(data: bytes, position: int, mark: bytes) -> tuple[int, int]:
    end, following = _line_end(data, position)
    header = data[position:end]
    if header[:1] != mark or not header[1:].isdigit():
        raise AofError(f"{header[:40]!r} at byte {position}, where {mark.decode()}COUNT belongs")
    return int(header[1:]), following


def check_commands(
    commands: Iterable[Sequence[bytes]],
    histories: Mapping[int, ConnectionHistory],
    *,
    seed: int,
    payload_bytes: int,
) -> list[Finding]:
    """Each connection's writes must be there from 0 on without gap, repetition or change of order,
    at least as far as they were acknowledged and at most as far as they were sent."""
    findings: list[Finding] = []
    expected = dict.fromkeys(histories, 0)
    for words in commands:
        if not words or words[0].upper() != b"SET":
            continue  # SELECT, which redis itself writes first
        place = parse_key(words[1]) if len(words) == 3 else None
        if place is None or place[0] not in histories or place[1] >= histories[place[0]].sent:
            findings.append(Finding("unknown", *(place or (-1, -1)), acknowledged=False))
            continue
        connection, number = place
        acknowledged = number < histories[connection].acknowledged
        if number < expected[connection]:
            findings.append(Finding("duplicate", connection, number, acknowledged))
            continue
        for skipped in range(expected[connection], number):
            known = skipped < histories[connection].acknowledged
            findings.append(Finding("missing", connection, skipped, known))
        expected[connection] = number + 1
        if words[2] != value(seed, connection, number, payload_bytes):
            findings.append(Finding("changed", connection, number, acknowledged))
    for connection, history in histories.items():
        findings += [
            Finding("missing", connection, number, True)
            for number in range(expected[connection], history.acknowledged)
        ]
    return findings
