"""`remuslike bench disk` from its command line, as short as it gets: structure and sanity, never a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remuslike.bench.disk import (
    BUFFERED,
    DIRECT,
    EPOCHS,
    JOURNALLED,
    NBDKIT,
    NBDKIT_ONE,
    NBDKIT_TEN,
    ONE,
    PLAIN,
    RAW,
    TEN,
)

LIMIT_S = 240
REMUSLIKE = str(Path(sys.executable).with_name("remuslike"))

needs_tools = pytest.mark.skipif(
    None in (shutil.which("fio"), shutil.which("nbdkit")), reason="fio or nbdkit isn't installed"
)


def measured(directory: Path, *parts: str) -> dict[str, Any]:
    """The document of a run that left nothing behind, all of whose values could be true."""
    images, report = directory / "images", directory / "report.json"
    images.mkdir()
    command = [REMUSLIKE, *"bench disk --seconds 1 --repeat 1 --disk-mib 256 --json".split(), str(report)]
    command += ["--directory", str(images), *(f"--part={part}" for part in parts)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert list(images.iterdir()) == []
    document: dict[str, Any] = json.loads(report.read_text())
    assert all(sample["value"] > 0 for sample in document["samples"])
    return document


def settings_of(document: dict[str, Any], measure: str) -> set[str]:
    return {figure["setting"] for figure in document["figures"] if figure["measure"] == measure}


@needs_tools
def test_servers_are_measured_side_by_side(tmp_path: Path) -> None:
    document = measured(tmp_path, "nbd", "connections")
    for measure in ("write_4k", "read_4k", "write_256k", "read_256k"):
        assert settings_of(document, measure) == {NBDKIT, PLAIN, EPOCHS}
    for measure in ("clients_write", "clients_write_us", "clients_read", "clients_read_us"):
        assert settings_of(document, measure) == {ONE, TEN, NBDKIT_ONE, NBDKIT_TEN}
    baselines = {figure["setting"]: figure["baseline"] for figure in document["figures"]}
    ratios = {PLAIN: NBDKIT, EPOCHS: PLAIN, TEN: ONE, NBDKIT_ONE: ONE, NBDKIT_TEN: NBDKIT_ONE}
    assert baselines == {NBDKIT: None, ONE: None, **ratios}


@pytest.mark.qemu
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 isn't installed")
def test_guests_are_measured_where_qemu_is_installed(tmp_path: Path) -> None:
    document = measured(tmp_path, "guest")
    for measure in ("guest_write", "guest_lone", "guest_whole", "guest_ordinary", "guest_fsync"):
        assert settings_of(document, measure) == {RAW, DIRECT, BUFFERED, JOURNALLED}
