"""Inside the lab: what it promises to the tests that run there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from remuslike.lab.image import MODULES

pytestmark = [pytest.mark.lab, pytest.mark.root]


def output_of(command: str) -> str:
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def test_it_is_debians_kernel_and_root() -> None:
    assert "Debian" in os.uname().version
    assert os.geteuid() == 0


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_loaded_or_built_in(module: str) -> None:
    # Parameters and live state of a module are in /sys/module, of some built-in ones nothing is.
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    assert module in loaded | {"af_packet", "virtio_pci"}


def test_there_is_a_network_block_device() -> None:
    assert Path("/dev/nbd0").is_block_device()


def test_files_can_be_written_and_stay_in_the_lab(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    mounts = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert mounts["/"] == "overlay"
    assert mounts["/run"] == mounts["/dev/shm"] == "tmpfs"


def test_a_user_namespace_can_be_made() -> None:
    assert output_of("unshare --user --map-root-user id -u") == "0\n"


def test_a_network_namespace_can_be_made_and_named() -> None:
    output_of("ip netns add lab-test")
    try:
        assert "lo" in output_of("ip netns exec lab-test ip link")
    finally:
        output_of("ip netns del lab-test")
