"""Stores by name: what stands on a command line or in a configuration, and what it opens."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from diskbuf.errors import StoreUriError
from diskbuf.filestore import FileStore
from diskbuf.memorystore import MemoryStore
from diskbuf.sizes import parse_size
from diskbuf.store import Store

KINDS = (
    "file:PATH (or just PATH)",
    "memory:SIZE",
    "nbd://HOST[:PORT]/EXPORT",
    "nbd+unix:///EXPORT?socket=PATH",
    "nbds://HOST[:PORT]/EXPORT",
    "nbds+unix:///EXPORT?socket=PATH",
)
"""What `open_store` knows, as a person would write it."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_NBD_SCHEMES = frozenset(("nbd", "nbds", "nbd+unix", "nbds+unix"))


def open_store(uri: str, *, read_only: bool = False) -> Store:
    """Open the store that a URI names: one of `KINDS`; what has no scheme is a path.

    `file:` follows RFC 8089 (percent escapes are decoded; in a plain path they aren't), the NBD kinds are
    libnbd's (nbd_connect_uri(3)) and are handed to it as they are. Raises `StoreUriError` for what is no such
    URI, and `StoreOpenError` for what can't be opened.
    """
    path = store_path(uri)
    if path is not None:
        return FileStore.open(path, read_only)
    scheme, _, rest = uri.partition(":")
    if scheme.lower() == "memory":
        return MemoryStore(_memory_bytes(uri, rest), read_only=read_only)
    # Only here, so that without libnbd the other kinds work.
    from diskbuf.nbdstore import open_nbd_store

    return open_nbd_store(uri, read_only=read_only)


def store_path(uri: str) -> Path | None:
    """The file of a `file:` URI or a plain path; None for the other kinds. Opens nothing.

    Raises `StoreUriError` for what `open_store` would refuse by its URI alone.
    """
    match = _SCHEME.fullmatch(uri)
    if match is None:
        if not uri:
            raise _wrong(uri, "it is empty")
        return Path(uri)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return Path(_file_path(uri, rest))
    if scheme == "memory":
        _memory_bytes(uri, rest)
    elif scheme in _NBD_SCHEMES:
        _check_nbd(uri, scheme)
    else:
        raise _wrong(
            uri, f"{match[1]!r} is no kind of store; a path that has a colon is written ./PATH or file:PATH"
        )
    return None


def _file_path(uri: str, rest: str) -> str:
    """The path of file:PATH, file:///PATH or file://localhost/PATH."""
    if "?" in rest or "#" in rest:
        raise _wrong(uri, "a file has no parameters; write a ? in its name as %3F, a # as %23")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            raise _wrong(uri, f"the file would be on host {host!r}; write file:PATH or file:///PATH")
        rest = slash + path
    path_bytes = unquote_to_bytes(rest)
    if not path_bytes:
        raise _wrong(uri, "the path is empty")
    if b"\0" in path_bytes:
        raise _wrong(uri, "the path has a NUL in it")
    return path_bytes.decode("utf-8", "surrogateescape")


def _memory_bytes(uri: str, rest: str) -> int:
    try:
        size_bytes = parse_size(rest)
    except ValueError as error:
        raise _wrong(uri, f"the size {error}") from None
    if size_bytes == 0:
        raise _wrong(uri, "the size is 0; give at least a byte")
    return size_bytes


def _check_nbd(uri: str, scheme: str) -> None:
    """What libnbd would say less clearly, or not before it has tried to connect."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _wrong(uri, f"host or port: {error}") from None
    parameters = dict(part.partition("=")[::2] for part in parts.query.split("&"))
    if scheme.endswith("+unix"):
        if host or port:
            raise _wrong(uri, f"{parts.netloc!r} is a host; a unix socket is given as ?socket=PATH")
        if not parameters.get("socket"):
            raise _wrong(uri, "the socket is missing; add ?socket=PATH")
    else:
        if not host:
            raise _wrong(uri, f"the host is missing; write {scheme}://HOST:PORT/EXPORT")
        if "socket" in parameters:
            raise _wrong(uri, f"socket= belongs to {scheme}+unix:")
    if parts.fragment:
        raise _wrong(uri, f"the fragment #{parts.fragment} means nothing")


def _wrong(uri: str, reason: str) -> StoreUriError:
    return StoreUriError(f"store {uri!r}: {reason}; known are {', '.join(KINDS)}")
