"""Where a benchmark was run: what one has to know to read its figures, or to repeat them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

_DISTRIBUTION = "remuslike"
_TOOL_LIMIT_S = 20.0  # a first start from a cold disk, on an emulated processor
_EMULATED_CPU = "QEMU TCG"  # model name of QEMU's -cpu max without KVM
_REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9._-]+")

_TOOLS: Mapping[str, Sequence[str]] = {
    "qemu": ("qemu-system-x86_64", "--version"),
    "iperf3": ("iperf3", "--version"),
    "fio": ("fio", "--version"),
    "nbdkit": ("nbdkit", "--version"),
}


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine, its software and this project's commit; what could not be found out is None.

    `emulated`: the processor is interpreted by QEMU, so its times mean nothing by themselves.
    """

    at: str
    commit: str | None
    cpu: str
    processors: int
    memory_mib: int
    emulated: bool
    kernel: str
    python: str
    packages: Mapping[str, str]
    tools: Mapping[str, str | None]


def record_environment() -> Environment:
    """Look around, about 0.1 s."""
    cpu = cpu_model(Path("/proc/cpuinfo").read_text())
    return Environment(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        cpu=cpu,
        processors=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        emulated=_EMULATED_CPU in cpu,
        kernel=f"{platform.release()} {platform.version()}",
        python=platform.python_version(),
        packages=package_versions(requires(_DISTRIBUTION) or ()),
        tools={name: first_line(command) for name, command in _TOOLS.items()},
    )


def cpu_model(cpuinfo: str) -> str:
    """The first processor's name in the text of /proc/cpuinfo, or "unknown"."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else "unknown"


def package_versions(requirements: Sequence[str]) -> dict[str, str]:
    """The versions of this project and of those `requirements` (PEP 508) that are installed."""
    needed = [requirement for requirement in requirements if "extra ==" not in requirement]
    names = [_DISTRIBUTION, *(found[0] for each in needed if (found := _REQUIREMENT_NAME.match(each)))]
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def first_line(command: Sequence[str]) -> str | None:
    """The first line that `command` prints; None if it can't be run, fails or says nothing."""
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TOOL_LIMIT_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(finished.stdout.splitlines()), None)


def _commit() -> str | None:
    """The commit of the checkout from which this runs, with "-dirty" if files differ from it."""
    source = str(Path(__file__).parent)
    # The owner of the checkout need not be who measures (root); git refuses that unless told.
    return first_line(
        ["git", "-c", "safe.directory=*", "-C", source, "describe", "--always", "--dirty", "--abbrev=12"]
    )
