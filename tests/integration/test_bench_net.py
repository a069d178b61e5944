"""`remuslike bench net` from its command line, as short as it gets: structure and sanity, never a time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remuslike.bench.net import BARE, MEASURES, MESSAGES, SEAL_RELEASE, TCP_IN, TCP_OUT, UDP_OUT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
    pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 isn't installed"),
]

LIMIT_S = 240  # in the lab, too, where a Python process takes seconds to start
COMMAND = [
    str(Path(sys.executable).with_name("remuslike")),
    "bench",
    "net",
    "--seconds",
    "1",
    "--repeat",
    "1",
]


def namespaces_of(name: str) -> set[str]:
    """The network namespaces in which there are processes with `name` in their command line."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and name in (entry / "cmdline").read_text().replace("\0", " "):
                found.add(str((entry / "ns/net").readlink()))
        except OSError:
            continue  # it ended meanwhile
    return found


def measured(report: Path) -> dict[str, set[str]]:
    """The settings of each measure that have a figure."""
    settings: dict[str, set[str]] = {}
    for figure in json.loads(report.read_text())["figures"]:
        settings.setdefault(figure["measure"], set()).add(figure["setting"])
    return settings


def check_report(report: Path, hold: str) -> None:
    """`hold` has figures for all that is measured, and they could be true."""
    document = json.loads(report.read_text())
    assert document["environment"]["kernel"].startswith(os.uname().release)
    settings = measured(report)
    epochs = f"{hold}, 25 ms epochs"
    assert settings.keys() == {measure.name for measure in MEASURES}
    assert settings[TCP_OUT] >= {BARE, hold, epochs}
    assert settings[TCP_IN] >= {BARE, hold, epochs}
    assert settings[UDP_OUT] >= {BARE, hold}
    assert settings[SEAL_RELEASE] >= {hold}
    assert all(sample["value"] > 0 for sample in document["samples"] if sample["measure"] != MESSAGES)
    (ratio,) = [
        figure["ratio"]
        for figure in document["figures"]
        if (figure["measure"], figure["setting"]) == (TCP_OUT, epochs)
    ]
    assert 0 < ratio < 2


def test_the_tap_hold_is_measured_beside_a_bare_tap(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    finished = subprocess.run(
        [*COMMAND, "--json", str(report)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    check_report(report, "tap")
    messages = [
        figure["median"]
        for figure in json.loads(report.read_text())["figures"]
        if (figure["measure"], figure["setting"]) == (MESSAGES, "tap")
    ]
    assert messages == [0], "the tap hold seals and releases without the kernel's help"


@pytest.mark.lab
def test_the_plug_is_measured_where_the_kernel_has_one(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    finished = subprocess.run(
        [*COMMAND, "--json", str(report)], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads(report.read_text())["skipped"] == {}
    check_report(report, "plug")
    figures = {
        figure["setting"]: figure
        for figure in json.loads(report.read_text())["figures"]
        if figure["measure"] == MESSAGES
    }
    assert figures["plug"]["median"] == 2, "one netlink message to seal, one to release"
    assert figures["pyroute2"]["median"] >= 2


def test_nothing_is_left_of_one_that_is_killed() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("round 1 of 1"), line
        inside = namespaces_of("remuslike.bench.relay")
        assert inside
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=LIMIT_S)
    until = time.monotonic() + 60
    while inside & namespaces_of(""):
        assert time.monotonic() < until, "processes of the benchmark have outlived it"
        time.sleep(0.1)
