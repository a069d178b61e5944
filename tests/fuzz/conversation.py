"""A client that knows the protocol and asks for anything: each request is owed an answer, and which."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from .grammar import (
    CLIENT_FLAGS,
    DISC,
    GO,
    READ,
    SET_META,
    SIZE,
    STRUCTURED_REPLY,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Draft,
    cut,
    info,
    meta,
    option,
)
from .oracle import ENOTSUP, EPERM, FAST_ZERO, Answer, Client, answers, option_replies, violations
from .served import Served

_GREETING_BYTES = 18
_GOODBYE = Draft(0, DISC, 0, 0)


@dataclass(frozen=True)
class Conversation:
    """What is negotiated, and then asked for."""

    export: str
    structured: bool
    contexts: bool
    drafts: list[Draft]
    first_cookie: int = 0

    @property
    def client(self) -> Client:
        return Client(self.structured, self.structured and self.contexts, self.export == "read-only")

    @property
    def negotiation(self) -> bytes:
        name = self.export.encode()
        options = [option(STRUCTURED_REPLY)] if self.structured else []
        if self.contexts:
            options.append(option(SET_META, meta(name, [b"base:allocation"])))
        return CLIENT_FLAGS + b"".join(options) + option(GO, info(name, [3]))

    @property
    def numbered(self) -> dict[int, Draft]:
        """The requests by their cookies."""
        return dict(enumerate(self.drafts, self.first_cookie))

    @property
    def requests(self) -> bytes:
        """All of them and the goodbye. What is written is the cookie's number, all over."""
        sent = [
            draft.encode(cookie) + (bytes([cookie]) * draft.length if draft.command == WRITE else b"")
            for cookie, draft in self.numbered.items()
        ]
        return b"".join(sent) + _GOODBYE.encode(0)


def check_conversation(served: Served, conversation: Conversation, pieces: list[int]) -> None:
    """Every request is answered once and whole, with success or an error that it has earned."""
    answered = served.exchange(cut(conversation.negotiation + conversation.requests, pieces))
    drafts = conversation.numbered
    got = answers(_after_negotiation(answered), drafts, conversation.client)
    assert sorted(got) == sorted(drafts), "requests without an answer"
    for cookie, draft in drafts.items():
        _check_answer(draft, got[cookie], conversation)
    served.check_stores()


def check_contents(
    served: Served, export: str, structured: bool, drafts: list[Draft], *, part: slice = slice(0, SIZE)
) -> None:
    """That part of the disk reads as if nothing but the valid changes had happened, one after another.

    Each has a connection of its own, and so waits for the one before.
    """
    expected = bytearray(SIZE)
    start, length = part.start, part.stop - part.start
    for number, draft in enumerate((Draft(0, WRITE_ZEROES, start, length), *drafts)):
        conversation = Conversation(export, structured, structured, [draft], first_cookie=number)
        check_conversation(served, conversation, [])
        if not violations(draft, conversation.client) and draft.command in (WRITE, TRIM, WRITE_ZEROES):
            value = number if draft.command == WRITE else 0
            expected[draft.offset : draft.offset + draft.length] = bytes([value]) * draft.length
    everything = Conversation(export, False, False, [Draft(0, READ, start, length)])
    received = served.exchange([everything.negotiation + everything.requests])
    assert received[-length:] == expected[part]


def check_crowd(served: Served, export: str, structured: bool, crowd: list[list[Draft]]) -> None:
    """Clients at the same time, each in a part of the disk that is its own but for the blocks at its ends."""
    step = SIZE // len(crowd) - 1  # an odd number of bytes
    with ThreadPoolExecutor(len(crowd)) as threads:
        checks = []
        for number, drafts in enumerate(crowd):
            part = slice(number * step, (number + 1) * step)
            moved = [_moved(draft, part) for draft in drafts]
            checks.append(threads.submit(check_contents, served, export, structured, moved, part=part))
        for check in checks:
            check.result()


def _moved(draft: Draft, part: slice) -> Draft:
    """The same within a part of the disk."""
    offset = part.start + draft.offset % (part.stop - part.start)
    return replace(draft, offset=offset, length=min(draft.length, part.stop - offset))


def _check_answer(draft: Draft, answer: Answer, conversation: Conversation) -> None:
    earned = violations(draft, conversation.client)
    if not earned:
        refused = conversation.export == "closed" and draft.command in (WRITE, TRIM, WRITE_ZEROES)
        earned = {EPERM} if refused else {0}
        if draft.command == WRITE_ZEROES and draft.flags & FAST_ZERO:
            earned.add(ENOTSUP)  # the server may say that it isn't faster
    assert answer.error in earned, f"{draft} got {answer.error}, not one of {sorted(earned)}"


def _after_negotiation(received: bytes) -> bytes:
    """What comes after GO's acknowledgement."""
    assert received[:8] == b"NBDMAGIC"
    acknowledged = b"\0\3\xe8\x89\4\x55\x65\xa9" + GO.to_bytes(4, "big") + b"\0\0\0\1\0\0\0\0"
    negotiated, found, rest = received[_GREETING_BYTES:].partition(acknowledged)
    assert found, "GO isn't acknowledged"
    option_replies(negotiated)
    return rest
