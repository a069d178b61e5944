"""Picks out of the unpacked packages what the guest needs: its root folder and its initramfs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, normpath

from remuslike.image import cpio
from remuslike.image.elf import dynamic_links, is_elf, module_information
from remuslike.image.errors import PackageContentError
from remuslike.image.modules import load_order, module_name, parse_built_in
from remuslike.image.recipe import EPOCH_SECONDS, GUEST_DIRECTORY, Recipe
from remuslike.image.tools import run

LIBRARY_DIRECTORIES = ("usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64")
"""Where Debian's loader looks by itself (ld.so(8)), with the links of the merged /usr resolved."""

BUSYBOX = "usr/bin/busybox"

MERGED = ("bin", "lib", "lib64", "sbin")
"""Folders that are links into /usr on an installed system; Debian 12 packages still put files there."""


def unpack(debs: Iterable[Path], directory: Path) -> None:
    """Unpacks packages over each other into `directory`, with a merged /usr as on an installed system."""
    for deb in debs:
        run(["dpkg-deb", "--extract", deb, directory])
    for name in MERGED:
        _merge(directory / name, directory / "usr" / name)
    _make_links_relative(directory)


def _merge(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink() and target.is_dir():
        for path in source.iterdir():
            _merge(path, target / path.name)
    elif os.path.lexists(source):
        source.rename(target)


def _make_links_relative(directory: Path) -> None:
    # An absolute link, such as the loader's, would lead out of the folder into this machine's own files.
    for path in directory.rglob("*"):
        if path.is_symlink() and (target := str(path.readlink())).startswith("/"):
            path.unlink()
            path.symlink_to(os.path.relpath(directory / _merged(target), path.parent))


@dataclass(frozen=True, slots=True)
class Kernel:
    """The kernel package: its image, and its modules by name."""

    image: Path
    modules: dict[str, Path]
    depends: dict[str, tuple[str, ...]]
    built_in: frozenset[str]

    def load_order(self, wanted: Iterable[str]) -> tuple[str, ...]:
        return load_order(wanted, self.depends, self.built_in)


def read_kernel(unpacked: Path) -> Kernel:
    """Finds the kernel among the unpacked packages. Raises PackageContentError if there isn't exactly one."""
    images = sorted(unpacked.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise PackageContentError(f"the kernel package has {len(images)} kernels in /boot; one was expected")
    release = images[0].name.removeprefix("vmlinuz-")
    folder = unpacked / "usr/lib/modules" / release
    modules = {module_name(path.name): path for path in sorted(folder.rglob("*.ko"))}
    if not modules:
        raise PackageContentError(f"the kernel package has no uncompressed modules for {release}")
    return Kernel(
        image=images[0],
        modules=modules,
        depends={
            name: module_information(path.read_bytes(), path.name).depends for name, path in modules.items()
        },
        built_in=parse_built_in((folder / "modules.builtin").read_text()),
    )


def library_closure(unpacked: Path, programs: Iterable[str]) -> tuple[str, ...]:
    """Paths of `programs`, of all libraries that they need, and of their loader, sorted.

    Raises PackageContentError for a program or library that no package has.
    """
    found: set[str] = set()
    wanted = list(programs)
    while wanted:
        path = wanted.pop()
        if path in found:
            continue
        found.add(path)
        data = _content(unpacked, path)
        if not is_elf(data):
            continue
        links = dynamic_links(data, path)
        if links.interpreter is not None:
            wanted.append(_merged(links.interpreter))
        folders = [*(_expand(folder, path) for folder in links.search_path), *LIBRARY_DIRECTORIES]
        for library in links.needed:
            candidates = (f"{folder}/{library}" for folder in folders)
            located = next((name for name in candidates if (unpacked / name).is_file()), None)
            if located is None:
                raise PackageContentError(
                    f"{path} needs {library}, which no package has; name its package in the recipe"
                )
            wanted.append(located)
    return tuple(sorted(found))


def _content(unpacked: Path, path: str) -> bytes:
    try:
        return (unpacked / path).read_bytes()
    except OSError as error:
        raise PackageContentError(f"the packages have no {path}: {error.strerror}") from None


def _merged(path: str) -> str:
    relative = path.lstrip("/")
    return f"usr/{relative}" if relative.partition("/")[0] in MERGED else relative


def _expand(folder: str, path: str) -> str:
    return _merged(normpath(folder.replace("$ORIGIN", f"/{dirname(path)}")))


def make_root(unpacked: Path, kernel: Kernel, recipe: Recipe, root: Path) -> None:
    """Fills the folder that becomes the guest's read-only root image."""
    for name in recipe.directories:
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib/modules", "lib64", "sbin"):
        (root / "usr" / name).mkdir(parents=True)
    for name, target in recipe.links:
        (root / name).symlink_to(target)

    for path in library_closure(unpacked, (BUSYBOX, *recipe.programs, *recipe.loaded_at_run_time)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(unpacked / path, root / path)
    for applet in run([unpacked / BUSYBOX, "--list"]).split():
        if not (root / "usr/bin" / applet).exists():
            (root / "usr/bin" / applet).symlink_to("busybox")

    order = kernel.load_order(recipe.root_modules)
    # The initramfs has loaded its own before; a module can't be loaded twice.
    order = tuple(name for name in order if name not in kernel.load_order(recipe.initramfs_modules))
    for name in order:
        shutil.copy(kernel.modules[name], root / f"usr/lib/modules/{name}.ko")
    (root / "usr/lib/modules/modules.order").write_text("".join(f"{name}.ko\n" for name in order))

    for path, source, mode in recipe.guest_files:
        shutil.copy(GUEST_DIRECTORY / source, root / path)
        (root / path).chmod(mode)
    _ignore_umask(root)


def _ignore_umask(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def make_initramfs(unpacked: Path, kernel: Kernel, recipe: Recipe) -> bytes:
    """The initramfs: busybox, the modules that reach the root image, and the script that mounts it."""
    order = kernel.load_order(recipe.initramfs_modules)
    entries = [
        cpio.folder(name) for name in ("bin", "changes", "dev", "lower", "modules", "proc", "root", "sys")
    ]
    entries.append(cpio.file("init", (GUEST_DIRECTORY / recipe.initramfs_init).read_bytes(), 0o755))
    entries.append(cpio.file("bin/busybox", _content(unpacked, BUSYBOX), 0o755))
    entries += [cpio.link(f"bin/{applet}", "busybox") for applet in recipe.initramfs_applets]
    entries.append(cpio.file("modules.order", "".join(f"{name}.ko\n" for name in order).encode()))
    entries += [cpio.file(f"modules/{name}.ko", kernel.modules[name].read_bytes()) for name in order]
    return cpio.archive(entries, EPOCH_SECONDS)


def make_squashfs(root: Path, output: Path) -> None:
    """Packs `root` uncompressed, so that a guest under emulation spends nothing on decompression."""
    run(
        [
            "mksquashfs",
            root,
            output,
            *("-all-root", "-no-xattrs", "-no-exports", "-no-progress", "-quiet"),
            *("-noInodeCompression", "-noIdTableCompression", "-noDataCompression", "-noFragmentCompression"),
        ],
        # Sets the creation time, and makes it the latest that any file has: all of them were copied just now.
        environment={"SOURCE_DATE_EPOCH": str(EPOCH_SECONDS)},
    )
