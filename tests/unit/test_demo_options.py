"""Options: what is refused, and how it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remuslike.demo.errors import DemoOptionError
from remuslike.demo.options import DEFAULTS


def test_the_defaults_are_good() -> None:
    DEFAULTS.check()


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("--seed -1", {"seed": -1}),
        ("--seed", {"seed": 1 << 63}),
        ("--epoch-ms 0.5", {"epoch_ms": 0.5}),
        ("--epoch-ms nan", {"epoch_ms": float("nan")}),
        ("--epoch-ms 20000", {"epoch_ms": 20_000}),
        ("--duration-s 1", {"duration_s": 1}),
        ("--detect-ms 49", {"detect_ms": 49}),
        ("--vcpus 0", {"vcpus": 0}),
        ("--memory-mib 64", {"memory_mib": 64}),
        ("--connections 0", {"connections": 0}),
        ("--pipeline 0", {"pipeline": 0}),
        ("--payload-bytes 8", {"payload_bytes": 8}),
        ("--runs 0", {"runs": 0}),
        ("--mode remus is unknown; give one of epoch, event-tap, adaptive", {"mode": "remus"}),
        ("--machine pc", {"machine": "pc"}),
        ("--accelerator hvf", {"accelerator": "hvf"}),
        ("--json", {"json_path": Path("/nonexistent/directory/result.json")}),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(option: str, change: dict[str, Any]) -> None:
    with pytest.raises(DemoOptionError, match=f"^{option}"):
        replace(DEFAULTS, **change).check()


def test_the_load_fits_into_the_guest_and_onto_its_disk() -> None:
    for memory_mib in (128, 256, 1024):
        options = replace(DEFAULTS, memory_mib=memory_mib)
        assert options.load_limit_bytes * 3 < memory_mib << 20
        # The shortest values have the most overhead: about 40 bytes of protocol to 16 of payload.
        assert options.data_disk_mib << 20 > options.load_limit_bytes * 3.5
