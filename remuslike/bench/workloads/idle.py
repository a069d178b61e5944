"""Nothing at all: what protection costs by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import trio

from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import Service


@dataclass(frozen=True, slots=True)
class Idle:
    """The rate is how fast the guest's clock goes, which stands still in every pause."""

    name: str = "idle"
    variants: tuple[Mapping[str, int], ...] = ({},)
    service: Service = "none"

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {}

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        before = await stage.guest_clock_s()
        with stage.measured():
            await trio.sleep(seconds)
        after = await stage.guest_clock_s()
        return Load(unit="guest s/s", rate=(after[1] - before[1]) / (after[0] - before[0]))


IDLE = Idle()
