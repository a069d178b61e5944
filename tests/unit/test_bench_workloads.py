"""What each workload makes of what its programs say; and the registry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from bench_fakes import FakeSession, FakeStage

from remuslike.bench.errors import MeasurementError
from remuslike.bench.plan import TAKEOVER
from remuslike.bench.results import Load
from remuslike.bench.workloads import WORKLOADS, fio

IPERF_TCP = {
    "intervals": [
        {"sum": {"start": 0, "bits_per_second": 2e9}},
        {"sum": {"start": 0.5, "bits_per_second": 1e9}},
    ],
    "end": {
        "sum_sent": {"bytes": 1e9, "seconds": 4.0, "retransmits": 3},
        "sum_received": {"bytes": 5e8, "seconds": 2.0},
    },
}
IPERF_UDP = {
    "intervals": [{"sum": {"start": 0, "bits_per_second": 512_000}}],
    "end": {"sum": {"packets": 1000, "lost_packets": 20, "seconds": 2.0, "jitter_ms": 0.5}},
}
FIO = {"jobs": [{"write": {"io_bytes": 100_000_000, "total_ios": 500, "runtime": 500}}]}
SERVING = {"iperf3 --server": "listening\n"}


async def measured(name: str, stage: FakeStage, seconds: int = 2, **parameters: int) -> Load:
    workload: Any = WORKLOADS[name]
    load: Load = await workload.measure(stage, parameters, seconds)
    assert len(stage.windows) == 1, "a cell has one window"
    return load


def test_every_workload_keeps_the_contract() -> None:
    assert [workload.name for workload in WORKLOADS.values()] == list(WORKLOADS)
    assert TAKEOVER not in WORKLOADS
    for workload in WORKLOADS.values():
        assert workload.variants
        for variant in workload.variants:
            assert variant.keys() == workload.limits.keys(), workload.name
            for name, (low, high) in workload.limits.items():
                assert low <= variant[name] <= high, f"{workload.name}:{name}={variant[name]}"


async def test_redis_counts_answers_and_says_when_they_came() -> None:
    report = {"latencies_ms": [1.0, 2.0, 3.0, 4.0, 900.0], "at_s": [0.1, 0.2, 0.3, 1.9]}
    stage = FakeStage({"appendfsync everysec": "OK\n"}, {"remuslike.bench.requests": json.dumps(report)})
    load = await measured("redis", stage, clients=16)
    assert load.rate == 2.0
    assert load.latencies_ms == (1.0, 2.0, 3.0, 4.0, 900.0)
    assert load.details == {"late": 1}
    assert load.series[:2] == ((0.0, 8.0), (0.25, 4.0))
    assert len(load.series) == 8
    assert stage.said[-1].endswith("10.77.0.2 6379 16 2 write")


async def test_pipelining_clients_ask_for_several_at_a_time() -> None:
    stage = FakeStage({"appendfsync": "OK\n"}, {"requests": '{"latencies_ms": [1, 1], "at_s": [0.1, 0.1]}'})
    assert (await measured("redis-pipeline", stage, clients=256, pipeline=8)).rate == 1
    assert stage.said[-1].endswith("10.77.0.2 6379 256 2 write*8")


async def test_a_load_that_comes_and_goes_is_asked_for_in_thirds() -> None:
    report = {"latencies_ms": [1.0] * 40, "at_s": [0.1] * 4 + [1.0] * 32 + [1.9] * 4}
    stage = FakeStage({"appendfsync": "OK\n"}, {"remuslike.bench.requests": json.dumps(report)})
    load = await measured("redis-steps", stage, clients=64)
    assert stage.said[-1].endswith("10.77.0.2 6379 1,64,1 2 write")
    assert (load.series[0][1], load.series[4][1], load.series[7][1]) == (16.0, 128.0, 16.0)


async def test_transactions_are_durable() -> None:
    stage = FakeStage({"appendfsync always": "OK\n"}, {"requests": '{"latencies_ms": [], "at_s": []}'})
    assert (await measured("oltp", stage, clients=1)).rate == 0
    with pytest.raises(MeasurementError, match="appendfsync always: 'ERR'"):
        await measured("oltp", FakeStage({"appendfsync": "ERR"}), clients=1)


async def test_a_client_that_says_nonsense_is_an_error() -> None:
    stage = FakeStage({"appendfsync": "OK\n"}, {"requests": "Killed"})
    with pytest.raises(MeasurementError, match="Killed"):
        await measured("redis", stage, clients=1)


@pytest.mark.parametrize(("name", "seconds", "reverse"), [("tcp-out", 2.0, True), ("tcp-in", 4.0, False)])
async def test_bulk_rates_are_of_what_arrived_in_the_clients_time(
    name: str, seconds: float, reverse: bool, autojump_clock: object
) -> None:
    stage = FakeStage(SERVING, {"iperf3 --client": json.dumps(IPERF_TCP)})
    load = await measured(name, stage, streams=8)
    assert load.rate == pytest.approx(5e8 * 8 / 1e9 / seconds)
    assert load.series == ((0.0, 2.0), (0.5, 1.0))
    assert load.details == {"retransmits": 3}
    assert ("--reverse" in stage.said[-1]) is reverse
    assert "--parallel 8 --congestion reno" in stage.said[-1]
    assert stage.sessions[-1].connections == (5201, 9), "one to talk, and the streams"
    (window,) = stage.windows
    assert window.seconds == 2, "the time that it takes to connect is not in it"


async def test_lost_datagrams_are_counted(autojump_clock: object) -> None:
    stage = FakeStage(SERVING, {"iperf3 --client": json.dumps(IPERF_UDP)})
    load = await measured("udp-out", stage, datagrams_s=500)
    assert load.rate == 490
    assert load.details == {"sent": 1000, "lost": 20, "jitter_ms": 0.5}
    assert "--bitrate 256000" in stage.said[-1]


@pytest.mark.parametrize(
    ("shell", "tool", "message"),
    [
        ({"iperf3 --server": "sh: iperf3: not found"}, {}, "iperf3 in the guest: 'sh: iperf3: not found'"),
        (SERVING, {"--client": '{"error": "unable to connect"}'}, "iperf3 failed: unable to connect"),
        (SERVING, {"--client": "Terminated"}, "can't be understood"),
        (SERVING, {"--client": '{"intervals": [], "end": {}}'}, "no sum_received.seconds"),
    ],
)
async def test_an_iperf3_that_fails_is_an_error(
    shell: dict[str, str], tool: dict[str, str], message: str, autojump_clock: object
) -> None:
    with pytest.raises(MeasurementError, match=message):
        await measured("tcp-out", FakeStage(shell, tool), streams=1)


@pytest.mark.parametrize(
    ("name", "amount"), [("disk-sequential", 100.0), ("disk-cached", 100.0), ("disk-random", 500.0)]
)
async def test_disk_rates_are_per_second_here(
    name: str, amount: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(fio, "monotonic", trio.current_time)
    stage = _WithFio({"create_only": "{}", "cut -d": "1500000\n2500000\n"})
    load = await measured(name, stage, block_kib=4)
    assert stage.fio.heard == [b"go\n", b"stop\n", b"clock\n"]
    # Two seconds of load and one until it has ended, of which the guest saw 0.6; "done" is heard late.
    assert load.details == {"guest_clock": 0.2}
    assert load.rate == pytest.approx(amount * 0.2 / 0.5)
    assert load.latencies_ms == (1.5, 2.5)
    (window,) = stage.windows
    assert window.seconds == 2 + 1 + _FakeFio.HELD_S, "neither fio's start nor the report is in it"


class _FakeFio(FakeSession):
    """Of the 0.6 s that its guest saw it loaded the disk for 0.5."""

    HELD_S = 0.75
    first = "up"

    async def line(self) -> str:
        await trio.sleep(5)
        return self.first

    async def expect(self, wanted: str) -> None:
        assert (wanted, self.heard) == ("done", [b"go\n", b"stop\n"])
        await trio.sleep(1 + self.HELD_S)

    async def rest(self) -> str:
        await trio.sleep(5)
        return self.answer


class _WithFio(FakeStage):
    """Whose guest's clock says 100.0 at the begin, 100.6 at the end, and goes as ours until it is asked."""

    def __init__(self, answers: Mapping[str, str], *, said: str | None = None, first: str = "up") -> None:
        super().__init__(answers)
        asked = 100.6 + _FakeFio.HELD_S
        report = f"fio: terminating on signal 2\n{json.dumps(FIO)}"
        self.fio = _FakeFio(f"100.0 100.6 {asked}\n{report}" if said is None else said)
        self.fio.first = first

    @asynccontextmanager
    async def shell_session(self, command: str, *, limit_s: float = 0) -> AsyncIterator[FakeSession]:
        assert "--exec_prerun" in command
        yield self.fio


async def test_a_fio_that_fails_is_an_error(autojump_clock: object) -> None:
    with pytest.raises(MeasurementError, match="fio in the guest: 'fio: No space"):
        await measured("disk-random", FakeStage({"fio --name": "fio: No space left"}), block_kib=4)
    answers = {"create_only": "{}", "cut -d": ""}
    with pytest.raises(MeasurementError, match="fio in the guest: over fio: No space left"):
        await measured("disk-random", _WithFio(answers, said="fio: No space left", first="over"), block_kib=4)
    for said in ("1 2 3\n{}", "1 2\n{}", "1 2 3\nKilled"):
        with pytest.raises(MeasurementError, match=r"can't be understood|in the guest: 'Killed"):
            await measured("disk-random", _WithFio(answers, said=said), block_kib=4)


async def test_work_is_counted_between_two_words(autojump_clock: object) -> None:
    stage = FakeStage({"perl": "1000 4000\n"})
    load = await measured("cpu", stage, pages_s=2000, working_set_mib=16)
    assert stage.sessions[0].heard == [b"go\n", b"stop\n"]
    assert stage.said[0].endswith(" 2000 4096")
    assert load.unit == "units/s"
    assert load.details["pages_s"] == pytest.approx(4 * load.rate)
    with pytest.raises(MeasurementError, match="Out of memory"):
        await measured("cpu", FakeStage({"perl": "Out of memory!"}), pages_s=0, working_set_mib=1)


async def test_idle_is_how_fast_the_guests_clock_goes(autojump_clock: object) -> None:
    assert (await measured("idle", FakeStage(clock_rate=0.9))).rate == pytest.approx(0.9)
