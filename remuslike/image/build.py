"""Builds the guest image and keeps it in a cache.

CACHE/image/lock            held while somebody builds
CACHE/image/packages.json   the chosen packages; the image is a function of them, the recipe and guest/
CACHE/image/packages/       the packages, SHA256.deb
CACHE/image/lists/          apt's package lists, if the system's didn't do
CACHE/image/KEY/            kernel, initrd, root.squashfs, image.json; appears whole, by a rename
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from remuslike.image.apt import Archive, deb_path
from remuslike.image.errors import CacheUnusableError, NoSpaceError, PackageError
from remuslike.image.packages import Package, closure
from remuslike.image.recipe import GUEST_DIRECTORY, Recipe
from remuslike.image.tree import make_initramfs, make_root, make_squashfs, read_kernel, unpack

Progress = Callable[[str], None]
"""Is told, in one line each, what a build is about to do."""

WORK_FACTOR = 7
"""Room that a build takes while it works, in sizes of its packages: unpacked, picked out and packed again."""

IMAGES_KEPT = 4
"""The newest images stay: other versions of this project may share the cache and still run theirs."""

_INGREDIENTS = ("cpio.py", "elf.py", "modules.py", "recipe.py", "tree.py")
_PARTS = ("kernel", "initrd", "root.squashfs")
_LEFTOVERS = ("building-*", "packages/incoming-*")


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A bootable guest: `root` is a squashfs that must be its first virtio disk, read-only.

    `digest` (SHA-256, hexadecimal) is that of the files' contents: hosts that have the same one boot the
    same guest.
    """

    kernel: Path
    initrd: Path
    root: Path
    digest: str


def default_cache_directory() -> Path:
    """`$REMUSLIKE_CACHE`, or `remuslike` in the user's cache directory (XDG Base Directory Specification)."""
    if chosen := os.environ.get("REMUSLIKE_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "remuslike"


def build_image(
    cache_directory: Path | None = None,
    *,
    refresh: bool = False,
    progress: Progress = lambda line: None,
    recipe: Recipe | None = None,
) -> GuestImage:
    """The guest image, built if the cache doesn't have it; blocks while another process builds it.

    What is in the cache is used without a look at the network. `refresh` chooses the packages afresh from the
    newest package lists. Raises an ImageError.
    """
    directory = (cache_directory or default_cache_directory()).absolute() / "image"
    chosen_recipe = recipe or Recipe()
    try:
        if not refresh and (image := find_image(cache_directory, recipe=chosen_recipe)):
            return image
        (directory / "packages").mkdir(parents=True, exist_ok=True)
        with _locked(directory / "lock", progress):
            if not refresh and (image := find_image(cache_directory, recipe=chosen_recipe)):
                return image
            return _build(directory, chosen_recipe, refresh, progress)
    except OSError as error:
        raise CacheUnusableError(str(error.filename or directory), error.strerror or str(error)) from None


def find_image(cache_directory: Path | None = None, *, recipe: Recipe | None = None) -> GuestImage | None:
    """The image if the cache has it, complete and made from today's recipe."""
    directory = (cache_directory or default_cache_directory()).absolute() / "image"
    chosen_recipe = recipe or Recipe()
    packages = _read_packages(directory, chosen_recipe)
    if packages is None:
        return None
    return _read_image(directory / cache_key(packages, chosen_recipe, _ingredients()))


def cache_key(packages: Sequence[Package], recipe: Recipe, ingredients: Mapping[str, bytes]) -> str:
    """Digest of all that decides the image's bytes (hexadecimal, 32 digits)."""
    digest = hashlib.sha256()
    for package in sorted(packages):
        digest.update(f"{package.name} {package.version} {package.sha256}\n".encode())
    fields = asdict(recipe) | {"excluded": sorted(recipe.excluded)}
    digest.update(json.dumps(fields, sort_keys=True).encode())
    for name, content in sorted(ingredients.items()):
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:32]


def _ingredients() -> dict[str, bytes]:
    sources = [Path(__file__).parent / name for name in _INGREDIENTS]
    return {path.name: path.read_bytes() for path in (*sources, *GUEST_DIRECTORY.iterdir()) if path.is_file()}


def _build(directory: Path, recipe: Recipe, refresh: bool, progress: Progress) -> GuestImage:
    for pattern in _LEFTOVERS:
        for path in directory.glob(pattern):
            shutil.rmtree(path)
    packages = None if refresh else _read_packages(directory, recipe)
    if packages is None:
        packages = _choose_and_download(directory, recipe, refresh, progress)
    else:
        _check_space(directory, packages)
        _download(Archive(), packages, directory, progress)

    folder = directory / cache_key(packages, recipe, _ingredients())
    image = _read_image(folder) or _assemble(directory, folder, packages, recipe, progress)
    _write_packages(directory, recipe, packages)
    _prune(directory)
    return image


def _prune(directory: Path) -> None:
    records = sorted(directory.glob("*/image.json"), key=lambda path: path.stat().st_mtime_ns)
    for record in records[:-IMAGES_KEPT]:
        shutil.rmtree(record.parent)


def _choose_and_download(
    directory: Path, recipe: Recipe, refresh: bool, progress: Progress
) -> tuple[Package, ...]:
    # The system's lists save a download, but they may be missing, or so old that the archive has moved on.
    if not refresh:
        try:
            return _choose(Archive(), directory, recipe, progress)
        except PackageError:
            progress("the system's package lists are missing or out of date")
    archive = Archive(directory / "lists")
    progress("fetching package lists")
    archive.update()
    return _choose(archive, directory, recipe, progress)


def _choose(archive: Archive, directory: Path, recipe: Recipe, progress: Progress) -> tuple[Package, ...]:
    progress("choosing packages")
    packages = closure((recipe.kernel_package, *recipe.packages), recipe.excluded, archive.show)
    _check_space(directory, packages)
    _download(archive, packages, directory, progress)
    return packages


def _download(archive: Archive, packages: Sequence[Package], directory: Path, progress: Progress) -> None:
    debs = directory / "packages"
    missing = [package for package in packages if not deb_path(debs, package).exists()]
    if missing:
        size_bytes = sum(package.size_bytes for package in missing)
        progress(f"downloading {len(missing)} packages, {size_bytes >> 20} MiB")
        archive.download(missing, debs)


def _check_space(directory: Path, packages: Sequence[Package]) -> None:
    needed_bytes = WORK_FACTOR * sum(package.size_bytes for package in packages)
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise NoSpaceError(str(directory), needed_bytes, free_bytes)


def _assemble(
    directory: Path, folder: Path, packages: Sequence[Package], recipe: Recipe, progress: Progress
) -> GuestImage:
    with tempfile.TemporaryDirectory(prefix="building-", dir=directory) as name:
        work = Path(name)
        unpacked, root, made = work / "unpacked", work / "root", work / "made"
        for path in (unpacked, root, made):
            path.mkdir()
        progress(f"unpacking {len(packages)} packages")
        unpack((deb_path(directory / "packages", package) for package in packages), unpacked)
        progress("making initramfs and root image")
        kernel = read_kernel(unpacked)
        shutil.copyfile(kernel.image, made / "kernel")
        (made / "initrd").write_bytes(make_initramfs(unpacked, kernel, recipe))
        make_root(unpacked, kernel, recipe, root)
        make_squashfs(root, made / "root.squashfs")
        digest = _digest(made)
        record = {
            "digest": digest,
            "size_bytes": {part: (made / part).stat().st_size for part in _PARTS},
            "packages": [f"{package.name} {package.version}" for package in packages],
        }
        (made / "image.json").write_text(json.dumps(record, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
        return _image(folder, digest)


def _read_image(folder: Path) -> GuestImage | None:
    try:
        record = json.loads((folder / "image.json").read_text())
        complete = all((folder / part).stat().st_size == record["size_bytes"][part] for part in _PARTS)
        return _image(folder, str(record["digest"])) if complete else None
    except (OSError, ValueError, LookupError, TypeError):
        # Whatever is wrong with it, it is built again.
        return None


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for part in _PARTS:
        with (folder / part).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _image(folder: Path, digest: str) -> GuestImage:
    kernel, initrd, root = (folder / part for part in _PARTS)
    return GuestImage(kernel=kernel, initrd=initrd, root=root, digest=digest)


def _read_packages(directory: Path, recipe: Recipe) -> tuple[Package, ...] | None:
    try:
        record = json.loads((directory / "packages.json").read_text())
        if record["wanted"] != _wanted(recipe):
            return None
        return tuple(
            Package(fields["name"], fields["version"], fields["sha256"], int(fields["size_bytes"]))
            for fields in record["packages"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        # A record that can't be read is made again; it is only a choice that was remembered.
        return None


def _write_packages(directory: Path, recipe: Recipe, packages: Sequence[Package]) -> None:
    record = {"wanted": _wanted(recipe), "packages": [asdict(package) for package in packages]}
    temporary = directory / "packages.json.new"
    temporary.write_text(json.dumps(record, indent=1))
    temporary.replace(directory / "packages.json")


def _wanted(recipe: Recipe) -> dict[str, list[str]]:
    return {"names": [recipe.kernel_package, *recipe.packages], "excluded": sorted(recipe.excluded)}


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build to end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
