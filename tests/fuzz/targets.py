"""What is fuzzed: each target is a function that hypothesis gives examples to."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from diskbuf.negotiation import Tls

from .conversation import Conversation, check_contents, check_conversation, check_crowd
from .grammar import (
    CHANGES,
    CONVERSATIONS,
    DRAFTS,
    EXPORTS,
    NEGOTIATIONS,
    NOISE,
    PIECES,
    SIZE,
    WRITABLE,
    Draft,
    cut,
)
from .oracle import Client
from .properties import check_gate, check_header, check_negotiation
from .served import Served

Target = Callable[[], None]

SETTINGS = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)

CLIENTS = st.builds(
    Client,
    structured=st.booleans(),
    contexts=st.booleans(),
    read_only=st.booleans(),
    size_bytes=st.sampled_from((SIZE, SIZE, 0, 1, 1 << 40, (1 << 63) - 1)),
).filter(lambda client: client.structured or not client.contexts)


PURE = ("negotiation", "gate", "header")
SERVED = ("conversation", "contents", "crowd", "connecting", "noise")


def pure() -> dict[str, Target]:
    """The targets that need nothing; new ones each time, for they run once."""

    @given(NEGOTIATIONS, PIECES, st.sampled_from(Tls))
    def negotiation(data: bytes, pieces: list[int], tls: Tls) -> None:
        check_negotiation(data, pieces, tls)

    @given(DRAFTS, CLIENTS)
    def gate(draft: Draft, client: Client) -> None:
        check_gate(draft, client)

    @given(st.binary(max_size=40) | st.binary(max_size=40).map(b"\x25\x60\x95\x13".__add__))
    def header(data: bytes) -> None:
        check_header(data)

    return dict(zip(PURE, (negotiation, gate, header), strict=True))


def against(served: Served) -> dict[str, Target]:
    """The targets that need the running server; new ones, too."""

    @given(st.sampled_from(EXPORTS), st.booleans(), st.booleans(), CONVERSATIONS, PIECES)
    def conversation(
        export: str, structured: bool, contexts: bool, drafts: list[Draft], pieces: list[int]
    ) -> None:
        check_conversation(served, Conversation(export, structured, contexts, drafts), pieces)

    @given(st.sampled_from(WRITABLE), st.booleans(), CHANGES)
    def contents(export: str, structured: bool, drafts: list[Draft]) -> None:
        check_contents(served, export, structured, drafts)

    @given(st.sampled_from(WRITABLE), st.booleans(), st.lists(CHANGES, min_size=2, max_size=5))
    def crowd(export: str, structured: bool, changes: list[list[Draft]]) -> None:
        check_crowd(served, export, structured, changes)

    @given(NEGOTIATIONS, PIECES, st.booleans())
    def connecting(data: bytes, pieces: list[int], patient: bool) -> None:
        served.exchange(cut(data, pieces), patient=patient)
        served.check_stores()

    @given(st.sampled_from(EXPORTS), st.booleans(), NOISE, PIECES, st.booleans())
    def noise(export: str, structured: bool, data: bytes, pieces: list[int], patient: bool) -> None:
        negotiation = Conversation(export, structured, structured, []).negotiation
        served.exchange(cut(negotiation + data, pieces), patient=patient)
        served.check_stores()

    return dict(zip(SERVED, (conversation, contents, crowd, connecting, noise), strict=True))


def run(target: Target, examples: int, seed_number: int | None = None) -> None:
    """Try so many examples: always the same ones, or the seed's. Raises what the first bad one raised."""
    if seed_number is None:
        settings(SETTINGS, max_examples=examples, derandomize=True)(target)()
    else:
        seed(seed_number)(settings(SETTINGS, max_examples=examples)(target))()
