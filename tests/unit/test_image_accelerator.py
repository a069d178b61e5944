"""When the accelerator is probed, and when the answer is known before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from remuslike.image.accelerator import probe_accelerator
from remuslike.image.build import GuestImage
from remuslike.image.errors import CacheUnusableError


@pytest.fixture
def image(tmp_path: Path) -> GuestImage:
    """An image that boots nowhere: its files don't exist, so QEMU ends at once."""
    return GuestImage(tmp_path / "kernel", tmp_path / "initrd", tmp_path / "root", "digest")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def key(image: GuestImage) -> str:
    return f"{os.uname().release} {os.uname().version} {image.digest}"


def test_without_kvm_nothing_is_tried(image: GuestImage, tmp_path: Path) -> None:
    assert probe_accelerator(image, tmp_path, device=tmp_path / "none") == "tcg"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", ["kvm", "tcg"])
def test_a_known_answer_is_used(image: GuestImage, device: Path, tmp_path: Path, answer: str) -> None:
    (tmp_path / "accelerator.json").write_text(json.dumps({"key": key(image), "accelerator": answer}))
    assert probe_accelerator(image, tmp_path, device=device) == answer


@pytest.mark.parametrize(
    "record", ["", "[]", '{"key": "another kernel", "accelerator": "kvm"}', '{"accelerator": "kvm"}']
)
def test_an_answer_for_something_else_is_not_used(
    image: GuestImage, device: Path, tmp_path: Path, record: str
) -> None:
    (tmp_path / "accelerator.json").write_text(record)
    assert probe_accelerator(image, tmp_path, device=device) == "tcg"
    assert json.loads((tmp_path / "accelerator.json").read_text()) == {
        "key": key(image),
        "accelerator": "tcg",
    }


def test_a_cache_that_cannot_be_written_is_named(image: GuestImage, device: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheUnusableError, match="REMUSLIKE_CACHE"):
        probe_accelerator(image, tmp_path / "file", device=device)
