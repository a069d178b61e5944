"""What is picked out of unpacked packages, and that nothing of this machine gets among it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from image_fakes import header, module, program_that_needs

from remuslike.image.errors import PackageContentError
from remuslike.image.recipe import Recipe
from remuslike.image.tree import library_closure, make_initramfs, make_squashfs, read_kernel, unpack

LIBRARIES = "usr/lib/x86_64-linux-gnu"

needs_mksquashfs = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="mksquashfs isn't installed")


def put(root: Path, path: str, content: bytes = b"") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """An unpacked program with a library of its own in a folder that only it names."""
    put(tmp_path, "usr/bin/program", program_that_needs(["libone.so"], "$ORIGIN/../lib/private:/nowhere"))
    put(tmp_path, "usr/lib/private/libone.so", program_that_needs(["libc.so"]))
    put(tmp_path, f"{LIBRARIES}/libc.so", header())
    put(tmp_path, "usr/lib64/ld.so", header())
    return tmp_path


@pytest.fixture
def kernel_package(tmp_path: Path) -> Path:
    put(tmp_path, "boot/vmlinuz-6.1", b"kernel")
    folder = "usr/lib/modules/6.1"
    put(tmp_path, f"{folder}/modules.builtin", b"kernel/fs/squashfs.ko\nkernel/fs/overlay.ko\n")
    needed_by = {"virtio": "", "virtio_pci": "virtio", "virtio-mmio": "virtio", "virtio_blk": ""}
    for name, needed in needed_by.items():
        put(tmp_path, f"{folder}/kernel/{name}.ko", module(f"depends={needed}\0".encode()))
    put(tmp_path, "usr/bin/busybox", b"busybox")
    return tmp_path


def test_the_closure_follows_libraries_folders_and_loader(packages: Path) -> None:
    assert library_closure(packages, ["usr/bin/program"]) == (
        "usr/bin/program",
        "usr/lib/private/libone.so",
        f"{LIBRARIES}/libc.so",
        "usr/lib64/ld.so",
    )


def test_a_script_is_taken_as_it_is(packages: Path) -> None:
    put(packages, "usr/bin/script", b"#!/bin/sh\n")
    assert library_closure(packages, ["usr/bin/script"]) == ("usr/bin/script",)


def test_a_missing_library_is_named_with_who_needs_it(packages: Path) -> None:
    (packages / LIBRARIES / "libc.so").unlink()
    with pytest.raises(PackageContentError, match=r"usr/lib/private/libone\.so needs libc\.so"):
        library_closure(packages, ["usr/bin/program"])


def test_a_missing_program_is_named(packages: Path) -> None:
    with pytest.raises(PackageContentError, match="no usr/bin/other: No such file"):
        library_closure(packages, ["usr/bin/other"])


def test_unpacked_packages_have_a_merged_usr_and_no_link_that_leads_out(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "unpacked"
    control = b"Package: a\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: a\n"
    put(source, "DEBIAN/control", control)
    put(source, "lib/x86_64-linux-gnu/ld.so", b"of the package")
    put(source, f"{LIBRARIES}/libother.so")
    (source / "lib64").mkdir()
    (source / "lib64/ld.so").symlink_to("/lib/x86_64-linux-gnu/ld.so")
    subprocess.run(["dpkg-deb", "--build", source, tmp_path / "a.deb"], check=True, capture_output=True)
    target.mkdir()

    unpack([tmp_path / "a.deb"], target)

    assert sorted(path.name for path in (target / LIBRARIES).iterdir()) == ["ld.so", "libother.so"]
    assert str((target / "usr/lib64/ld.so").readlink()) == "../lib/x86_64-linux-gnu/ld.so"
    assert (target / "usr/lib64/ld.so").read_bytes() == b"of the package"


def test_the_kernel_and_its_modules(kernel_package: Path) -> None:
    kernel = read_kernel(kernel_package)
    assert kernel.image.read_bytes() == b"kernel"
    assert kernel.load_order(["virtio_pci", "virtio_mmio", "overlay"]) == (
        "virtio",
        "virtio_pci",
        "virtio_mmio",
    )


def test_a_second_kernel_is_refused(kernel_package: Path) -> None:
    put(kernel_package, "boot/vmlinuz-6.2")
    with pytest.raises(PackageContentError, match="has 2 kernels"):
        read_kernel(kernel_package)


def test_a_kernel_without_modules_is_refused(kernel_package: Path) -> None:
    shutil.rmtree(kernel_package / "usr/lib/modules/6.1/kernel")
    with pytest.raises(PackageContentError, match=r"no uncompressed modules for 6\.1"):
        read_kernel(kernel_package)


def test_the_initramfs_loads_modules_in_order(kernel_package: Path) -> None:
    data = make_initramfs(kernel_package, read_kernel(kernel_package), Recipe())
    assert b"virtio.ko\nvirtio_pci.ko\nvirtio_mmio.ko\nvirtio_blk.ko\n" in data
    assert data == make_initramfs(kernel_package, read_kernel(kernel_package), Recipe())


@needs_mksquashfs
def test_equal_folders_make_equal_images(tmp_path: Path) -> None:
    images = []
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        root = tmp_path / f"root{number}"
        for name in names:
            put(root, f"usr/{name}", name.encode())
            os.utime(root / "usr" / name, (1_800_000_000 + number, 1_800_000_000 + number))
        make_squashfs(root, tmp_path / f"image{number}")
        images.append((tmp_path / f"image{number}").read_bytes())
    assert images[0] == images[1]
