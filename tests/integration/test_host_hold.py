"""Where a daemon has its guest's frames wait, as configuration and kernel allow, and where it says so.

The tests marked `lab` ask the kernel that has `sch_plug`; the others the one on which they run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from fakes.namespace import BridgedLan, run_in_namespace

from netbuf import KernelModuleError, choose
from remuslike.config import Settings
from remuslike.daemon.hooks import pass_step
from remuslike.daemon.host import open_host
from remuslike.errors import ConfigurationError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
]

WINDOW = 3


def settings(run_directory: Path, **buffers: Any) -> Settings:
    """Of a guest with two interfaces in one LAN."""
    nics = [{"mac": f"52:54:00:00:00:0{number}", "bridge": "br0"} for number in (1, 2)]
    return Settings.model_validate(
        {
            "name": "node-a",
            "run_directory": str(run_directory),
            "guest": {"memory_mib": 64, "nics": nics},
            "epoch": {"window": WINDOW},
            "buffers": buffers,
            "link": {"address": "127.0.0.1:7000"},
            "witness": {"kind": "none"},
        }
    )


def limits(run_directory: Path, **buffers: Any) -> set[int]:
    """The bytes that each interface may hold."""
    BridgedLan()

    async def scenario() -> set[int]:
        async with open_host(settings(run_directory, **buffers), pass_step, owns_shared=True) as host:
            return {one["limit_bytes"] for one in host.outputs.statistics().values()}

    return trio.run(scenario)


def chosen(run_directory: Path, **buffers: Any) -> tuple[int, set[str], list[Any]]:
    """What a host with these `buffers` ends up with: depth, backends in its statistics, lines of the log."""
    BridgedLan()

    async def scenario() -> tuple[int, set[str]]:
        async with open_host(settings(run_directory, **buffers), pass_step, owns_shared=True) as host:
            statistics = host.outputs.statistics()
            assert list(statistics) == ["network0", "network1"]
            return host.outputs.depth, {one["backend"] for one in statistics.values()}

    with structlog.testing.capture_logs() as log:
        depth, backends = trio.run(scenario)
    return depth, backends, [line for line in log if line["event"] == "hold.chosen"]


def skip_if_plugged() -> None:
    if choose("auto", 1).backend == "plug":
        pytest.skip("this kernel has sch_plug")


@pytest.mark.lab
def test_auto_takes_the_plug_where_the_kernel_has_it(tmp_path: Path) -> None:
    def scenario() -> None:
        depth, backends, log = chosen(tmp_path)
        assert (depth, backends) == (1, {"plug"})
        (line,) = log
        assert (line["backend"], line["reason"]) == ("plug", "this kernel has ifb and sch_plug")

    run_in_namespace(scenario)


@pytest.mark.lab
def test_the_tap_can_be_asked_for_there_too(tmp_path: Path) -> None:
    def scenario() -> None:
        depth, backends, log = chosen(tmp_path, hold="tap")
        assert (depth, backends) == (WINDOW + 1, {"tap"})
        assert log[0]["reason"] == "asked for"

    run_in_namespace(scenario)


@pytest.mark.lab
def test_a_limit_beyond_a_plugs_names_its_key(tmp_path: Path) -> None:
    def scenario() -> None:
        with pytest.raises(ConfigurationError, match=r"^buffers\.network_limit_mib = 8192: .*'tap'$"):
            chosen(tmp_path, hold="plug", network_limit_mib=8192)

    run_in_namespace(scenario)


def test_auto_takes_the_tap_elsewhere_and_says_what_is_missing(tmp_path: Path) -> None:
    skip_if_plugged()

    def scenario() -> None:
        depth, backends, log = chosen(tmp_path)
        assert (depth, backends) == (WINDOW + 1, {"tap"})
        (line,) = log
        assert line["backend"] == "tap"
        assert "sch_plug" in line["reason"]

    run_in_namespace(scenario)


@pytest.mark.parametrize(
    ("buffers", "limit_bytes"),
    [({}, 125_000_000), ({"link_mbit": 1000}, 12_500_000), ({"network_limit_mib": 3}, 3 << 20)],
)
def test_the_limit_is_sized_from_the_link_and_the_epoch(
    tmp_path: Path, buffers: dict[str, int], limit_bytes: int
) -> None:
    """Of 25 ms: four times what comes in one."""
    run_in_namespace(lambda: assert_limit(tmp_path, buffers, limit_bytes))


def assert_limit(directory: Path, buffers: dict[str, int], limit_bytes: int) -> None:
    assert limits(directory, **buffers) == {limit_bytes}


def test_a_plug_that_the_kernel_lacks_is_not_replaced(tmp_path: Path) -> None:
    skip_if_plugged()

    def scenario() -> None:
        with pytest.raises(KernelModuleError, match="sch_plug"):
            chosen(tmp_path, hold="plug")

    run_in_namespace(scenario)
