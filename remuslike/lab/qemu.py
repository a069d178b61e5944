"""QEMU's command line for the lab. Pure."""

from __future__ import annotations

from remuslike.image import Accelerator
from remuslike.lab.image import LabImage

MEMORY_MIB = 2048
"""Three quarters of it can hold files that commands write; the rest runs them."""

CPUS = 2
"""Two, so that tests of concurrency mean something."""

KERNEL_ARGUMENTS = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"
"""A panic reboots at once, so that -no-reboot ends QEMU. Mitigations protect nothing in here."""


def build_lab_command(image: LabImage, accelerator: Accelerator, channel: int) -> tuple[str, ...]:
    """The whole command line. The console is standard output; `channel` is a connected socket's descriptor.

    The machine's root file system is shared read-only; `multidevs=remap` keeps files of several file systems
    below it apart (QEMU documentation, -fsdev).
    """
    return (
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", f"q35,accel={accelerator}", "-cpu", "max", "-smp", str(CPUS), "-m", str(MEMORY_MIB)),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", KERNEL_ARGUMENTS),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=host"),
        *("-chardev", f"socket,id=agent,fd={channel}"),
        *("-device", "virtio-serial-pci,max_ports=2", "-device", "virtserialport,chardev=agent,nr=1"),
    )
