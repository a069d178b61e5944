"""What a workload is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from remuslike.bench.results import Load
from remuslike.bench.stage import Stage
from remuslike.image import Service


class Workload(Protocol):
    """Something that a guest does, in some variants.

    `service` is what the guest starts at its boot. `variants` are the parameters it is measured in unless
    others are asked for; every variant has every parameter, and `limits` has the least and the largest value
    of each.

    Guests' clocks stand still in a pause, so a rate is per second *here*: count in the guest if need be, but
    take the time from `stage` or on the client.
    """

    @property
    def name(self) -> str: ...
    @property
    def service(self) -> Service: ...
    @property
    def variants(self) -> tuple[Mapping[str, int], ...]: ...
    @property
    def limits(self) -> Mapping[str, tuple[int, int]]: ...

    async def measure(self, stage: Stage, parameters: Mapping[str, int], seconds: int) -> Load:
        """Prepare, and run the load for `seconds` within `stage.measured()`. Every wait has a limit.

        Raises MeasurementError.
        """
        ...
