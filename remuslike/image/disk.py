"""Makes data disks: raw files with an empty ext4 file system, without a mount or a loop device."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from uuid import UUID, uuid5

from remuslike.image.errors import DataDiskError
from remuslike.image.recipe import EPOCH_SECONDS
from remuslike.image.tools import run

SIZE_MIN_MIB = 8
"""Below it mke2fs leaves the journal out, and a guest that crashed would need a repair."""

SIZE_MAX_MIB = 16 << 20
"""16 TiB, the limit of ext4 without 64-bit block numbers."""

LABEL_LIMIT_BYTES = 16
"""The field of the superblock (kernel fs/ext4/ext4.h, s_volume_name)."""

_NAMESPACE = UUID("b7c6f0b2-6d3a-5d5e-9f3b-0d0d6c1a7a52")


def make_data_disk(path: Path, size_mib: int, *, label: str = "data", seed: str = "remuslike") -> None:
    """Makes `path` a sparse raw file of `size_mib` MiB with ext4.

    Equal arguments give equal bytes: two hosts make the same disk from the same `seed`. Raises DataDiskError,
    also when `path` exists: what it holds may be somebody's data.
    """
    if not SIZE_MIN_MIB <= size_mib <= SIZE_MAX_MIB:
        raise DataDiskError(f"size_mib is {size_mib}; give {SIZE_MIN_MIB} to {SIZE_MAX_MIB}")
    if len(label.encode()) > LABEL_LIMIT_BYTES or not label.isprintable():
        raise DataDiskError(f"label is {label!r}; give at most {LABEL_LIMIT_BYTES} printable bytes")
    identity = uuid5(_NAMESPACE, seed)
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}-", dir=path.parent) as made:
            os.truncate(made.name, size_mib << 20)
            run(
                _mke2fs(Path(made.name), label, identity),
                environment={"E2FSPROGS_FAKE_TIME": str(EPOCH_SECONDS)},
            )
            Path(made.name).chmod(0o644)
            # Unlike a rename, a link refuses to replace a file that came into being meanwhile.
            os.link(made.name, path)
    except FileExistsError:
        raise DataDiskError(f"{path} exists and may hold data; remove it or give another path") from None
    except OSError as error:
        raise DataDiskError(f"{path} can't be made: {error.strerror}") from None


def _mke2fs(path: Path, label: str, identity: UUID) -> list[str | Path]:
    # Initialised lazily, the inode tables would be written by the guest's kernel for minutes after the mount.
    extended = f"hash_seed={identity},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    return [
        *("mke2fs", "-q", "-F", "-t", "ext4"),
        # For a small disk mke2fs would choose 1 KiB, which makes four writes of one page.
        *("-b", "4096"),
        *("-m", "0", "-L", label, "-U", str(identity), "-E", extended, path),
    ]
