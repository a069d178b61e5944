"""The gate for what control sockets answer."""

from __future__ import annotations

import json

import pytest

from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import Pauses, PrimaryStatistics, SecondaryStatistics, parse_reply

PRIMARY = {
    **{"role": "primary", "name": "p", "phase": "protected", "protected": True, "generation": 1, "epoch": 9},
    **{
        "checkpoints": 8,
        "sync": None,
        "held": {"network0": {"held_items": 3, "held_bytes": 400, "state": "x"}},
    },
}
SECONDARY = {
    **{"role": "secondary", "name": "s", "phase": "active", "acknowledged": 8, "applied": 8},
    "takeover": {"cause": "silence", "epoch": 8, "decided_at": 12.5, "activation_ms": 8.0},
}


def test_statistics_are_taken_in_and_unknown_keys_left_alone() -> None:
    primary = parse_reply(json.dumps(PRIMARY).encode(), PrimaryStatistics, "statistics")
    assert primary.held["network0"].held_bytes == 400
    secondary = parse_reply(json.dumps(SECONDARY).encode(), SecondaryStatistics, "statistics")
    assert secondary.takeover is not None
    assert secondary.takeover.decided_at == 12.5


def test_a_refusal_is_passed_on() -> None:
    with pytest.raises(DaemonError, match="refuses 'measure-pause': the guest is protected"):
        parse_reply(b'{"error": "the guest is protected"}', Pauses, "measure-pause")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b"{}",
        b'{"role": "secondary"}',
        b"\xff",
        json.dumps(SECONDARY).encode(),
    ],
)
def test_anything_else_is_named(line: bytes) -> None:
    with pytest.raises(DaemonError, match="the daemon answered 'statistics' with"):
        parse_reply(line, PrimaryStatistics, "statistics")
