"""The rate of the time-stamp counter."""

from __future__ import annotations

import platform

import pytest

from remuslike.image.arguments import TSC_MAX_KHZ, TSC_MIN_KHZ
from remuslike.image.clock import Reading, host_tsc_khz, rate_khz


@pytest.mark.parametrize(
    ("elapsed_ns", "ticks", "expected"),
    [
        (1_000_000, 2_600_000, 2_600_000),
        (50_000_000, 129_806_207, 2_596_124),
        (3_000_000, 2, 1),
        (3_000_000, 1, 0),
    ],
)
def test_the_rate_is_rounded_to_the_nearest(elapsed_ns: int, ticks: int, expected: int) -> None:
    assert rate_khz(Reading(100, 7, 1 << 60), Reading(90, 7 + elapsed_ns, (1 << 60) + ticks)) == expected


@pytest.mark.skipif(platform.machine() != "x86_64", reason="this machine has no time-stamp counter")
def test_this_machine_has_a_plausible_rate() -> None:
    khz = host_tsc_khz()
    assert khz is None or TSC_MIN_KHZ <= khz <= TSC_MAX_KHZ
