"""The workloads of `bench run`; CONTRIBUTING says how another is added."""

from __future__ import annotations

from collections.abc import Mapping

from remuslike.bench.workloads import cpu, fio, idle, iperf, redis
from remuslike.bench.workloads.contract import Workload

_ALL: tuple[Workload, ...] = (
    redis.REQUESTS,
    redis.TRANSACTIONS,
    iperf.TCP_OUT,
    iperf.TCP_IN,
    iperf.UDP_OUT,
    fio.SEQUENTIAL,
    fio.RANDOM,
    cpu.CPU,
    idle.IDLE,
)

WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _ALL}
"""By name, in the order in which they are measured."""
