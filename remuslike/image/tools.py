"""Runs the programs that the builder stands on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from remuslike.image.errors import ToolFailedError, ToolMissingError

OUTPUT_TAIL_BYTES = 600
"""How much of a failed program's output an error repeats: enough for its last messages."""

DEBIAN_PACKAGES: Mapping[str, str] = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
}

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(
    arguments: Sequence[str | Path],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    accepted: frozenset[int] = frozenset({0}),
) -> str:
    """Runs a program to its end and returns what it wrote to its standard output.

    Raises ToolMissingError, and ToolFailedError for a status that isn't `accepted`.
    """
    tool = Path(arguments[0]).name
    try:
        done = subprocess.run(
            arguments,
            cwd=directory,
            # mke2fs is in /sbin, which an ordinary user's PATH lacks.
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}", "LC_ALL": "C"}
            | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise ToolMissingError(tool, DEBIAN_PACKAGES.get(tool, tool)) from None
    output = done.stdout.decode(errors="replace")
    if done.returncode not in accepted:
        said = (done.stderr[-OUTPUT_TAIL_BYTES:] or done.stdout[-OUTPUT_TAIL_BYTES:]).decode(errors="replace")
        raise ToolFailedError(tool, done.returncode, " ".join(said.split()))
    return output
