"""Data disks: what they are, and what is refused."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from remuslike.image.disk import LABEL_LIMIT_BYTES, SIZE_MAX_MIB, SIZE_MIN_MIB, make_data_disk
from remuslike.image.errors import DataDiskError

pytestmark = pytest.mark.skipif(not Path("/sbin/mke2fs").exists(), reason="mke2fs isn't installed")


def describe(path: Path) -> str:
    command = ["/sbin/dumpe2fs", "-h", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_disk_is_a_sparse_clean_file_system_with_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "data.raw"
    make_data_disk(path, 64, label="redis")
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks * 512 < 16 << 20
    described = describe(path)
    assert "has_journal" in described
    assert "volume name:   redis" in described
    assert re.search(r"Block size: +4096\n", described)
    subprocess.run(["/sbin/e2fsck", "-fn", path], capture_output=True, check=True)


def test_the_smallest_disk_still_has_a_journal(tmp_path: Path) -> None:
    make_data_disk(tmp_path / "data.raw", SIZE_MIN_MIB)
    assert "has_journal" in describe(tmp_path / "data.raw")


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    for name, seed in {"a": "one", "b": "one", "c": "two"}.items():
        make_data_disk(tmp_path / name, SIZE_MIN_MIB, seed=seed)
    contents = {name: (tmp_path / name).read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data.raw").write_text("precious")
    with pytest.raises(DataDiskError, match="exists and may hold data"):
        make_data_disk(tmp_path / "data.raw", SIZE_MIN_MIB)
    assert (tmp_path / "data.raw").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["data.raw"]


@pytest.mark.parametrize("size_mib", [-1, 0, SIZE_MIN_MIB - 1, SIZE_MAX_MIB + 1])
def test_a_size_out_of_range_is_named(tmp_path: Path, size_mib: int) -> None:
    with pytest.raises(DataDiskError, match=f"size_mib is {size_mib}; give {SIZE_MIN_MIB} to {SIZE_MAX_MIB}"):
        make_data_disk(tmp_path / "data.raw", size_mib)


@pytest.mark.parametrize("label", ["x" * (LABEL_LIMIT_BYTES + 1), "é" * 9, "a\nb"])
def test_a_label_that_does_not_fit_is_named(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataDiskError, match="label is"):
        make_data_disk(tmp_path / "data.raw", SIZE_MIN_MIB, label=label)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataDiskError, match=r"nowhere/data\.raw can't be made: No such file"):
        make_data_disk(tmp_path / "nowhere" / "data.raw", SIZE_MIN_MIB)
