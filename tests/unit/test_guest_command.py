"""remuslike.guest.command: the QEMU command line of a guest definition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remuslike.config import DiskSettings, GuestSettings, NicSettings
from remuslike.guest.command import DEVICE_STATE_SET, Descriptors, build_command

DESCRIPTORS = Descriptors(memory=10, monitor=11, device_state=12, taps=(13, 14))
DISKS = [
    DiskSettings(name="root", store="/images/root.img", read_only=True),
    DiskSettings(name="data", store="/images/data.img"),
    DiskSettings(name="logs", store="/images/logs.img"),
]
SOCKETS = [Path("/run/n/disk-data.sock"), Path("/run/n/disk-logs.sock")]
NICS = [
    NicSettings(mac="52:54:00:00:00:01", bridge="br0"),
    NicSettings(mac="52:54:00:00:00:02", bridge="br1"),
]


def guest(**settings: Any) -> GuestSettings:
    """A definition with one harmless argument of the user's own."""
    return GuestSettings.model_validate(
        {"memory_mib": 256, "extra_arguments": ["-device", "virtio-rng-pci"], **settings}
    )


def command(settings: GuestSettings, *, standby: bool = False) -> list[str]:
    sockets = [socket for socket in SOCKETS if settings.disks]
    taps = DESCRIPTORS.taps[: len(settings.nics)]
    descriptors = Descriptors(DESCRIPTORS.memory, DESCRIPTORS.monitor, DESCRIPTORS.device_state, taps)
    return build_command("node-a", settings, descriptors, sockets, standby=standby)


def values(arguments: list[str], option: str) -> list[str]:
    """What follows each `option`."""
    return [value for argument, value in pairwise(arguments) if argument == option]


def test_ram_is_the_inherited_file_shared() -> None:
    arguments = command(guest(memory_mib=768))
    assert values(arguments, "-m") == ["768"]
    assert values(arguments, "-object") == [
        "memory-backend-file,id=ram,size=768M,mem-path=/dev/fd/10,share=on"
    ]
    assert values(arguments, "-machine") == ["q35,accel=kvm,memory-backend=ram"]


def test_the_machine_is_as_defined() -> None:
    arguments = command(
        guest(machine="pc,hpet=off", accelerator="tcg", cpu="qemu64,+ssse3", vcpus=2, qemu="/opt/qemu")
    )
    assert arguments[0] == "/opt/qemu"
    assert values(arguments, "-machine") == ["pc,hpet=off,accel=tcg,memory-backend=ram"]
    assert values(arguments, "-cpu") == ["qemu64,+ssse3"]
    assert values(arguments, "-smp") == ["2"]
    assert values(arguments, "-name") == ["node-a,process=qemu-node-a"]


def test_nothing_but_what_is_defined_is_there() -> None:
    arguments = command(guest())
    assert {"-nodefaults", "-no-user-config"} <= set(arguments)
    assert values(arguments, "-display") == ["none"]
    assert values(arguments, "-vga") == ["none"]
    assert values(arguments, "-device") == ["virtio-rng-pci"]
    assert not {"-kernel", "-initrd", "-append", "-blockdev", "-netdev"} & set(arguments)


def test_monitor_and_device_state_are_inherited() -> None:
    arguments = command(guest())
    assert values(arguments, "-chardev") == ["socket,id=remus-monitor,fd=11"]
    assert values(arguments, "-mon") == ["chardev=remus-monitor,mode=control"]
    assert values(arguments, "-add-fd") == [f"fd=12,set={DEVICE_STATE_SET}"]


def test_a_power_off_leaves_the_last_state() -> None:
    assert values(command(guest()), "-action") == ["shutdown=pause"]


def test_a_primary_starts_paused() -> None:
    arguments = command(guest())
    assert "-S" in arguments
    assert "-incoming" not in arguments


def test_a_standby_waits_for_a_stream_without_a_configuration_section() -> None:
    arguments = command(guest(), standby=True)
    assert "-S" not in arguments
    assert values(arguments, "-incoming") == ["defer"]
    assert values(arguments, "-global") == ["migration.send-configuration=off"]


def test_both_sides_have_the_same_machine() -> None:
    settings = guest(disks=DISKS, nics=NICS, kernel=Path("/k"), append="quiet")
    primary, standby = command(settings), command(settings, standby=True)
    without = {"-S", "-incoming", "defer", "-global", "migration.send-configuration=off"}
    assert [a for a in primary if a not in without] == [a for a in standby if a not in without]


def test_a_kernel_is_loaded_with_what_belongs_to_it() -> None:
    arguments = command(guest(kernel=Path("/k"), initrd=Path("/i"), append="console=ttyS0 root=/dev/vda"))
    assert values(arguments, "-kernel") == ["/k"]
    assert values(arguments, "-initrd") == ["/i"]
    assert values(arguments, "-append") == ["console=ttyS0 root=/dev/vda"]


@pytest.mark.parametrize(
    ("machine", "bus"),
    [
        ("q35", "pci"),
        ("pc", "pci"),
        ("microvm", "device"),
        ("microvm,rtc=on", "device"),
        ("microvm,pcie=on", "pci"),
    ],
)
def test_devices_sit_on_the_bus_that_the_machine_has(machine: str, bus: str) -> None:
    devices = values(command(guest(machine=machine, disks=DISKS, nics=NICS)), "-device")
    kinds = [device.partition(",")[0] for device in devices]
    own = ["virtio-rng-pci"]
    assert kinds == [f"virtio-blk-{bus}"] * 3 + [f"virtio-net-{bus}"] * 2 + own


def test_buffered_disks_are_nbd_and_read_only_ones_are_files() -> None:
    arguments = command(guest(disks=DISKS))
    file, data, logs = values(arguments, "-blockdev")
    assert file == (
        "driver=raw,node-name=disk-root,read-only=on,file.driver=file,file.filename=/images/root.img"
    )
    assert data == (
        "driver=nbd,node-name=disk-data,export=data,server.type=unix,server.path=/run/n/disk-data.sock"
    )
    assert "node-name=disk-logs,export=logs" in logs
    devices = values(arguments, "-device")[:3]
    assert [device.split(",")[1:3] for device in devices] == [
        ["drive=disk-root", "serial=root"],
        ["drive=disk-data", "serial=data"],
        ["drive=disk-logs", "serial=logs"],
    ]
    assert all(device.endswith(",werror=report,rerror=report") for device in devices)


def test_interfaces_are_inherited_taps_without_vhost() -> None:
    arguments = command(guest(nics=NICS))
    assert values(arguments, "-netdev") == ["tap,id=net0,fd=13,vhost=off", "tap,id=net1,fd=14,vhost=off"]
    assert values(arguments, "-device")[:2] == [
        "virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01,romfile=",
        "virtio-net-pci,netdev=net1,mac=52:54:00:00:00:02,romfile=",
    ]


def test_interfaces_without_pci_have_no_rom_to_leave_out() -> None:
    assert all(
        "romfile" not in device for device in values(command(guest(machine="microvm", nics=NICS)), "-device")
    )


def test_commas_in_paths_are_doubled() -> None:
    disks = [DiskSettings(name="root", store="/a,b/c,,d.img", read_only=True)]
    (backend,) = values(command(guest(disks=disks)), "-blockdev")
    assert backend.endswith("file.filename=/a,,b/c,,,,d.img")


def test_a_socket_path_with_commas_is_escaped_too() -> None:
    arguments = build_command(
        "n", guest(disks=DISKS[1:2]), Descriptors(10, 11, 12, ()), [Path("/run/a,b.sock")], standby=False
    )
    assert values(arguments, "-blockdev")[0].endswith("server.path=/run/a,,b.sock")


def test_the_users_own_arguments_come_last_and_in_order() -> None:
    arguments = command(guest(extra_arguments=["-a", "b"], local_arguments=["-c", "d"]))
    assert arguments[-4:] == ["-a", "b", "-c", "d"]


def test_the_command_follows_from_the_definition_alone() -> None:
    settings = guest(disks=DISKS, nics=NICS)
    assert command(settings) == command(settings)


def test_one_tap_for_each_interface() -> None:
    with pytest.raises(ValueError, match="zip"):
        build_command("n", guest(nics=NICS), Descriptors(10, 11, 12, (13,)), [], standby=False)
