"""The examination of a disk, with the real tools on disks that the test makes (no mount, no root)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from remuslike.demo.survivor import AOF_DIRECTORY, MANIFEST, examine
from remuslike.demo.workload import ConnectionHistory, encode, encode_write
from remuslike.image import make_data_disk

SEED, PAYLOAD = 3, 64
HISTORIES = {0: ConnectionHistory(0, sent=20, acknowledged=15)}

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("mke2fs", "e2fsck", "debugfs", "redis-check-aof")),
    reason="needs e2fsprogs and redis-tools",
)


def disk_with(tmp_path: Path, log: bytes | None) -> Path:
    """A disk whose append-only file has `log`; without it the disk is empty."""
    disk = tmp_path / "data.raw"
    make_data_disk(disk, 16)
    if log is None:
        return disk
    name = "appendonly.aof.1.incr.aof"
    (tmp_path / name).write_bytes(log)
    (tmp_path / MANIFEST).write_text(f"file {name} seq 1 type i\n")
    commands = [f"mkdir {AOF_DIRECTORY}"]
    commands += [f"write {tmp_path / file} {AOF_DIRECTORY}/{file}" for file in (name, MANIFEST)]
    script = tmp_path / "commands"
    script.write_text("\n".join(commands) + "\n")
    debugfs(disk, "-f", str(script))
    return disk


def debugfs(disk: Path, *arguments: str) -> None:
    subprocess.run(["debugfs", "-w", *arguments, disk], check=True, capture_output=True)


def log_of(count: int) -> bytes:
    return encode(b"SELECT", b"0") + b"".join(
        encode_write(SEED, 0, number, PAYLOAD) for number in range(count)
    )


async def judge(tmp_path: Path, disk: Path) -> tuple[bool, bool, int]:
    extracted = tmp_path / "extracted"
    extracted.mkdir()
    found = await examine(disk, extracted, HISTORIES, seed=SEED, payload_bytes=PAYLOAD)
    return found.filesystem.clean, found.append_only_file.clean, len(found.findings)


@pytest.mark.parametrize(("written", "lost"), [(20, 0), (15, 0), (14, 1), (0, 15)])
async def test_a_whole_disk_is_judged_by_its_writes(tmp_path: Path, written: int, lost: int) -> None:
    assert await judge(tmp_path, disk_with(tmp_path, log_of(written))) == (True, True, lost)


async def test_a_torn_append_only_file_is_not_clean(tmp_path: Path) -> None:
    filesystem, append_only_file, _ = await judge(tmp_path, disk_with(tmp_path, log_of(20)[:-5]))
    assert (filesystem, append_only_file) == (True, False)


async def test_a_disk_without_an_append_only_file_is_not_clean(tmp_path: Path) -> None:
    assert await judge(tmp_path, disk_with(tmp_path, None)) == (True, False, 0)


async def test_a_damaged_file_system_is_not_clean(tmp_path: Path) -> None:
    disk = disk_with(tmp_path, log_of(20))
    debugfs(disk, "-R", f"clri {AOF_DIRECTORY}/{MANIFEST}")
    assert (await judge(tmp_path, disk))[0] is False
