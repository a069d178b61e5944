"""remuslike.engine.handshake: every difference is named with both values, and no bytes of a peer do harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuslike.engine.handshake import (
    HELLO_BYTES_MAX,
    PROTOCOL_VERSION,
    Goodbye,
    Hello,
    Refusal,
    check_agreement,
    parse_untrusted,
)
from remuslike.errors import HandshakeError

DEFINITION = {"page size": "4096", "guest.memory_mib": "256", "qemu version": "7.2.22", "guest.append": ""}
OURS = Hello(protocol=PROTOCOL_VERSION, name="node-a", generation=3, definition=DEFINITION)
THEIRS = OURS.model_copy(update={"name": "node-b"})


def changed(**fields: Any) -> Hello:
    return THEIRS.model_copy(update=fields)


def disagreement(theirs: Hello, ours: Hello = OURS) -> str:
    with pytest.raises(HandshakeError) as caught:
        check_agreement(ours, theirs)
    return str(caught.value)


# --- agreement ------------------------------------------------------------------------------------


def test_the_same_guest_is_agreed_upon() -> None:
    check_agreement(OURS, THEIRS)
    check_agreement(THEIRS, OURS)


def test_generations_need_not_agree() -> None:
    check_agreement(OURS, changed(generation=9))


@pytest.mark.parametrize("key", DEFINITION)
def test_a_difference_is_named_with_both_values(key: str) -> None:
    message = disagreement(changed(definition={**DEFINITION, key: "other"}))
    assert f"{key}: node-b has 'other', node-a has {DEFINITION[key]!r}" in message
    assert message.count(" has ") == 2


def test_what_only_one_side_has_is_named() -> None:
    more = {**DEFINITION, "guest.disks[0]": "data, 4096 bytes"}
    assert "guest.disks[0]: node-b has 'data, 4096 bytes', node-a has 'nothing'" in disagreement(
        changed(definition=more)
    )
    less = OURS.model_copy(update={"definition": more})
    assert "guest.disks[0]: node-b has 'nothing', node-a has 'data, 4096 bytes'" in disagreement(THEIRS, less)


def test_nothing_differs_from_an_empty_value() -> None:
    without = {key: value for key, value in DEFINITION.items() if key != "guest.append"}
    assert "guest.append" in disagreement(changed(definition=without))


def test_all_differences_are_named_at_once() -> None:
    message = disagreement(changed(definition={**DEFINITION, "page size": "65536", "qemu version": "8.0.0"}))
    assert "page size: node-b has '65536', node-a has '4096'" in message
    assert "qemu version: node-b has '8.0.0', node-a has '7.2.22'" in message


def test_another_protocol_is_named_before_the_guest() -> None:
    message = disagreement(changed(protocol=PROTOCOL_VERSION + 1, definition={}))
    assert (
        f"protocol version {PROTOCOL_VERSION + 1} of 'node-b' differs from our {PROTOCOL_VERSION}" in message
    )
    assert "page size" not in message


def test_two_sides_of_one_name_are_refused() -> None:
    assert "both sides are called 'node-a'" in disagreement(changed(name="node-a"))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    ours=st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")),
    theirs=st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")),
)
def test_agreement_is_equality(ours: dict[str, str], theirs: dict[str, str]) -> None:
    left = OURS.model_copy(update={"definition": ours})
    right = THEIRS.model_copy(update={"definition": theirs})
    if ours == theirs:
        check_agreement(left, right)
    else:
        message = disagreement(right, left)
        for key in {*ours, *theirs}:
            assert (f"{key}: node-b" in message) == (ours.get(key) != theirs.get(key))


# --- untrusted bytes ------------------------------------------------------------------------------

MESSAGES = [OURS, Refusal(reason="no"), Goodbye(farewell="ended", reason="over")]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_parsed(message: Any) -> None:
    assert parse_untrusted(type(message), memoryview(message.encode())) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_truncation_is_refused(message: Any) -> None:
    whole = message.encode()
    for length in range(len(whole)):
        with pytest.raises(HandshakeError, match=f"the peer's {type(message).__name__} is malformed"):
            parse_untrusted(type(message), memoryview(whole[:length]))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"protocol": "1"}, "protocol"),
        ({"protocol": 1.5}, "protocol"),
        ({"protocol": True}, "protocol"),
        ({"name": ""}, "name"),
        ({"name": "n" * 65}, "name"),
        ({"name": None}, "name"),
        ({"generation": -1}, "generation"),
        ({"generation": "0"}, "generation"),
        ({"definition": []}, "definition"),
        ({"definition": {"a": 1}}, "definition.a"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_bad_field_is_named(change: dict[str, Any], key: str) -> None:
    payload = json.dumps({**OURS.model_dump(), **change}).encode()
    with pytest.raises(HandshakeError, match=f"the peer's Hello is malformed: {key}: "):
        parse_untrusted(Hello, memoryview(payload))


@pytest.mark.parametrize("key", ["protocol", "name", "generation", "definition"])
def test_a_missing_field_is_named(key: str) -> None:
    body = {name: value for name, value in OURS.model_dump().items() if name != key}
    with pytest.raises(HandshakeError, match=f"malformed: {key}: "):
        parse_untrusted(Hello, memoryview(json.dumps(body).encode()))


@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b"7", b"\xff\xfe", b"{", b"[" * 60_000, b"1" * 60_000]
)
@pytest.mark.parametrize("model", [Hello, Refusal, Goodbye])
def test_what_is_no_message_is_refused(model: Any, payload: bytes) -> None:
    with pytest.raises(HandshakeError, match=f"the peer's {model.__name__} is malformed") as caught:
        parse_untrusted(model, memoryview(payload))
    assert len(str(caught.value)) < 1000


def test_a_message_is_bounded() -> None:
    with pytest.raises(HandshakeError, match=f"has {HELLO_BYTES_MAX + 1} bytes, over {HELLO_BYTES_MAX}"):
        parse_untrusted(Hello, memoryview(bytes(HELLO_BYTES_MAX + 1)))
    with pytest.raises(HandshakeError, match="reason"):
        parse_untrusted(Refusal, memoryview(json.dumps({"reason": "x" * 4097}).encode()))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(payload=st.binary(max_size=80))
def test_any_bytes_are_refused_by_name(payload: bytes) -> None:
    models: tuple[Any, ...] = (Hello, Refusal, Goodbye)
    for model in models:
        with pytest.raises(HandshakeError):
            parse_untrusted(model, memoryview(payload))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(position=st.integers(0, len(OURS.encode()) - 1), byte=st.integers(0, 255))
def test_any_damage_is_another_hello_or_refused(position: int, byte: int) -> None:
    damaged = bytearray(OURS.encode())
    damaged[position] = byte
    try:
        hello = parse_untrusted(Hello, memoryview(damaged))
    except HandshakeError:
        return
    assert all(isinstance(value, str) for value in hello.definition.values())
