"""Synthetic guests in a benchmark: what the daemons are told of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from bench_fakes import FakeStage

from remuslike.bench.errors import MeasurementError
from remuslike.bench.options import RunOptions
from remuslike.bench.plan import visits_of
from remuslike.bench.stage import Stage
from remuslike.bench.synthetic import SyntheticGuests
from remuslike.bench.workloads.synthetic import WORKLOADS, measure_load, rates_of
from remuslike.config import parse_settings
from remuslike.demo.plan import ROLES, Directories, configuration
from remuslike.synthetic import program_path
from remuslike.synthetic.client import Client, Load
from remuslike.synthetic.history import History
from remuslike.synthetic.rates import parse_append
from remuslike.synthetic.service import Report


def options(**changes: Any) -> RunOptions:
    given = {
        "guest": "synthetic",
        "modes": ("unprotected", "epoch"),
        "selection": {"requests": ({"clients": 4, "dirty_pages_s": 10}, {"clients": 1, "dirty_pages_s": 10})},
        "repeat": 1,
    }
    return RunOptions(json_path=Path("r"), **{**given, **changes})


def test_every_variant_has_a_guest_of_its_own() -> None:
    visits = visits_of(options())
    assert [len(visit.variants) for visit in visits] == [1] * 4
    assert [str(visit.setting) for visit in visits] == ["unprotected", "epoch 25 ms"] * 2


def test_the_daemons_start_its_program_with_the_variants_rates() -> None:
    chosen = options(kills=1)
    visits = visits_of(chosen)
    scenes = [SyntheticGuests(chosen).scene(visit) for visit in visits]
    assert [scene.protection for scene in scenes] == ["solo", "pair", "solo", "pair", "pair"]
    for scene in scenes:
        for role in ROLES:
            text = configuration(role, scene.machine, scene.guest, Directories(Path("/d")))
            read = parse_settings(text, role)
            assert read.guest.qemu == str(program_path())
            assert [disk.name for disk in read.guest.disks] == ["data"]
            assert read.guest.kernel is None
            assert parse_append(read.guest.append).address == "10.77.0.2/24"
    assert parse_append(scenes[0].guest.append).dirty_pages_s == 10
    assert parse_append(scenes[-1].guest.append).disk_writes_s > 0, "the kill is under every kind of work"


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_keeps_the_contract(name: str) -> None:
    workload = WORKLOADS[name]
    assert workload.name == name
    for variant in workload.variants:
        assert variant.keys() == workload.limits.keys()
        assert all(low <= variant[key] <= high for key, (low, high) in workload.limits.items())
        rates_of(variant, "10.77.0.2/24")


class FakeClient:
    """Of a guest whose clock goes at 0.9 of ours, and which takes a second to greet each client."""

    async def start_load(self, nursery: trio.Nursery, clients: int) -> Load:
        await trio.sleep(clients)
        load = Load([History(number) for number in range(clients)])
        for history in load.histories:
            nursery.start_soon(self._work, load, history)
        return load

    async def _work(self, load: Load, history: History) -> None:
        while not load.stopping:
            await trio.sleep(0.4)
            history.acknowledged += 1
            load.latencies_ms.append(400.0)

    async def report(self) -> Report:
        """After an answer's time, in which the clients go on."""
        now = trio.current_time()
        await trio.sleep(1)
        return Report(0, False, 0, 0, round(100 * now), 0, 0, 0, 0, round(0.9e9 * now))


async def test_a_window_is_the_load_without_the_clients_first_and_last_words(autojump_clock: object) -> None:
    stage, client = FakeStage(), FakeClient()
    found = await measure_load(cast(Client, client), cast(Stage, stage), 3, 2)
    (window,) = stage.windows
    assert window.ended - window.began == pytest.approx(2)
    assert len(found.latencies_ms) == 15
    assert (found.unit, found.rate) == ("answers/s", 7.5)
    assert found.details["guest_clock"] == 0.9
    assert found.details["outputs_s"] == pytest.approx(107.5)


async def test_without_clients_the_rate_is_the_guests_clock_and_its_outputs_are_known(
    autojump_clock: object,
) -> None:
    found = await measure_load(cast(Client, FakeClient()), cast(Stage, FakeStage()), 0, 2)
    assert (found.unit, found.rate) == ("guest s/s", pytest.approx(0.9))
    assert found.details["outputs_s"] == pytest.approx(100)


async def test_contradictions_are_no_measurement(autojump_clock: object) -> None:
    class Contradicted(FakeClient):
        async def report(self) -> Report:
            return replace(await super().report(), contradictions=2)

    with pytest.raises(MeasurementError, match="found 2 contradictions"):
        await measure_load(cast(Client, Contradicted()), cast(Stage, FakeStage()), 1, 2)
