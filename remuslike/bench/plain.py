"""The baseline's QEMU: the machine that a daemon would start, with nobody beside it. Pure."""

from __future__ import annotations

from pathlib import Path

from remuslike.config import GuestSettings
from remuslike.guest.command import ON_DISK_ERROR, device_bus, escape


def plain_command(guest: GuestSettings, taps: list[str]) -> list[str]:
    """QEMU's arguments, itself first: RAM of its own, disks in raw files, and `taps` that it makes itself.

    Machine, processors and devices are those of `remuslike.guest.command`, so that the guest sees no
    difference.
    """
    bus = device_bus(guest.machine)
    command = [guest.qemu, "-name", "plain"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]
    command += ["-machine", f"{guest.machine},accel={guest.accelerator}"]
    command += ["-cpu", guest.cpu, "-smp", str(guest.vcpus), "-m", str(guest.memory_mib)]
    for option, value in (("-kernel", guest.kernel), ("-initrd", guest.initrd), ("-append", guest.append)):
        if value:
            command += [option, str(value)]
    for disk in guest.disks:
        node, path = f"disk-{disk.name}", escape(Path(disk.image))
        only = "on" if disk.read_only else "off"
        backend = f"driver=raw,node-name={node},read-only={only},file.driver=file,file.filename={path}"
        command += ["-blockdev", backend]
        command += ["-device", f"virtio-blk-{bus},drive={node},serial={disk.name},{ON_DISK_ERROR}"]
    for number, (nic, tap) in enumerate(zip(guest.nics, taps, strict=True)):
        rom = ",romfile=" if bus == "pci" else ""
        command += ["-netdev", f"tap,id=net{number},ifname={tap},script=no,downscript=no,vhost=off"]
        command += ["-device", f"virtio-net-{bus},netdev=net{number},mac={nic.mac}{rom}"]
    return [*command, *guest.extra_arguments, *guest.local_arguments]
