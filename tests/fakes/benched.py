"""Made-up results of a benchmark's run, from a seed: plausible costs of each mode, no measurement at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from remuslike.bench.results import Cell, Guest, Header, Load, Mode, Parameter, Results, Variant

ENVIRONMENT: Mapping[str, Any] = {
    "commit": "0123456789ab",
    "cpu": "AMD EPYC",
    "processors": 2,
    "emulated": False,
    "accelerator": "kvm",
    "kernel": "6.18.0",
    "tools": {"qemu": "QEMU emulator version 7.2.22"},
}
SETTINGS: tuple[tuple[Mode, float | None], ...] = (
    ("unprotected", None),
    *(("epoch", epoch_ms) for epoch_ms in (10.0, 25.0, 50.0, 100.0)),
    ("event-tap", None),
    ("adaptive", None),
)
# Workload, parameters, unit, its unprotected rate and median latency in ms (0: has none).
LOADS: tuple[tuple[str, Mapping[str, Parameter], str, float, float], ...] = (
    ("redis", {"clients": 1}, "requests/s", 1500, 0.6),
    ("redis", {"clients": 16}, "requests/s", 9000, 1.5),
    ("redis", {"clients": 256}, "requests/s", 26000, 9.0),
    ("cpu", {"pages_s": 2000, "working_set_mib": 16}, "loops/s", 900, 0),
    ("iperf3", {"streams": 8, "direction": "out"}, "Gbit/s", 1.9, 0),
    ("fio", {"pattern": "randwrite", "fsync": True}, "writes/s", 700, 1.3),
)


class MadeUp:
    """A run: `rounds` of every setting and load, the settings interleaved; `samples` checkpoints a cell."""

    def __init__(
        self,
        seed: int,
        *,
        rounds: int = 5,
        samples: int = 400,
        operations: int = 3000,
        kills: int = 12,
        slower: float = 1.0,
        guests: tuple[Guest, ...] = ("q35",),
        environment: Mapping[str, Any] = ENVIRONMENT,
    ) -> None:
        """`slower` divides the rate of mode adaptive: a regression to be found."""
        self._random = np.random.default_rng(seed)
        self._rounds, self._samples, self._operations = rounds, samples, operations
        self._kills, self._slower, self._guests = kills, slower, guests
        self._day = f"2026-11-{1 + seed % 30:02}"
        environment = {**environment, "at": f"{self._day}T20:00:00+00:00"}
        self._header = Header(environment=environment, options={"repeat": rounds, "seed": seed})

    def results(self) -> Results:
        """The whole file."""
        return Results(header=self._header, cells=tuple(self._cells()))

    def _cells(self) -> Iterator[Cell]:
        for number in range(1, self._rounds + 1):
            for guest in self._guests:
                for load in LOADS:
                    drift = self._random.uniform(0.8, 1.25)  # of the machine: hits all settings alike
                    for mode, epoch_ms in SETTINGS:
                        yield self._cell(number, guest, load, mode, epoch_ms, drift)
                yield from self._steps(number, guest)
        yield from self._killed()

    def _cell(
        self,
        number: int,
        guest: Guest,
        load: tuple[str, Mapping[str, Parameter], str, float, float],
        mode: Mode,
        epoch_ms: float | None,
        drift: float,
    ) -> Cell:
        workload, parameters, unit, rate, latency_ms = load
        interval_ms = self._interval_ms(mode, epoch_ms, rate)
        pause_ms = 0.0 if mode == "unprotected" else 3.5 + 0.02 * interval_ms
        wait_ms = 0.0 if mode == "unprotected" else interval_ms / 2 + pause_ms + 3
        kept = interval_ms / (interval_ms + pause_ms) if pause_ms else 1.0
        if latency_ms:
            # Who waits for replies anyway loses little by a pause; who has much to do loses all of it.
            kept = kept ** (rate / 26000) * (latency_ms + 12) / (latency_ms + 12 + wait_ms)
        slower = self._slower if mode == "adaptive" else 1.0
        noise = self._random.uniform(0.98, 1.02)
        operations = self._random.gamma(4, (latency_ms / drift + wait_ms) / 4, self._operations)
        return Cell(
            variant=Variant(
                guest=guest, workload=workload, parameters=parameters, mode=mode, epoch_ms=epoch_ms
            ),
            round=number,
            at=f"{self._day}T22:{number:02}:00+00:00",
            seconds=self._samples * (interval_ms + pause_ms) / 1e3 if pause_ms else 10.0,
            load=Load(
                unit=unit,
                rate=rate * kept * drift * noise / slower,
                latencies_ms=tuple(operations.round(4).tolist()) if latency_ms else (),
            ),
            checkpoints={}
            if mode == "unprotected"
            else self._checkpoints(np.full(self._samples, interval_ms), pause_ms),
            cores={"qemu": 0.9}
            if mode == "unprotected"
            else {"qemu": 0.8, "primary": 0.25, "secondary": 0.2},
            memory_mib={"qemu": 310.0} if mode == "unprotected" else {"qemu": 310.0, "primary": 620.0},
        )

    def _interval_ms(self, mode: Mode, epoch_ms: float | None, rate: float) -> float:
        if epoch_ms is not None:
            return epoch_ms
        return 1e3 / rate + 2 if mode == "event-tap" else 8 + rate / 400

    def _checkpoints(self, intervals_ms: Any, pause_ms: float) -> dict[str, tuple[float | None, ...]]:
        count = len(intervals_ms)

        def around(middle: Any) -> Any:
            return self._random.gamma(8, np.broadcast_to(np.asarray(middle) / 8, (count,)))

        dirty = around(20 * intervals_ms).round()
        stop, scan, copy, resume = (around(each * pause_ms) for each in (0.16, 0.08, 0.05, 0.12))
        devices = around(0.5 * pause_ms)
        pause = stop + np.maximum(devices, scan + copy) + resume + around(0.05)
        commit: list[float | None] = around(4.0).round(4).tolist()
        commit[-1] = None
        columns = {
            "epoch": np.arange(count),
            "at": (np.cumsum(intervals_ms * self._random.uniform(0.97, 1.03, count) + pause) / 1e3) + 1000,
            "dirty_pages": dirty,
            "pause_ms": pause,
            "stop_ms": stop,
            "scan_ms": scan,
            "copy_ms": copy,
            "devices_ms": devices,
            "resume_ms": resume,
            "raw_bytes": dirty * 4096,
            "wire_bytes": (dirty * 90).round(),
        }
        return {
            **{name: tuple(column.round(6).tolist()) for name, column in columns.items()},
            "commit_ms": tuple(commit),
        }

    def _steps(self, number: int, guest: Guest) -> Iterator[Cell]:
        """A load that goes up, and down again."""
        offered = np.repeat([500.0, 8000.0, 20000.0, 8000.0, 500.0], 8)
        for mode, epoch_ms in SETTINGS:
            if epoch_ms not in (None, 25.0):
                continue
            intervals = np.array([self._interval_ms(mode, epoch_ms, rate) for rate in offered])
            kept = 1.0 if mode == "unprotected" else intervals / (intervals + 4)
            rates = offered * kept * self._random.uniform(0.97, 1.03, offered.size)
            repeated = np.concatenate([np.full(int(500 / (each + 4)), each) for each in intervals])
            yield Cell(
                variant=Variant(guest=guest, workload="steps", mode=mode, epoch_ms=epoch_ms),
                round=number,
                at=f"{self._day}T23:{number:02}:00+00:00",
                seconds=20.0,
                load=Load(
                    unit="requests/s",
                    rate=float(rates.mean()),
                    series=tuple((each / 2, float(rate)) for each, rate in enumerate(rates)),
                ),
                checkpoints={} if mode == "unprotected" else self._checkpoints(repeated, 4.0),
            )

    def _killed(self) -> Iterator[Cell]:
        for number in range(1, self._kills + 1):
            for guest in self._guests:
                for mode, epoch_ms in (("epoch", 25.0), ("adaptive", None)):
                    steps = np.cumsum(
                        [
                            self._random.normal(101, 2),
                            *self._random.gamma(3, 1.2, 3),
                            self._random.gamma(4, 22),
                        ]
                    )
                    names = ("decided", "granted", "opened", "running", "first_reply")
                    yield Cell(
                        variant=Variant(guest=guest, workload="kill", mode=mode, epoch_ms=epoch_ms),
                        round=number,
                        at=f"{self._day}T21:{number:02}:00+00:00",
                        takeover_ms=dict(zip(names, steps.round(3).tolist(), strict=True)),
                        lost=0,
                    )
