"""What must be true of the pure part for any bytes: each function takes one example and asserts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from diskbuf.errors import ProtocolError, RequestError
from diskbuf.negotiation import OPTION_BYTES_MAX, Negotiation, Tls
from diskbuf.wire import REQUEST_BYTES, Export, Request, Terms, decode_request, export_flags, validate_request

from .grammar import ABORT, EXPORTS, STARTTLS, Draft, cut
from .oracle import Client, option_replies, read_options, violations

EXPORT_NAME = 1
TLS_REQUIRED = (1 << 31) + 5
OFFERED = {name: Export(1 << 16, export_flags(name == "read-only")) for name in EXPORTS}

Gate = Callable[[Request, Terms], None]


@dataclass
class Talk:
    """A negotiation as its driver sees it."""

    negotiation: Negotiation
    sent: bytes = b""
    replies: bytes = b""
    refused: str | None = None
    encrypted: bool = False

    def feed(self, piece: bytes) -> None:
        """Give the next piece to the negotiation, unless it has come to its end."""
        if self.over:
            return
        self.sent += piece
        try:
            self.replies += self.negotiation.receive(piece)
        except ProtocolError as error:
            assert str(error)
            self.refused = str(error)
            return
        if self.negotiation.start_tls:
            self.negotiation.tls_started()
            self.encrypted = True

    @property
    def over(self) -> bool:
        return self.refused is not None or self.negotiation.finished

    @property
    def outcome(self) -> tuple[object, ...]:
        return self.refused, self.negotiation.terms, self.negotiation.aborted


def check_negotiation(
    data: bytes, pieces: list[int], tls: Tls, make: Callable[..., Negotiation] = Negotiation
) -> None:
    """Nothing but `ProtocolError`; every whole option answered at once; memory bounded; TLS kept to; and
    it doesn't matter how the stream is cut."""
    talk = Talk(make(OFFERED, tls))
    for piece in cut(data, pieces):
        talk.feed(piece)
        if talk.refused is None:
            assert len(talk.negotiation.tail) <= OPTION_BYTES_MAX + 16 + len(piece)
            _check_answered(talk)
        if tls is Tls.REQUIRED and not talk.encrypted:
            _check_nothing_without_tls(talk)
    _check_terms(talk.negotiation)
    whole = Talk(make(OFFERED, tls))
    whole.feed(data)
    if not talk.encrypted and not whole.encrypted and STARTTLS not in read_options(data).options:
        assert talk.outcome == whole.outcome
        # Who sends ahead of the answers, and then nonsense, may lose those that were under way.
        assert talk.replies.startswith(whole.replies) if whole.refused else talk.replies == whole.replies


def _check_answered(talk: Talk) -> None:
    """No whole option waits for an answer, and no answer is for an option that didn't come."""
    read = read_options(talk.sent)
    replies = talk.replies
    terms = talk.negotiation.terms
    if terms is not None and not replies.endswith(b"\0\0\0\1\0\0\0\0"):
        # EXPORT_NAME's answer has another form, and comes last.
        padding = 0 if talk.sent[3] & 2 else 124
        size_and_flags = replies[-10 - padding :][:10]
        assert size_and_flags == terms.export.size_bytes.to_bytes(8, "big") + terms.flags.to_bytes(2, "big")
        replies = replies[: -10 - padding]
        assert EXPORT_NAME in read.options
    finals = tuple(reply.number for reply in option_replies(replies) if reply.final)
    assert finals == read.options[: len(finals)]
    if not talk.negotiation.finished:
        assert read.ended is None
        assert finals == read.options


def _check_nothing_without_tls(talk: Talk) -> None:
    assert talk.negotiation.terms is None
    for reply in option_replies(talk.replies):
        assert reply.number in (STARTTLS, ABORT) or reply.kind == TLS_REQUIRED


def _check_terms(negotiation: Negotiation) -> None:
    terms = negotiation.terms
    if terms is not None:
        assert terms.export is OFFERED[terms.name]
        assert terms.structured_replies or not terms.contexts
        assert not negotiation.aborted


def check_gate(draft: Draft, client: Client, gate: Gate = validate_request) -> None:
    """The gate lets a request pass if it breaks no rule, else refuses it with the error of a broken one."""
    export = Export(client.size_bytes, export_flags(client.read_only))
    contexts = {1: "base:allocation"} if client.contexts else {}
    terms = Terms("disk", export, client.structured, contexts)
    request = decode_request(draft.encode(3))
    assert request == (draft.flags, draft.command, 3, draft.offset, draft.length)
    assert request.payload_bytes == (draft.length if draft.command == 1 else 0)
    broken = violations(draft, client)
    try:
        gate(request, terms)
    except RequestError as error:
        assert error.code in broken, f"{error.code} is none of {sorted(broken)}"
    else:
        assert not broken, f"passed in spite of {sorted(broken)}"


def check_header(header: bytes) -> None:
    """Any header of the right length is decoded, or ends the connection."""
    header = header[:REQUEST_BYTES].ljust(REQUEST_BYTES, b"\0")
    if header.startswith(b"\x25\x60\x95\x13"):
        assert decode_request(header).length == int.from_bytes(header[-4:], "big")
    else:
        with pytest.raises(ProtocolError, match="request magic"):
            decode_request(header)
