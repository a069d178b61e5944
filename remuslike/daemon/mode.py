"""The configured mode as what the engine and the holds need of it."""

from __future__ import annotations

from typing import assert_never

from remuslike.config import EpochSettings
from remuslike.engine.events import OutputKind
from remuslike.engine.policy import AdaptivePolicy, EpochPolicy, EventTapPolicy, TriggerPolicy


def make_policy(settings: EpochSettings) -> TriggerPolicy:
    """When this guest is checkpointed."""
    epoch_s = settings.epoch_ms / 1e3
    match settings.mode:
        case "epoch":
            return EpochPolicy(epoch_s)
        case "event-tap":
            return EventTapPolicy(frozenset(map(OutputKind, settings.taps)), epoch_s)
        case "adaptive":
            return AdaptivePolicy(epoch_s, settings.floor_ms / 1e3)
        case _:
            assert_never(settings.mode)


def sends_frames(settings: EpochSettings) -> bool:
    """Whether an epoch's frames travel with it, so that a survivor can send them once more.

    Who taps the network promises that a frame which was synchronised leaves. In the other modes a frame may
    be lost with its host, as on any network.
    """
    return settings.mode == "event-tap" and "net" in settings.taps
