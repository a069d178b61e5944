"""Sizes as people write them. Pure."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([0-9]{1,19})([KMGT]?)(?:iB|B)?", re.IGNORECASE)
_SHIFT = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size(text: str) -> int:
    """Bytes of "512", "64K" or "1GiB": suffixes are powers of 1024. Raises `ValueError` with the reason."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write a number of bytes, or one with K, M, G or T: 64M")
    return int(match[1]) << _SHIFT[match[2].upper()]


def format_size(size_bytes: int) -> str:
    """The shortest of what `parse_size` reads as exactly this."""
    for suffix in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % (1 << _SHIFT[suffix]) == 0:
            return f"{size_bytes >> _SHIFT[suffix]}{suffix}"
    return str(size_bytes)
