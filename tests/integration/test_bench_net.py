"""`remuslike bench net` from its command line, as short as it gets: structure and sanity, never a time."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remuslike.bench.net import (
    BARE,
    EPOCHS,
    MESSAGES,
    QEMU_IN,
    QEMU_OUT,
    SEAL_RELEASE,
    TCP_IN,
    TCP_OUT,
    TOLD_TCP,
    TOLD_UDP,
    UDP_OUT,
    UNTOLD,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
    pytest.mark.skipif(shutil.which("iperf3") is None, reason="iperf3 isn't installed"),
]

LIMIT_S = 240  # in the lab, too, where a Python process takes seconds to start
REMUSLIKE = str(Path(sys.executable).with_name("remuslike"))
COMMAND = (REMUSLIKE, *"bench net --seconds 1 --repeat 1".split())


def measured(report: Path, *options: str) -> dict[str, Any]:
    """The document of a run, all of whose values could be true."""
    command = [*COMMAND, *options, "--json", str(report)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    document: dict[str, Any] = json.loads(report.read_text())
    assert document["environment"]["kernel"].startswith(os.uname().release)
    for sample in document["samples"]:
        assert sample["value"] > 0 or sample["measure"] == MESSAGES, sample
    return document


def settings_of(document: dict[str, Any]) -> dict[str, set[str]]:
    """Of each measure, the settings that have a figure."""
    settings: dict[str, set[str]] = {}
    for figure in document["figures"]:
        settings.setdefault(figure["measure"], set()).add(figure["setting"])
    return settings


def median_of(document: dict[str, Any], measure: str, setting: str) -> float:
    (median,) = [
        figure["median"]
        for figure in document["figures"]
        if (figure["measure"], figure["setting"]) == (measure, setting)
    ]
    return float(median)


def test_the_tap_hold_is_measured_beside_a_bare_tap(tmp_path: Path) -> None:
    parts = ("--part", "udp", "--part", "seal", "--part", "notify")
    document = measured(tmp_path / "report.json", "--no-qemu", *parts)
    settings = settings_of(document)
    assert document["skipped"]["QEMU guest"] == "not asked for"
    assert settings[UDP_OUT] >= {BARE, "tap"}
    for measure in (TOLD_TCP, TOLD_UDP):
        for state in ("", EPOCHS):
            assert settings[measure] >= {f"tap{state}", f"tap{state}{UNTOLD}"}
    told = {
        (figure["setting"], figure["baseline"])
        for figure in document["figures"]
        if figure["measure"] == TOLD_UDP and figure["ratio"]
    }
    assert told >= {(f"tap{state}", f"tap{state}{UNTOLD}") for state in ("", EPOCHS)}
    assert settings[SEAL_RELEASE] >= {"tap"}
    assert median_of(document, MESSAGES, "tap") == 0, "it needs no message to the kernel"


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 isn't installed")
def test_a_real_guest_is_measured_where_qemu_is_installed(tmp_path: Path) -> None:
    settings = settings_of(measured(tmp_path / "report.json", "--part", "tcp"))
    for measure in (TCP_OUT, TCP_IN, QEMU_OUT, QEMU_IN):
        assert settings[measure] >= {BARE, "tap", f"tap{EPOCHS}"}


@pytest.mark.lab
def test_the_plug_is_measured_where_the_kernel_has_one(tmp_path: Path) -> None:
    document = measured(tmp_path / "report.json", "--part", "udp", "--part", "seal")
    settings = settings_of(document)
    assert document["skipped"].keys() == {"QEMU guest"}
    assert document["environment"]["emulated"]
    assert settings.keys() == {UDP_OUT, SEAL_RELEASE, MESSAGES}
    assert settings[UDP_OUT] == {BARE, "tap", "plug"}
    assert settings[SEAL_RELEASE] == {"pyroute2", "tap", "plug"}
    assert median_of(document, MESSAGES, "plug") == 2, "one to seal, one to release"
    assert median_of(document, MESSAGES, "pyroute2") >= 2


def children_of(process: int) -> list[int]:
    """The processes that `process` has started and that still are."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def begun(*options: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A run that has taken its first sample, and descriptors of two relays of it."""
    command = [*COMMAND, "--no-qemu", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("round 1 of"), line
    relays = [os.pidfd_open(child) for child in children_of(process.pid)[:2]]
    assert len(relays) == 2
    return process, relays


def assert_ended(relays: list[int]) -> None:
    for relay in relays:
        with os.fdopen(relay) as ended:
            assert select.select([ended], [], [], 60)[0], "a relay has outlived its benchmark"


def test_nothing_is_left_of_one_that_is_killed() -> None:
    process, relays = begun()
    process.kill()
    process.communicate(timeout=LIMIT_S)
    assert_ended(relays)


def test_ctrl_c_keeps_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    process, relays = begun("--repeat", "9", "--part", "tcp", "--json", str(report))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the tools hear it, too
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGINT
    assert "interrupted" in output
    document = json.loads(report.read_text())
    assert not document["complete"]
    assert {sample["measure"] for sample in document["samples"]} <= {TCP_OUT, TCP_IN}
    assert document["samples"]
    assert_ended(relays)
