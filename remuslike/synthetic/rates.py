"""What a synthetic guest does, as words of its kernel command line: `synthetic.KEY=VALUE`. Pure."""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, dataclass, fields
from ipaddress import AddressValueError, IPv4Interface
from pathlib import Path

from remuslike.synthetic.errors import RatesError

_PREFIX = "synthetic."
_PROGRAM = "remuslike-synthetic-guest"

_BOUNDS = {
    "dirty_pages_s": (0, 1_000_000),
    "working_set_mib": (1, 1 << 20),
    "frames_s": (0, 1_000_000),
    "frame_bytes": (64, 1514),
    "disk_writes_s": (0, 1_000_000),
    "disk_write_bytes": (512, 1 << 20),
    "seed": (0, (1 << 32) - 1),
}
_SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Rates:
    """Work a second of the guest's own time, which stands still while it is paused.

    Pages are dirtied in a working set of `working_set_mib`, each as often as any other; frames are broadcasts
    to the network of `address`, without which the guest neither sends nor answers; disk writes go round a
    region of the first disk. The same `seed` writes the same. Raises RatesError.
    """

    dirty_pages_s: int = 0
    working_set_mib: int = 16
    frames_s: int = 0
    frame_bytes: int = 128
    disk_writes_s: int = 0
    disk_write_bytes: int = 4096
    address: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        for key, (least, most) in _BOUNDS.items():
            value = getattr(self, key)
            if not least <= value <= most:
                raise RatesError(f"{_PREFIX}{key} = {value}: must be from {least} to {most}")
        if self.disk_write_bytes % _SECTOR_BYTES:
            raise RatesError(
                f"{_PREFIX}disk_write_bytes = {self.disk_write_bytes}: must be a multiple of {_SECTOR_BYTES}"
            )
        if self.frames_s and not self.address:
            raise RatesError(f"{_PREFIX}frames_s = {self.frames_s}: needs {_PREFIX}address=ADDRESS/LENGTH")
        self._check_address()

    def _check_address(self) -> None:
        if not self.address:
            return
        try:
            interface = IPv4Interface(self.address)
        except (AddressValueError, ValueError) as error:
            raise RatesError(f"{_PREFIX}address = {self.address!r}: {error}") from error
        if "/" not in self.address or interface.network.prefixlen > 30:
            raise RatesError(f"{_PREFIX}address = {self.address!r}: must be ADDRESS/LENGTH, to /30 at most")

    @property
    def interface(self) -> IPv4Interface | None:
        """Its own address and network; None: it has no part in any."""
        return IPv4Interface(self.address) if self.address else None

    def append(self) -> str:
        """For `guest.append`: the words that `parse_append` makes the same of."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = [field.name for field in fields(self) if values[field.name] != field.default]
        return " ".join(f"{_PREFIX}{name}={values[name]}" for name in changed)


def parse_append(append: str) -> Rates:
    """The rates in a kernel command line, whose other words are for others. Raises RatesError."""
    known: dict[str, Field[object]] = {field.name: field for field in fields(Rates)}
    values: dict[str, int | str] = {}
    for word in append.split():
        if not word.startswith(_PREFIX):
            continue
        key, _, text = word.removeprefix(_PREFIX).partition("=")
        if key not in known:
            raise RatesError(f"{_PREFIX}{key} = {text!r}: there is no such key; there are {', '.join(known)}")
        if key in values:
            raise RatesError(f"{_PREFIX}{key} = {text!r}: is there twice")
        assert known[key].default is not MISSING
        values[key] = _number(key, text) if key in _BOUNDS else text
    return Rates(**values)  # type: ignore[arg-type]


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise RatesError(f"{_PREFIX}{key} = {text!r}: must be a whole number")
    return int(text)


def program_path() -> Path:
    """The guest's program, for `guest.qemu`: it is installed beside this Python."""
    return Path(sys.executable).with_name(_PROGRAM)
