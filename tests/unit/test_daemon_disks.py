"""A daemon's disks at its start: journals are recovered, and a shared one is taken or waits its turn."""

# ruff: noqa: ASYNC240  (a test may block for a small file)

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from diskbuf import DiskBuffer, Extent, FileStore, Journal
from diskbuf.errors import StoreInUseError, StoreIOError
from remuslike.config import Settings
from remuslike.daemon.disks import open_disks
from remuslike.daemon.hooks import pass_step

DISK_BYTES = 1 << 20
JOURNAL_BYTES = 1 << 20
EPOCHS = 20


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(DISK_BYTES))
    return path


def settings(tmp_path: Path, **disk: Any) -> Settings:
    """Of a node with one disk."""
    return Settings.model_validate(
        {
            "name": "node-a",
            "run_directory": str(tmp_path / "run"),
            "guest": {
                "machine": "q35",
                "accelerator": "tcg",
                "vcpus": 1,
                "memory_mib": 64,
                "disks": [{"name": "data", **disk}],
            },
            "link": {"address": "127.0.0.1:7000"},
            "witness": {"kind": "none"},
        }
    )


async def opened(stack: ExitStack, settings: Settings, *, owns_shared: bool = True) -> DiskBuffer:
    (buffer,), _ = await open_disks(stack, settings, 3, pass_step, owns_shared=owns_shared)
    return buffer


async def test_a_recovery_says_how_far_it_is_by_tenths(tmp_path: Path, image: Path, stack: ExitStack) -> None:
    path = tmp_path / "journal"
    store = FileStore.open(image)
    journal = Journal.open(path, store, capacity_bytes=JOURNAL_BYTES)
    journal.log_all([(epoch, [Extent.of_data(epoch, b"x")]) for epoch in range(EPOCHS)])
    journal.close()
    store.close()
    with capture_logs() as logs:
        await opened(stack, settings(tmp_path, store=str(image), journal=str(path)))
    told = [line for line in logs if line["event"] == "journal.recovering"]
    assert [10 * line["done_bytes"] // line["total_bytes"] for line in told] == list(range(11))
    assert [line["epochs"] for line in logs if line["event"] == "journal.recovered"] == [EPOCHS]
    assert image.read_bytes()[:EPOCHS] == b"x" * EPOCHS


async def test_a_shared_disk_has_one_owner(tmp_path: Path, image: Path, stack: ExitStack) -> None:
    shared = settings(tmp_path, store=str(image), shared=True)
    with ExitStack() as owner:
        await opened(owner, shared)
        with pytest.raises(StoreInUseError, match="in use on another host"):
            await opened(stack, shared)
        standby = await opened(stack, shared, owns_shared=False)
        with pytest.raises(StoreIOError, match="the other host has it"):
            standby.read(0, 1)
    await opened(stack, shared)


async def test_a_released_epoch_is_on_stable_storage_also_without_a_journal(
    tmp_path: Path, image: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[bytes] = []
    monkeypatch.setattr(FileStore, "sync", lambda _store: syncs.append(image.read_bytes()[:3]))
    buffer = await opened(stack, settings(tmp_path, store=str(image), journal=False))
    buffer.hold(1)
    buffer.write(0, b"one")
    buffer.seal(1)
    await buffer.release(1)
    assert syncs == [b"one"]


async def test_a_release_to_a_shared_disk_passes_its_steps_if_it_writes(
    tmp_path: Path, image: Path, stack: ExitStack
) -> None:
    passed: list[tuple[str, int]] = []
    (buffer,), _ = await open_disks(
        stack,
        settings(tmp_path, store=str(image), shared=True),
        3,
        lambda step, epoch: passed.append((step, epoch)),
        owns_shared=True,
    )
    buffer.hold(1)
    buffer.write(0, b"one")
    buffer.write(512, b"two")
    buffer.seal(1)
    await buffer.release(1)
    buffer.seal(2)
    await buffer.release(2)
    steps = ["release.write", "release.write", "release.written", "release.synced"]
    assert passed == [(step, 1) for step in steps]
