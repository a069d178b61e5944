"""Who are you: what each side says of itself first, and what must agree. Pure."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from remuslike.errors import HandshakeError

# Raised whenever frames or their meaning change.
PROTOCOL_VERSION = 2

# A definition is a few hundred bytes; a peer that sends more is none of ours (P6).
HELLO_BYTES_MAX = 65536


class Hello(BaseModel):
    """A side's introduction. `definition`: everything that must be the same on both sides, flat,
    in a user's words: "guest.memory_mib" -> "256"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    protocol: int
    name: str = Field(min_length=1, max_length=64)
    generation: int = Field(ge=0)
    definition: dict[str, str]

    def encode(self) -> bytes:
        return self.model_dump_json().encode()


class Refusal(BaseModel):
    """Why a secondary doesn't take a primary."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    reason: str = Field(max_length=4096)

    def encode(self) -> bytes:
        return self.model_dump_json().encode()


class Goodbye(BaseModel):
    """The last frame of a session that ends on purpose; `farewell` is an `events.Farewell`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    farewell: str = Field(max_length=16)
    reason: str = Field(max_length=4096)

    def encode(self) -> bytes:
        return self.model_dump_json().encode()


_Message = TypeVar("_Message", Hello, Refusal, Goodbye)


def parse_untrusted(model: type[_Message], payload: memoryview) -> _Message:
    """The message in a payload of the peer's; HandshakeError for anything else."""
    if len(payload) > HELLO_BYTES_MAX:
        raise HandshakeError(f"the peer's {model.__name__} has {len(payload)} bytes, over {HELLO_BYTES_MAX}")
    try:
        return model.model_validate_json(bytes(payload))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise HandshakeError(f"the peer's {model.__name__} is malformed: {key}: {first['msg']}") from error


def check_agreement(ours: Hello, theirs: Hello) -> None:
    """HandshakeError that names every difference with both values."""
    if ours.protocol != theirs.protocol:
        raise HandshakeError(
            f"protocol version {theirs.protocol} of {theirs.name!r} differs from our {ours.protocol}:"
            " run the same version of remuslike on both sides"
        )
    if ours.name == theirs.name:
        raise HandshakeError(
            f"name: both sides are called {ours.name!r}; the witness could not tell them apart"
        )
    differences = [
        f"{key}: {theirs.name} has {theirs.definition.get(key, 'nothing')!r},"
        f" {ours.name} has {ours.definition.get(key, 'nothing')!r}"
        for key in sorted({*ours.definition, *theirs.definition})
        if ours.definition.get(key) != theirs.definition.get(key)
    ]
    if differences:
        raise HandshakeError("the two sides define different guests: " + "; ".join(differences))
