"""remuslike.daemon.mode: what a configured mode comes to."""

from __future__ import annotations

import pytest

from remuslike.config import MODES, EpochSettings, Mode
from remuslike.daemon.mode import make_policy, sends_frames
from remuslike.engine.events import OutputKind
from remuslike.engine.policy import AdaptivePolicy, EpochPolicy, EventTapPolicy, TriggerPolicy

POLICIES: dict[Mode, TriggerPolicy] = {
    "epoch": EpochPolicy(0.05),
    "event-tap": EventTapPolicy(frozenset({OutputKind.DISK}), 0.05),
    "adaptive": AdaptivePolicy(0.05, 0.01),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_its_policy(mode: Mode) -> None:
    settings = EpochSettings(mode=mode, epoch_ms=50, taps=["disk"], floor_ms=10)
    assert make_policy(settings) == POLICIES[mode]


@pytest.mark.parametrize("mode", MODES)
def test_frames_travel_where_the_network_is_tapped(mode: Mode) -> None:
    assert sends_frames(EpochSettings(mode=mode)) is (mode == "event-tap")
    assert not sends_frames(EpochSettings(mode=mode, taps=["disk"]))
