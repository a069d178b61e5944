"""What the lab boots: its initramfs, its cache, and what is downloaded when."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from image_fakes import module

from remuslike.image.apt import deb_path
from remuslike.image.errors import (
    CacheUnusableError,
    NoSpaceError,
    PackageContentError,
    PackageDownloadError,
    PackageNotFoundError,
)
from remuslike.image.packages import Package
from remuslike.image.tree import Kernel
from remuslike.lab import image
from remuslike.lab.image import APPLETS, MODULES, LabImage, build_lab_image, image_key, make_lab_initramfs

INIT = Path(image.__file__).parent / "guest" / "init.sh"


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """A kernel whose modules are files with their names; all need `base`, and the last is built in."""
    modules = {}
    for name in (*MODULES[:-1], "base"):
        modules[name] = tmp_path / f"{name}.ko"
        modules[name].write_bytes(f"module {name}".encode())
    depends = {name: () if name == "base" else ("base",) for name in modules}
    return Kernel(tmp_path / "vmlinuz", modules, depends, frozenset({MODULES[-1]}))


def test_the_initramfs_has_busybox_the_modules_in_order_and_the_init(kernel: Kernel) -> None:
    archive = make_lab_initramfs(b"BUSYBOX", kernel, b"#!INIT")
    for content in (b"bin/busybox\0", b"BUSYBOX", b"init\0", b"#!INIT", b"modules/ifb.ko\0", b"module ifb"):
        assert content in archive
    order = archive[archive.index(b"modules.order\0") :].split(b"base.ko\n", 1)[1]
    assert order.startswith(b"".join(f"{name}.ko\n".encode() for name in MODULES[:-1]))


def test_a_kernel_without_a_module_is_refused_by_name(kernel: Kernel) -> None:
    del kernel.depends["sch_plug"]
    with pytest.raises(PackageContentError, match="sch_plug"):
        make_lab_initramfs(b"", kernel, b"")


def test_every_applet_that_the_init_calls_is_linked() -> None:
    script = INIT.read_text()
    called = {
        word
        for line in script.splitlines()
        if not line.lstrip().startswith("#")
        for word in line.replace("$(", " ").split()
    }
    assert set(APPLETS) <= called | {"sh"}


def test_the_key_follows_the_init(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_key(b"a")
    assert before == image_key(b"a") != image_key(b"b")
    monkeypatch.setattr(image, "MODULES", ("ifb",))
    assert image_key(b"a") != before


class FakeArchive:
    """Debian's archive: what it has, and a list of what was asked of it. `stale` lists fail to download."""

    KERNEL = b"kernel package"
    BUSYBOX = b"busybox package"
    asked: list[str]
    stale: bool
    available: bool
    size_bytes: int

    def __init__(self, lists: Path | None = None) -> None:
        self.lists = lists

    def show(self, names: Sequence[str]) -> Mapping[str, Package]:
        self.asked.append("show")
        contents = {"linux-image-amd64": self.KERNEL, "busybox-static": self.BUSYBOX}
        return {
            name: Package(name, "1", hashlib.sha256(contents[name]).hexdigest(), self.size_bytes)
            for name in names
            if name in contents and self.available
        }

    def update(self) -> None:
        self.asked.append("update")

    def download(self, packages: Iterable[Package], directory: Path) -> None:
        self.asked.append("download")
        if self.stale and self.lists is None:
            raise PackageDownloadError("linux-image-amd64", "404")
        for package in packages:
            deb_path(directory, package).write_text(package.name)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> type[FakeArchive]:
    """In place of apt and dpkg: the kernel package holds one of each module."""

    def unpack(debs: Iterable[Path], directory: Path) -> None:
        assert {deb.read_text() for deb in debs} == {"linux-image-amd64", "busybox-static"}
        folder = directory / "usr/lib/modules/6.1"
        folder.mkdir(parents=True)
        for name in MODULES:
            (folder / f"{name}.ko").write_bytes(module(f"name={name}\0depends=\0".encode()))
        (folder / "modules.builtin").write_text("")
        for path in ("boot/vmlinuz-6.1", "usr/bin/busybox"):
            (directory / path).parent.mkdir(parents=True)
            (directory / path).write_text(path)

    class Archive(FakeArchive):
        asked: list[str] = []  # noqa: RUF012
        stale = False
        available = True
        size_bytes = 1000

    monkeypatch.setattr(image, "Archive", Archive)
    monkeypatch.setattr(image, "unpack", unpack)
    return Archive


def test_it_is_built_once(archive: type[FakeArchive], tmp_path: Path) -> None:
    said: list[str] = []
    built = build_lab_image(tmp_path, progress=said.append)
    assert built.kernel.read_text() == "boot/vmlinuz-6.1"
    assert INIT.read_bytes() in built.initrd.read_bytes()
    assert archive.asked == ["show", "download"]
    assert [line.split()[0] for line in said] == ["downloading", "unpacking"]
    assert build_lab_image(tmp_path, progress=said.append) == built
    assert len(archive.asked) == len(said) == 2
    assert not list(tmp_path.glob("lab/building-*"))


def test_one_that_was_cut_short_is_built_again_from_the_packages_at_hand(
    archive: type[FakeArchive], tmp_path: Path
) -> None:
    built = build_lab_image(tmp_path)
    built.initrd.write_bytes(b"")
    assert build_lab_image(tmp_path) == built
    assert built.initrd.stat().st_size > 0
    assert archive.asked == ["show", "download", "show"]


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"size_bytes": 1}', "\0"])
def test_a_broken_record_is_no_record(archive: type[FakeArchive], tmp_path: Path, record: str) -> None:
    built = build_lab_image(tmp_path)
    (built.kernel.parent / "lab.json").write_text(record)
    assert build_lab_image(tmp_path) == built
    assert json.loads((built.kernel.parent / "lab.json").read_text())["packages"] == [
        "busybox-static 1",
        "linux-image-amd64 1",
    ]


def test_lists_that_are_out_of_date_are_fetched(archive: type[FakeArchive], tmp_path: Path) -> None:
    archive.stale = True
    assert isinstance(build_lab_image(tmp_path), LabImage)
    assert archive.asked == ["show", "download", "update", "show", "download"]


def test_refreshing_takes_the_newest_and_drops_the_old_package(
    archive: type[FakeArchive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_lab_image(tmp_path)
    monkeypatch.setattr(archive, "KERNEL", b"newer kernel package")
    build_lab_image(tmp_path, refresh=True)
    assert archive.asked[2:] == ["update", "show", "download"]
    assert len(list(tmp_path.glob("lab/packages/*.deb"))) == 2


def test_an_archive_without_the_kernel_is_an_error(archive: type[FakeArchive], tmp_path: Path) -> None:
    archive.available = False
    with pytest.raises(PackageNotFoundError, match="linux-image-amd64"):
        build_lab_image(tmp_path)


def test_too_little_room_is_an_error(archive: type[FakeArchive], tmp_path: Path) -> None:
    archive.size_bytes = 1 << 60
    with pytest.raises(NoSpaceError, match="MiB are needed"):
        build_lab_image(tmp_path)


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("")
    with pytest.raises(CacheUnusableError, match=r"lab.* name another directory in REMUSLIKE_CACHE"):
        build_lab_image(tmp_path)


def test_only_the_newest_stay(archive: type[FakeArchive], tmp_path: Path) -> None:
    for number in range(image.IMAGES_KEPT + 1):
        old = tmp_path / "lab" / f"old{number}"
        old.mkdir(parents=True)
        (old / "lab.json").write_text("")
    build_lab_image(tmp_path)
    assert len(list(tmp_path.glob("lab/*/lab.json"))) == image.IMAGES_KEPT
