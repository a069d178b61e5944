"""ELF files made up for tests: the least that the loader and the module loader look at."""

from __future__ import annotations

import struct
from collections.abc import Sequence

BASE = 0x400000
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)


def header(*, programs: int = 0, sections: int = 0, section_offset: int = 0, names: int = 0) -> bytes:
    return struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(IDENT, 3, 62, 1, 0, 64, section_offset, 0, 64, 56, programs, 64, sections, names),
    )


def program(kind: int, offset: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, 4, offset, BASE + offset, BASE + offset, size, size, 1)


def executable(
    entries: list[tuple[int, int]], strings: bytes, interpreter: bytes = b"/lib64/ld.so\0"
) -> bytes:
    start = 64 + 3 * 56
    dynamic_at = start + len(interpreter)
    strings_at = dynamic_at + 16 * (len(entries) + 2)
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in [*entries, (5, BASE + strings_at), (0, 0)])
    body = interpreter + dynamic + strings
    return (
        header(programs=3)
        + program(1, 0, start + len(body))
        + program(2, dynamic_at, len(dynamic))
        + program(3, start, len(interpreter))
        + body
    )


def module(information: bytes) -> bytes:
    names = b"\0.modinfo\0.shstrtab\0"
    first, second = 64, 64 + len(information)
    table = second + len(names)
    sections = [(0, 0, 0), (1, first, len(information)), (10, second, len(names))]
    return (
        header(sections=3, section_offset=table, names=2)
        + information
        + names
        + b"".join(
            struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 1, 0) for name, at, size in sections
        )
    )


def program_that_needs(libraries: Sequence[str], search_path: str = "") -> bytes:
    """A program that names `libraries`, and with them a loader (/lib64/ld.so) and folders to look in."""
    strings = b"\0"
    entries = []
    paths = [(29, search_path)] if search_path else []
    for tag, text in [*((1, library) for library in libraries), *paths]:
        entries.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    return executable(entries, strings)
