"""Builds what the lab boots, Debian's kernel and an initramfs, and keeps it in the cache.

CACHE/lab/lock         held while somebody builds
CACHE/lab/packages/    the packages, SHA256.deb
CACHE/lab/KEY/         kernel, initrd, lab.json; appears whole, by a rename
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from remuslike.image import cpio, default_cache_directory
from remuslike.image.apt import Archive, deb_path
from remuslike.image.errors import CacheUnusableError, NoSpaceError, PackageError
from remuslike.image.packages import Package, closure
from remuslike.image.recipe import EPOCH_SECONDS, Recipe
from remuslike.image.tree import BUSYBOX, Kernel, read_kernel, unpack

PACKAGES = ("linux-image-amd64", "busybox-static")

MODULES = (
    # what the lab itself stands on
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"),
    # holding and redirecting frames
    *("ifb", "sch_plug", "sch_ingress", "sch_netem", "act_mirred", "cls_bpf", "cls_matchall", "cls_u32"),
    # the networks of tests
    *("bridge", "8021q", "dummy", "macvlan", "tun", "veth", "vxlan", "af_packet"),
    # disks; the first is looked for by name, so that no other says that it needs it
    *("crc32c_generic", "nbd", "loop", "ext4", "xfs"),
)
"""Loaded at boot. There are no others in the lab: its /lib/modules is the host's."""

APPLETS = "cp echo hostname insmod ip ln ls mkdir mount poweroff sh sleep switch_root".split()
"""What guest/init.sh calls."""

WORK_FACTOR = 8
"""Room that a build takes while it works, in sizes of its packages: a kernel's modules shrink that much."""

IMAGES_KEPT = 3
"""The newest images stay: other versions of this project may share the cache and boot theirs."""

Progress = Callable[[str], None]

_INIT = Path(__file__).parent / "guest" / "init.sh"
_PARTS = ("kernel", "initrd")


@dataclass(frozen=True, slots=True)
class LabImage:
    """What QEMU boots directly (-kernel, -initrd)."""

    kernel: Path
    initrd: Path


def build_lab_image(
    cache_directory: Path | None = None, *, refresh: bool = False, progress: Progress = lambda line: None
) -> LabImage:
    """The lab's image, built if the cache doesn't have it; blocks while another process builds it.

    What is in the cache is used without a look at the network; `refresh` takes the archive's newest kernel.
    Raises an ImageError.
    """
    directory = (cache_directory or default_cache_directory()).absolute() / "lab"
    folder = directory / image_key(_INIT.read_bytes())
    try:
        if not refresh and (image := _read(folder)):
            return image
        (directory / "packages").mkdir(parents=True, exist_ok=True)
        with _locked(directory / "lock", progress):
            if not refresh and (image := _read(folder)):
                return image
            _build(directory, folder, refresh, progress)
            return _image(folder)
    except OSError as error:
        raise CacheUnusableError(str(error.filename or directory), error.strerror or str(error)) from None


def image_key(init: bytes) -> str:
    """Digest of all that decides what the lab does, apart from the packages' versions (hexadecimal)."""
    digest = hashlib.sha256(json.dumps([PACKAGES, MODULES, APPLETS]).encode())
    digest.update(init)
    return digest.hexdigest()[:32]


def make_lab_initramfs(busybox: bytes, kernel: Kernel, init: bytes) -> bytes:
    """The initramfs (cpio, newc). Raises PackageContentError for a module that the kernel doesn't have."""
    order = kernel.load_order(MODULES)
    folders = ("bin", "changes", "dev", "lower", "modules", "proc", "root", "sys")
    return cpio.archive(
        [
            *(cpio.folder(name) for name in folders),
            cpio.file("init", init, 0o755),
            cpio.file("bin/busybox", busybox, 0o755),
            *(cpio.link(f"bin/{applet}", "busybox") for applet in APPLETS),
            cpio.file("modules.order", "".join(f"{name}.ko\n" for name in order).encode()),
            *(cpio.file(f"modules/{name}.ko", kernel.modules[name].read_bytes()) for name in order),
        ],
        EPOCH_SECONDS,
    )


def _build(directory: Path, folder: Path, refresh: bool, progress: Progress) -> None:
    for pattern in ("building-*", "packages/incoming-*"):
        for path in directory.glob(pattern):
            shutil.rmtree(path)
    packages = _choose_and_download(directory, refresh, progress)
    with tempfile.TemporaryDirectory(prefix="building-", dir=directory) as name:
        unpacked, made = Path(name) / "unpacked", Path(name) / "made"
        unpacked.mkdir()
        made.mkdir()
        progress("unpacking the lab's kernel")
        unpack((deb_path(directory / "packages", package) for package in packages), unpacked)
        kernel = read_kernel(unpacked)
        shutil.copyfile(kernel.image, made / "kernel")
        busybox = (unpacked / BUSYBOX).read_bytes()
        (made / "initrd").write_bytes(make_lab_initramfs(busybox, kernel, _INIT.read_bytes()))
        record = {
            "size_bytes": {part: (made / part).stat().st_size for part in _PARTS},
            "packages": [f"{package.name} {package.version}" for package in packages],
        }
        (made / "lab.json").write_text(json.dumps(record, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    _prune(directory, packages)


def _choose_and_download(directory: Path, refresh: bool, progress: Progress) -> tuple[Package, ...]:
    # The system's lists save a download, but they may be missing, or so old that the archive has moved on.
    if not refresh:
        try:
            return _download(Archive(), directory, progress)
        except PackageError:
            progress("the system's package lists are missing or out of date")
    with tempfile.TemporaryDirectory(prefix="building-", dir=directory) as name:
        archive = Archive(Path(name) / "lists")
        progress("fetching package lists")
        archive.update()
        return _download(archive, directory, progress)


def _download(archive: Archive, directory: Path, progress: Progress) -> tuple[Package, ...]:
    packages = closure(PACKAGES, Recipe().excluded, archive.show)
    needed_bytes = WORK_FACTOR * sum(package.size_bytes for package in packages)
    if (free_bytes := shutil.disk_usage(directory).free) < needed_bytes:
        raise NoSpaceError(str(directory), needed_bytes, free_bytes)
    debs = directory / "packages"
    if missing := [package for package in packages if not deb_path(debs, package).exists()]:
        size_bytes = sum(package.size_bytes for package in missing)
        progress(f"downloading the lab's kernel, {size_bytes >> 20} MiB")
        archive.download(missing, debs)
    return packages


def _prune(directory: Path, packages: Sequence[Package]) -> None:
    debs = directory / "packages"
    for path in set(debs.glob("*.deb")) - {deb_path(debs, package) for package in packages}:
        path.unlink()
    records = sorted(directory.glob("*/lab.json"), key=lambda path: path.stat().st_mtime_ns)
    for record in records[:-IMAGES_KEPT]:
        shutil.rmtree(record.parent)


def _read(folder: Path) -> LabImage | None:
    try:
        sizes = json.loads((folder / "lab.json").read_text())["size_bytes"]
        complete = all((folder / part).stat().st_size == sizes[part] for part in _PARTS)
    except (OSError, ValueError, LookupError, TypeError):
        # Whatever is wrong with it, it is built again.
        return None
    return _image(folder) if complete else None


def _image(folder: Path) -> LabImage:
    kernel, initrd = (folder / part for part in _PARTS)
    return LabImage(kernel, initrd)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the lab to end")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield
