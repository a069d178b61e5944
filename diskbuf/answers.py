"""What a client is told, in the form that it has negotiated."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from diskbuf.errors import (
    DiskbufError,
    RequestError,
    StoreFullError,
    StoreReadOnlyError,
    WriteRefusedError,
)
from diskbuf.extents import Bytes
from diskbuf.store import Allocation
from diskbuf.wire import (
    BlockState,
    Command,
    NbdError,
    Request,
    Terms,
    encode_block_status,
    encode_data_header,
    encode_error,
    encode_hole,
    encode_reply,
)

_READ = int(Command.READ)

_log = logging.getLogger("diskbuf")


class Answers:
    """Replies to one client, as parts to be sent one after another."""

    def __init__(self, terms: Terms, client: str) -> None:
        self._terms = terms
        self._structured = terms.structured_replies
        self._client = client
        self._failure_logged = False

    def data(self, request: Request, data: Bytes) -> list[Bytes]:
        """Of a read; no data mean that all of it is zeros."""
        if not self._structured:
            return [encode_reply(request.cookie), data]
        if not data:
            return [encode_hole(request.cookie, request.offset, request.length)]
        return [encode_data_header(request.cookie, request.offset, request.length), data]

    def block_status(self, request: Request, allocations: Iterable[Allocation]) -> list[Bytes]:
        """A chunk for each context that was selected; there is but one to select, base:allocation."""
        extents = (
            (part.length, BlockState.HOLE * part.hole | BlockState.ZERO * part.zero) for part in allocations
        )
        (context,) = self._terms.contexts
        return [encode_block_status(context, extents, request)]

    def refusal(self, request: Request, error: DiskbufError) -> list[Bytes]:
        """Of a failure; the first one that isn't the client's own fault is logged."""
        if isinstance(error, RequestError):
            code = NbdError(error.code)
        else:
            code = _code_of(error)
            if not self._failure_logged:
                self._failure_logged = True
                _log.warning("%s gets errors, this one first: %s", self._client, error)
        if not self._structured:
            return [encode_reply(request.cookie, code)]
        offset = request.offset if request.command == _READ and request.length else None
        return [encode_error(request.cookie, code, str(error), offset=offset)]


def _code_of(error: DiskbufError) -> NbdError:
    match error:
        case StoreFullError():
            return NbdError.ENOSPC
        case WriteRefusedError() | StoreReadOnlyError():
            return NbdError.EPERM
        case _:
            return NbdError.EIO
