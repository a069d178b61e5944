"""Writer of cpio archives in the `newc` format that the kernel unpacks as initramfs. Pure.

Kernel `Documentation/driver-api/early-userspace/buffer-format.rst`.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or symbolic link. `mode` has the type bits; `content` is a link's target."""

    path: str
    mode: int
    content: bytes = b""


def folder(path: str) -> Entry:
    """A directory that everybody may read."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, content: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, content)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Iterable[Entry], time_seconds: int) -> bytes:
    """The archive of `entries` in their order, owned by root, all with the same time."""
    parts: list[bytes] = []
    for number, entry in enumerate(entries, start=1):
        parts += _record(entry, number, time_seconds)
    parts += _record(Entry(_TRAILER, 0), 0, 0)
    return b"".join(parts)


def _record(entry: Entry, inode: int, time_seconds: int) -> list[bytes]:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, time, size, device (2), special file's device (2), name's length, checksum
    fields = (inode, entry.mode, 0, 0, links, time_seconds, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return [header, name, _padding(len(header) + len(name)), entry.content, _padding(len(entry.content))]


def _padding(length_bytes: int) -> bytes:
    return bytes(-length_bytes % 4)
