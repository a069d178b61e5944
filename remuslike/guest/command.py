"""The QEMU command line of a guest definition. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from remuslike.config import GuestSettings

# The descriptor set that device state is saved into, by `xen-save-devices-state`.
DEVICE_STATE_SET = 1


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What QEMU inherits: its RAM, its monitor's socket, where it saves its device state, and a TAP
    for each of `guest.nics`."""

    memory: int
    monitor: int
    device_state: int
    taps: Sequence[int]


def build_command(
    name: str,
    guest: GuestSettings,
    descriptors: Descriptors,
    disk_sockets: Sequence[Path],
    *,
    standby: bool,
) -> list[str]:
    """The arguments, QEMU itself first. `disk_sockets`: one for each disk that isn't read-only.

    A standby waits for its device state with RAM shared (not part of the stream) and no
    configuration section, which `xen-save-devices-state` doesn't write.
    """
    bus = device_bus(guest.machine)
    command = [guest.qemu, "-name", f"{name},process=qemu-{name}"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]
    command += ["-machine", f"{guest.machine},accel={guest.accelerator},memory-backend=ram"]
    command += ["-cpu", guest.cpu, "-smp", str(guest.vcpus), "-m", str(guest.memory_mib)]
    memory = f"size={guest.memory_mib}M,mem-path=/dev/fd/{descriptors.memory},share=on"
    command += ["-object", f"memory-backend-file,id=ram,{memory}"]
    command += ["-chardev", f"socket,id=remus-monitor,fd={descriptors.monitor}"]
    command += ["-mon", "chardev=remus-monitor,mode=control"]
    command += ["-add-fd", f"fd={descriptors.device_state},set={DEVICE_STATE_SET}"]
    # At its own power-off the guest stays, paused, for the last checkpoint.
    command += ["-action", "shutdown=pause"]
    for option, value in (("-kernel", guest.kernel), ("-initrd", guest.initrd), ("-append", guest.append)):
        if value:
            command += [option, str(value)]
    command += _disks(guest, disk_sockets, bus)
    command += _nics(guest, descriptors.taps, bus)
    if standby:
        command += ["-incoming", "defer", "-global", "migration.send-configuration=off"]
    else:
        command += ["-S"]
    return [*command, *guest.extra_arguments, *guest.local_arguments]


# A disk's error is the guest's to handle; by default QEMU would stop it on a full disk, for ever.
ON_DISK_ERROR = "werror=report,rerror=report"


def device_bus(machine: str) -> Literal["device", "pci"]:
    """How the names of a machine's virtio devices end: microvm has no PCI unless told to."""
    kind, *properties = machine.split(",")
    return "device" if kind == "microvm" and "pcie=on" not in properties else "pci"


def _disks(guest: GuestSettings, sockets: Sequence[Path], bus: str) -> list[str]:
    arguments = []
    remaining = iter(sockets)
    for disk in guest.disks:
        node = f"disk-{disk.name}"
        if disk.read_only:
            path = escape(disk.image)
            backend = f"driver=raw,node-name={node},read-only=on,file.driver=file,file.filename={path}"
        else:
            path = escape(next(remaining))
            backend = f"driver=nbd,node-name={node},export={disk.name},server.type=unix,server.path={path}"
        arguments += ["-blockdev", backend]
        arguments += ["-device", f"virtio-blk-{bus},drive={node},serial={disk.name},{ON_DISK_ERROR}"]
    return arguments


def _nics(guest: GuestSettings, taps: Sequence[int], bus: str) -> list[str]:
    arguments = []
    for number, (nic, tap) in enumerate(zip(guest.nics, taps, strict=True)):
        # No boot ROM: it would be RAM of the device's own, and the same on both sides for nothing.
        rom = ",romfile=" if bus == "pci" else ""
        arguments += ["-netdev", f"tap,id=net{number},fd={tap},vhost=off"]
        arguments += ["-device", f"virtio-net-{bus},netdev=net{number},mac={nic.mac}{rom}"]
    return arguments


def escape(path: Path) -> str:
    """A comma ends a QEMU option's value unless it is doubled."""
    return str(path).replace(",", ",,")
