"""Reads from ELF files which libraries they need and what a kernel module says about itself. Pure.

System V ABI, chapters 4 and 5 (64-bit, little-endian); kernel `include/linux/moduleinfo.h` for `.modinfo`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import count

from remuslike.image.errors import PackageContentError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")

_IDENT = b"\x7fELF\x02\x01"  # 64-bit, little-endian
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29

_MALFORMED = (struct.error, ValueError, OverflowError)
"""What the readers below raise for an offset that leads out of the file, or for text without an end."""

DYNAMIC_LIMIT = 4096
"""Entries of a dynamic section; real ones have tens."""


@dataclass(frozen=True, slots=True)
class DynamicLinks:
    """What the loader is asked for: names of libraries, and folders to look in before the default ones."""

    needed: tuple[str, ...] = ()
    search_path: tuple[str, ...] = ()
    interpreter: str | None = None


@dataclass(frozen=True, slots=True)
class ModuleInformation:
    """A kernel module's name and the names of the modules that it needs directly."""

    name: str
    depends: tuple[str, ...]


def is_elf(data: bytes) -> bool:
    """Whether a file begins as an ELF file does (elf(5), e_ident)."""
    return data.startswith(_IDENT)


def dynamic_links(data: bytes, name: str) -> DynamicLinks:
    """Reads the program headers of an executable or library; `name` is for the error.

    Raises PackageContentError when the file isn't a well-formed 64-bit little-endian ELF file.
    """
    try:
        return _dynamic_links(data)
    except _MALFORMED as error:
        raise PackageContentError(f"{name} is no ELF file that can be read: {error}") from None


def module_information(data: bytes, name: str) -> ModuleInformation:
    """Reads the `.modinfo` section of a kernel module; `name` is for the error.

    Raises PackageContentError when there is none.
    """
    try:
        section = _section(data, b".modinfo")
    except _MALFORMED as error:
        raise PackageContentError(f"{name} is no kernel module that can be read: {error}") from None
    fields = dict(word.decode("latin-1").partition("=")[::2] for word in section.split(b"\0") if word)
    return ModuleInformation(
        name=fields.get("name", ""),
        depends=tuple(word for word in fields.get("depends", "").split(",") if word),
    )


def _header(data: bytes) -> tuple[int, ...]:
    if not is_elf(data):
        raise ValueError("it doesn't begin as a 64-bit little-endian ELF file does")
    return _HEADER.unpack_from(data)[1:]


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("latin-1")


def _dynamic_links(data: bytes) -> DynamicLinks:
    _, _, _, _, program_offset, _, _, _, program_size, program_count, _, _, _ = _header(data)
    programs = [
        _PROGRAM.unpack_from(data, program_offset + number * program_size) for number in range(program_count)
    ]
    interpreter = next((_text(data, offset) for kind, _, offset, *_ in programs if kind == _PT_INTERP), None)
    dynamic = next((offset for kind, _, offset, *_ in programs if kind == _PT_DYNAMIC), None)
    if dynamic is None:
        return DynamicLinks(interpreter=interpreter)

    entries = _dynamic_entries(data, dynamic)
    table_address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if table_address is None:
        raise ValueError("its dynamic section has no string table")
    table = _file_offset(programs, table_address)
    paths = [_text(data, table + value) for tag, value in entries if tag in {_DT_RPATH, _DT_RUNPATH}]
    return DynamicLinks(
        needed=tuple(_text(data, table + value) for tag, value in entries if tag == _DT_NEEDED),
        search_path=tuple(folder for path in paths for folder in path.split(":") if folder),
        interpreter=interpreter,
    )


def _dynamic_entries(data: bytes, offset: int) -> list[tuple[int, int]]:
    entries: list[tuple[int, int]] = []
    for number in count():
        if number == DYNAMIC_LIMIT:
            raise ValueError(f"its dynamic section has more than {DYNAMIC_LIMIT} entries")
        tag, value = _DYNAMIC.unpack_from(data, offset + number * _DYNAMIC.size)
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    return entries


def _file_offset(programs: list[tuple[int, ...]], address: int) -> int:
    for kind, _, offset, virtual_address, _, file_size, *_ in programs:
        if kind == _PT_LOAD and virtual_address <= address < virtual_address + file_size:
            return offset + address - virtual_address
    raise ValueError(f"no segment of it holds address {address:#x}")


def _section(data: bytes, wanted: bytes) -> bytes:
    header = _header(data)
    section_offset, section_size, section_count, names_index = header[5], *header[10:13]
    sections = [
        _SECTION.unpack_from(data, section_offset + number * section_size) for number in range(section_count)
    ]
    if names_index >= len(sections):
        raise ValueError("it has no section names")
    names = sections[names_index][4]
    for name, _, _, _, offset, size, *_ in sections:
        if data.startswith(wanted + b"\0", names + name):
            return data[offset : offset + size]
    raise ValueError(f"it has no section {wanted.decode()}")
