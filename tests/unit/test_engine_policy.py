"""Trigger policies."""

from __future__ import annotations

from remuslike.engine.policy import EpochPolicy, TriggerPolicy


def test_epochs_are_counted_from_the_start_of_the_one_before() -> None:
    policy: TriggerPolicy = EpochPolicy(0.025)
    assert policy.due_at(10.0) == 10.025
