"""What fio is told, and what is made of its report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from remuslike.bench.errors import MeasurementError
from remuslike.bench.fio import Job, nbd_options, read_rate

JOB = Job("randwrite", 4096, ("--fsync=1",))


def report(**job: Any) -> str:
    idle = {"iops": 0.0}
    return json.dumps({"jobs": [{"error": 0, "read": idle, "write": idle, **job}]})


def test_a_job_is_timed_or_goes_through_its_target_once() -> None:
    timed = JOB.command("--size=1M", seconds=2)
    assert timed[0] == "fio"
    assert {"--rw=randwrite", "--bs=4096", "--fsync=1", "--size=1M", "--time_based", "--runtime=2"} <= {
        *timed
    }
    assert not any("time" in option for option in replace(JOB, once=True).command(seconds=3))


def test_clients_are_threads_each_of_the_same_depth() -> None:
    options = nbd_options("nbd+unix:///?socket=s", 4096, clients=10)
    assert {"--ioengine=nbd", "--uri=nbd+unix:///?socket=s", "--iodepth=16", "--numjobs=10"} <= {*options}


def test_the_rate_is_that_of_both_directions_and_warnings_before_it_are_passed_over() -> None:
    assert read_rate("fio: a warning\n" + report(read={"iops": 3.0}, write={"iops": 4.5})) == 7.5


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", "can't be understood"),
        ("{}", "can't be understood"),
        (report(error=5), "errno 5"),
        (report(), "did nothing"),
    ],
)
def test_what_is_no_figure_is_an_error(output: str, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        read_rate(output)
