"""The cache of the image builder: its key, what it takes for complete, and its lock."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from remuslike.image import build
from remuslike.image.build import build_image, cache_key, default_cache_directory, find_image
from remuslike.image.errors import CacheUnusableError
from remuslike.image.packages import Package
from remuslike.image.recipe import GUEST_DIRECTORY, Recipe

PACKAGES = (Package("redis", "7", "aa", 1), Package("libc6", "2", "bb", 2))
INGREDIENTS = {"guest-init.sh": b"#!/bin/sh\n"}


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A cache that holds a complete image, made of three one-byte files."""
    directory = tmp_path / "image"
    recipe = Recipe()
    directory.mkdir()
    build._write_packages(directory, recipe, PACKAGES)
    folder = directory / cache_key(PACKAGES, recipe, build._ingredients())
    folder.mkdir()
    for part in ("kernel", "initrd", "root.squashfs"):
        (folder / part).write_bytes(b"x")
    sizes = {"kernel": 1, "initrd": 1, "root.squashfs": 1}
    (folder / "image.json").write_text(json.dumps({"digest": "d1", "size_bytes": sizes}))
    return folder


def test_the_key_depends_on_all_that_makes_the_image() -> None:
    keys = {
        cache_key(PACKAGES, Recipe(), INGREDIENTS),
        cache_key((PACKAGES[0], replace(PACKAGES[1], version="3")), Recipe(), INGREDIENTS),
        cache_key((PACKAGES[0], replace(PACKAGES[1], sha256="cc")), Recipe(), INGREDIENTS),
        cache_key(PACKAGES, replace(Recipe(), programs=()), INGREDIENTS),
        cache_key(PACKAGES, Recipe(), {"guest-init.sh": b"#!/bin/ash\n"}),
        cache_key(PACKAGES, Recipe(), {"other.sh": b"#!/bin/sh\n"}),
    }
    assert len(keys) == 6


def test_the_key_does_not_depend_on_the_order_of_packages() -> None:
    assert cache_key(PACKAGES, Recipe(), INGREDIENTS) == cache_key(PACKAGES[::-1], Recipe(), INGREDIENTS)


def test_a_complete_image_is_used_as_it_is(cached: Path, tmp_path: Path) -> None:
    said: list[str] = []
    image = build_image(tmp_path, progress=said.append)
    assert (image.kernel, image.root, image.digest) == (cached / "kernel", cached / "root.squashfs", "d1")
    assert said == []


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"digest": "d1", "size_bytes": {"kernel": 1}}'])
def test_an_image_whose_record_is_broken_is_not_used(cached: Path, tmp_path: Path, record: str) -> None:
    (cached / "image.json").write_text(record)
    assert find_image(tmp_path) is None


def test_an_image_that_was_cut_short_is_not_used(cached: Path, tmp_path: Path) -> None:
    (cached / "root.squashfs").write_bytes(b"")
    assert find_image(tmp_path) is None


def test_an_image_of_other_packages_is_not_used(cached: Path, tmp_path: Path) -> None:
    assert find_image(tmp_path, recipe=replace(Recipe(), packages=("busybox-static",))) is None


@pytest.mark.parametrize("record", ["", "[]", '{"packages": 1}', "\x00"])
def test_a_broken_choice_of_packages_is_no_choice(cached: Path, tmp_path: Path, record: str) -> None:
    (tmp_path / "image" / "packages.json").write_text(record)
    assert find_image(tmp_path) is None


def test_an_empty_cache_has_no_image(tmp_path: Path) -> None:
    assert find_image(tmp_path) is None


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("")
    with pytest.raises(CacheUnusableError, match=r"image.* name another directory in REMUSLIKE_CACHE"):
        build_image(tmp_path)


def test_the_second_builder_is_told_that_it_waits(tmp_path: Path) -> None:
    said: list[str] = []
    with (tmp_path / "lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)

        def end_the_first(line: str) -> None:
            said.append(line)
            fcntl.flock(first, fcntl.LOCK_UN)

        with build._locked(tmp_path / "lock", end_the_first), pytest.raises(BlockingIOError):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert said == ["waiting for another build to end"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("REMUSLIKE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_directory() == Path("/home/somebody/.cache/remuslike")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_cache_directory() == Path("/var/cache/remuslike")
    monkeypatch.setenv("REMUSLIKE_CACHE", "/srv/cache")
    assert default_cache_directory() == Path("/srv/cache")


def test_every_file_of_the_recipe_is_there() -> None:
    recipe = Recipe()
    named = {recipe.initramfs_init, *(source for _, source, _ in recipe.guest_files)}
    assert named == {path.name for path in GUEST_DIRECTORY.iterdir()}


def test_only_the_newest_images_are_kept(tmp_path: Path) -> None:
    for number in range(build.IMAGES_KEPT + 2):
        record = tmp_path / f"key{number}" / "image.json"
        record.parent.mkdir()
        record.touch()
        os.utime(record, (number, number))
    (tmp_path / "packages").mkdir()

    build._prune(tmp_path)

    kept = [f"key{number}" for number in range(2, build.IMAGES_KEPT + 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*kept, "packages"]
