"""`remuslike bench run --guest synthetic` from its command line, with a host that dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remuslike.bench.results import decode_untrusted

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]

LIMIT_S = 240
COMMAND = [str(Path(sys.executable).with_name("remuslike")), "bench", "run", "--guest", "synthetic"]


def test_a_guest_without_qemu_is_measured_and_its_host_killed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    chosen = ["--modes", "epoch", "--workloads", "requests:clients=16", "--seconds", "1", "--repeat", "1"]
    done = subprocess.run(
        [*COMMAND, *chosen, "--kills", "1", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with path.open(newline="\n") as lines:
        solo, protected, killed = decode_untrusted(lines, str(path)).cells
    assert solo.checkpoints == {}
    assert len(protected.checkpoints["pause_ms"]) > 5
    assert protected.cores.keys() == {"primary", "qemu", "secondary", "standby", "client"}
    for cell in (solo, protected):
        assert cell.load is not None
        assert cell.load.rate > 1
    assert killed.lost == 0
    assert list(killed.takeover_ms) == ["decided", "granted", "opened", "running", "first_reply"]
