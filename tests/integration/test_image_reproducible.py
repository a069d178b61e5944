"""Builds the image again from the packages that the cache has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remuslike.image import GuestImage, build_image, default_cache_directory, find_image

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return build_image()


@pytest.fixture
def other_cache(tmp_path: Path) -> Path:
    """A cache that has the packages, and nothing that was built from them."""
    source, copy = default_cache_directory() / "image", tmp_path / "other cache" / "image"
    (copy / "packages").mkdir(parents=True)
    for package in (source / "packages").glob("*.deb"):
        (copy / "packages" / package.name).symlink_to(package)
    (copy / "packages.json").write_bytes((source / "packages.json").read_bytes())
    return copy.parent


def test_a_second_build_has_the_same_bytes(image: GuestImage, other_cache: Path) -> None:
    said: list[str] = []
    previous = os.umask(0o077)
    try:
        again = build_image(other_cache, progress=said.append)
    finally:
        os.umask(previous)

    assert again.digest == image.digest
    for part in ("kernel", "initrd", "root"):
        assert getattr(again, part).read_bytes() == getattr(image, part).read_bytes(), part
    assert not [line for line in said if "download" in line]
    assert find_image(other_cache) == again
    assert sorted(path.name for path in (other_cache / "image").iterdir()) == sorted(
        ["lock", "packages", "packages.json", again.root.parent.name]
    )
