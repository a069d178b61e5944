"""The workloads of `bench run`; CONTRIBUTING says how another is added."""

from __future__ import annotations

from collections.abc import Mapping

from remuslike.bench.results import Guest
from remuslike.bench.workloads import cpu, fio, idle, iperf, redis, synthetic
from remuslike.bench.workloads.contract import Workload

_ALL: tuple[Workload, ...] = (
    redis.REQUESTS,
    redis.PIPELINED,
    redis.STEPS,
    redis.TRANSACTIONS,
    iperf.TCP_OUT,
    iperf.TCP_IN,
    iperf.UDP_OUT,
    fio.SEQUENTIAL,
    fio.CACHED,
    fio.RANDOM,
    cpu.CPU,
    idle.IDLE,
)

WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _ALL}
"""Of guests that run Linux, by name, in the order in which they are measured."""


def workloads_of(guest: Guest) -> Mapping[str, Workload]:
    """What a kind of guest can do."""
    return synthetic.WORKLOADS if guest == "synthetic" else WORKLOADS
