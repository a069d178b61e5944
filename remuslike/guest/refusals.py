"""What a guest definition must not contain, by name and with the reason.

A capture is RAM (one shared file) plus device state. Whatever adds RAM outside that file, keeps
guest-visible state outside QEMU, or takes a decision that is the daemon's, is refused before QEMU
starts. `GuestMemory.find_in` checks that the running process maps the file once and whole.
"""

from __future__ import annotations

from collections.abc import Sequence

_PRIVATE_RAM = "has RAM of its own outside the shared file, which a capture would miss"
_OUTSIDE_STATE = "keeps state outside QEMU that can't be captured"
_DAEMONS = "is the daemon's to give"

_REFUSED_OPTIONS = {
    "m": "set guest.memory_mib instead",
    "smp": "set guest.vcpus instead",
    "cpu": "set guest.cpu instead",
    "M": "set guest.machine instead",
    "machine": "set guest.machine instead",
    "accel": "set guest.accelerator instead",
    "enable-kvm": "set guest.accelerator instead",
    "kernel": "set guest.kernel instead",
    "initrd": "set guest.initrd instead",
    "append": "set guest.append instead",
    "mem-path": "RAM must be the daemon's shared file",
    "mem-prealloc": "RAM must be the daemon's shared file",
    "numa": "RAM must be one shared file",
    "vga": _PRIVATE_RAM,
    "incoming": _DAEMONS,
    "S": _DAEMONS,
    "daemonize": _DAEMONS,
    "pidfile": _DAEMONS,
    "runas": _DAEMONS,
    "sandbox": "its filter would refuse the userfaultfd that tracks dirty pages",
    "no-shutdown": _DAEMONS,
    "no-reboot": _DAEMONS,
    "action": _DAEMONS,
    "snapshot": "the disks are the daemon's to buffer",
    "loadvm": _DAEMONS,
    "preconfig": _DAEMONS,
    "chroot": _DAEMONS,
    "record": _OUTSIDE_STATE,
    "replay": _OUTSIDE_STATE,
    "qmp-pretty": _DAEMONS + "; use -chardev and -mon for a monitor of your own",
    "qmp": _DAEMONS + "; use -chardev and -mon for a monitor of your own",
    "drive": "its writes would not be held: list it under guest.disks",
    "blockdev": "its writes would not be held: list it under guest.disks",
    "hda": "its writes would not be held: list it under guest.disks",
    "hdb": "its writes would not be held: list it under guest.disks",
    "hdc": "its writes would not be held: list it under guest.disks",
    "hdd": "its writes would not be held: list it under guest.disks",
    "fda": "its writes would not be held",
    "fdb": "its writes would not be held",
    "cdrom": "list it under guest.disks with read_only = true",
    "pflash": "its writes would not be held",
    "mtdblock": "its writes would not be held",
    "sd": "its writes would not be held",
    "net": "its frames would not be held: list it under guest.nics",
    "nic": "its frames would not be held: list it under guest.nics",
    "netdev": "its frames would not be held: list it under guest.nics",
    "virtfs": _OUTSIDE_STATE,
    "fsdev": _OUTSIDE_STATE,
    "usbdevice": _OUTSIDE_STATE,
    "readconfig": "may contain anything: write it out under guest",
}

_REFUSED_DEVICES = {
    "VGA": _PRIVATE_RAM,
    "qxl": _PRIVATE_RAM,
    "qxl-vga": _PRIVATE_RAM,
    "cirrus-vga": _PRIVATE_RAM,
    "vmware-svga": _PRIVATE_RAM,
    "secondary-vga": _PRIVATE_RAM,
    "bochs-display": _PRIVATE_RAM,
    "ramfb": _PRIVATE_RAM,
    "ati-vga": _PRIVATE_RAM,
    "isa-vga": _PRIVATE_RAM,
    "isa-cirrus-vga": _PRIVATE_RAM,
    "pc-dimm": _PRIVATE_RAM,
    "nvdimm": _PRIVATE_RAM,
    "cxl-type3": _PRIVATE_RAM,
    "floppy": "its writes would not be held",
    "sd-card": "its writes would not be held",
}

_REFUSED_DEVICE_PREFIXES = {
    "virtio-gpu": _OUTSIDE_STATE,
    "virtio-vga": _PRIVATE_RAM,
    "virtio-mem": _PRIVATE_RAM,
    "virtio-pmem": _PRIVATE_RAM,
    "virtio-9p": _OUTSIDE_STATE,
    "virtio-balloon": "gives RAM back to the host, which is no write that a capture would notice",
    "vhost-": "runs outside QEMU, where its writes to RAM would not be noticed",
    "vfio": "the hardware writes to RAM unnoticed and can't be captured",
    "ivshmem": _PRIVATE_RAM,
    "usb-host": _OUTSIDE_STATE,
    "usb-mtp": _OUTSIDE_STATE,
    "usb-redir": _OUTSIDE_STATE,
    "u2f-": _OUTSIDE_STATE,
    "ccid-card": _OUTSIDE_STATE,
    "usb-uas": "its writes would not be held: list the disk under guest.disks",
    "usb-bot": "its writes would not be held: list the disk under guest.disks",
    "usb-storage": "its writes would not be held: list the disk under guest.disks",
    "megasas": "list the disk under guest.disks",
    "nvme": "list the disk under guest.disks",
    "scsi-": "list the disk under guest.disks",
    "ide-": "list the disk under guest.disks",
    "virtio-blk": "list the disk under guest.disks",
    "virtio-net": "list the interface under guest.nics",
    "e1000": "list the interface under guest.nics",
    "rtl8139": "list the interface under guest.nics",
    "vmxnet3": "list the interface under guest.nics",
    "pcnet": "list the interface under guest.nics",
    "tpm-": _OUTSIDE_STATE,
    "ipmi": _OUTSIDE_STATE,
}

# Properties of -object and -machine.
_REFUSED_OBJECT_PREFIXES = {
    "memory-backend-": "RAM must be the daemon's shared file",
    "filter-": "frames are held by the daemon",
    "colo-compare": "is another fault tolerance; one at a time",
}
_REFUSED_MACHINE_PROPERTIES = {
    "memory-backend": "RAM must be the daemon's shared file",
    "accel": "set guest.accelerator instead",
    "memory-encryption": "encrypted RAM can't be copied",
    "confidential-guest-support": "encrypted RAM can't be copied",
    "cxl": _PRIVATE_RAM,
    "nvdimm": _PRIVATE_RAM,
}


def refuse_arguments(machine: str, arguments: Sequence[str]) -> None:
    """ValueError naming the first argument that would break capture, holding or takeover."""
    for field in machine.split(",")[1:]:
        name = field.partition("=")[0]
        if reason := _REFUSED_MACHINE_PROPERTIES.get(name):
            raise ValueError(f"machine: property {name!r} is refused: {reason}")
    following = [*arguments, ""][1:]
    previous = ""
    for argument, value in zip(arguments, following, strict=True):
        if not argument.startswith("-"):
            if not previous.startswith("-"):
                raise ValueError(f"extra argument {argument!r} is refused: QEMU takes it for an unheld disk")
            previous = argument
            continue
        previous = argument
        option = argument.removeprefix("--") if argument.startswith("--") else argument[1:]
        if reason := _REFUSED_OPTIONS.get(option):
            raise ValueError(f"extra argument {argument!r} is refused: {reason}")
        if option == "device":
            _refuse("device", _kind(value, "driver="), _REFUSED_DEVICES, _REFUSED_DEVICE_PREFIXES)
        elif option == "global" and value.startswith("migration."):
            raise ValueError(f"-global {value!r} is refused: how state is saved and loaded {_DAEMONS}")
        elif option == "object":
            _refuse("object", _kind(value, "qom-type="), {}, _REFUSED_OBJECT_PREFIXES)


def _kind(value: str, key: str) -> str:
    """What an option's value is of: named by `key`, wherever it stands, or by the first field."""
    fields = value.split(",")
    return next((field.removeprefix(key) for field in fields if field.startswith(key)), fields[0])


def _refuse(kind: str, name: str, exact: dict[str, str], prefixes: dict[str, str]) -> None:
    if name.startswith("{"):
        raise ValueError(f"-{kind} {name!r}: JSON is refused, since it can't be checked by name")
    reason = exact.get(name) or next((why for start, why in prefixes.items() if name.startswith(start)), None)
    if reason:
        raise ValueError(f"-{kind} {name!r} is refused: {reason}")
