"""QEMU's command line as `remuslike.guest.command` writes it, of which the synthetic guest takes its part.
Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from remuslike.synthetic.errors import SyntheticCommandError
from remuslike.synthetic.rates import Rates, parse_append

_TAKEN = frozenset("-object -chardev -add-fd -netdev -device -blockdev -append -incoming -m".split())


@dataclass(frozen=True, slots=True)
class Disk:
    """An export of an NBD server on a unix socket."""

    export: str
    socket: str


@dataclass(frozen=True, slots=True)
class Nic:
    """An inherited TAP, and the station that the guest is on it."""

    tap: int
    mac: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """What the guest is made of. Numbers are inherited descriptors. A standby waits for its device state."""

    rates: Rates
    memory: int
    memory_bytes: int
    monitor: int
    descriptor_sets: dict[int, int]
    nic: Nic | None
    disk: Disk | None
    standby: bool


def parse_command(arguments: Sequence[str]) -> Command:
    """Raises SyntheticCommandError, or RatesError for what `-append` says. Disks that don't come by NBD are
    read-only and left alone; so is whatever else QEMU has options for."""
    options: dict[str, list[str]] = {option: [] for option in _TAKEN}
    remaining = iter(arguments)
    for argument in remaining:
        if argument in _TAKEN:
            options[argument].append(next(remaining, ""))
    memory = _first(options, "-object")
    sets = [_number(value, r"\bset=(\d+)", "-add-fd") for value in options["-add-fd"]]
    descriptors = [_number(value, r"\bfd=(\d+)", "-add-fd") for value in options["-add-fd"]]
    return Command(
        rates=parse_append(" ".join(options["-append"])),
        memory=_number(memory, r"\bmem-path=/dev/fd/(\d+)", "-object"),
        memory_bytes=_number(memory, r"\bsize=(\d+)M\b", "-object") << 20,
        monitor=_number(_first(options, "-chardev"), r"\bfd=(\d+)", "-chardev"),
        descriptor_sets=dict(zip(sets, descriptors, strict=True)),
        nic=_nic(options["-netdev"], options["-device"]),
        disk=_disk(options["-blockdev"]),
        standby=bool(options["-incoming"]),
    )


def _first(options: dict[str, list[str]], option: str) -> str:
    if not options[option]:
        raise SyntheticCommandError(
            f"{option} is missing: this program is started by a daemon, by guest.qemu in its configuration"
        )
    return options[option][0]


def _match(value: str, pattern: str, option: str) -> str:
    match = re.search(pattern, value)
    if match is None:
        raise SyntheticCommandError(f"{option} {value!r}: expected to find {pattern} in it")
    return match[1]


def _number(value: str, pattern: str, option: str) -> int:
    return int(_match(value, pattern, option))


def _nic(netdevs: list[str], devices: list[str]) -> Nic | None:
    if not netdevs:
        return None
    if len(netdevs) > 1:
        raise SyntheticCommandError(f"{len(netdevs)} interfaces in guest.nics: this guest takes one at most")
    name = _match(netdevs[0], r"\bid=([^,]+)", "-netdev")
    (device,) = (device for device in devices if f"netdev={name}," in device)
    mac = bytes.fromhex(_match(device, r"\bmac=([0-9a-f:]{17})", "-device").replace(":", ""))
    return Nic(_number(netdevs[0], r"\bfd=(\d+)", "-netdev"), mac)


def _disk(blockdevs: list[str]) -> Disk | None:
    disks = [value for value in blockdevs if value.startswith("driver=nbd,")]
    if not disks:
        return None
    if len(disks) > 1:
        raise SyntheticCommandError(f"{len(disks)} writable guest.disks: this guest takes one at most")
    # A comma within a value is doubled.
    path = _match(disks[0], r"\bserver\.path=((?:[^,]|,,)+)", "-blockdev").replace(",,", ",")
    return Disk(_match(disks[0], r"\bexport=([^,]+)", "-blockdev"), path)
