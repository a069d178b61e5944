"""Finds out whether KVM runs the guest here: a /dev/kvm that is there may still run no stock kernel."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from remuslike.image.arguments import READY_LINE, kernel_command_line
from remuslike.image.build import GuestImage, default_cache_directory
from remuslike.image.errors import CacheUnusableError, ToolMissingError
from remuslike.image.tools import DEBIAN_PACKAGES

Accelerator = Literal["kvm", "tcg"]

PROBE_LIMIT_SECONDS = 6.0
"""With a KVM that works the guest is ready in about one second; emulated it takes three."""

CONSOLE_LIMIT_BYTES = 1 << 16
"""Console output after which a guest that isn't ready is given up: a ready one has printed one line."""

_KVM = Path("/dev/kvm")


def probe_accelerator(
    image: GuestImage, cache_directory: Path | None = None, *, device: Path = _KVM
) -> Accelerator:
    """The fastest accelerator that runs `image` on this machine.

    Boots it under KVM once, for at most PROBE_LIMIT_SECONDS; the answer is kept for this kernel and this
    image. Without a /dev/kvm that can be opened the answer is "tcg" at once. Blocks: call it in a thread from
    trio code. Raises ToolMissingError, CacheUnusableError.
    """
    if not os.access(device, os.R_OK | os.W_OK):
        return "tcg"
    system = os.uname()
    key = f"{system.release} {system.version} {image.digest}"
    path = (cache_directory or default_cache_directory()).absolute() / "accelerator.json"
    known = _read(path)
    if known.get("key") == key and known.get("accelerator") in ("kvm", "tcg"):
        return "kvm" if known["accelerator"] == "kvm" else "tcg"
    answer: Accelerator = "kvm" if _boots(image) else "tcg"
    _write(path, {"key": key, "accelerator": answer})
    return answer


def _read(path: Path) -> dict[str, object]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(path: Path, record: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(record))
        temporary.replace(path)
    except OSError as error:
        raise CacheUnusableError(str(path), error.strerror or str(error)) from None


def _boots(image: GuestImage) -> bool:
    deadline = time.monotonic() + PROBE_LIMIT_SECONDS
    console = bytearray()
    with _guest(image) as output, selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and len(console) < CONSOLE_LIMIT_BYTES:
            if not selector.select(left):
                continue
            received = os.read(output, 4096)
            if not received:
                return False
            console += received
            if READY_LINE.encode() in console:
                return True
    return False


@contextmanager
def _guest(image: GuestImage) -> Iterator[int]:
    """Runs the guest under KVM, without disks of its own or network, and yields its console to read from."""
    command = [
        *(
            "setpriv",
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ),
        *("-machine", "q35,accel=kvm", "-cpu", "max", "-m", "256", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", kernel_command_line()),
        *("-drive", f"if=none,id=root,format=raw,readonly=on,file={str(image.root).replace(',', ',,')}"),
        *("-device", "virtio-blk-pci,drive=root"),
    ]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise ToolMissingError(command[0], DEBIAN_PACKAGES[command[0]]) from None
    try:
        assert process.stdout is not None
        yield process.stdout.fileno()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
