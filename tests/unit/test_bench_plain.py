"""The baseline's QEMU is the protected one without what protects it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from remuslike.bench.plain import plain_command
from remuslike.config import DiskSettings, GuestSettings, NicSettings
from remuslike.guest.command import Descriptors, build_command


def guest(machine: str) -> GuestSettings:
    return GuestSettings(
        machine=machine,
        accelerator="tcg",
        memory_mib=256,
        vcpus=2,
        kernel=Path("/k"),
        initrd=Path("/i"),
        append="quiet",
        disks=[
            DiskSettings(name="root", store="/images/root,1", read_only=True),
            DiskSettings(name="data", store="/run/data.raw"),
        ],
        nics=[NicSettings(mac="52:54:00:00:00:01", bridge="br0")],
        local_arguments=["-serial", "file:/c"],
    )


def values(command: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(command) if name == option]


@pytest.mark.parametrize("machine", ["q35", "microvm"])
def test_the_guest_sees_the_same_machine(machine: str) -> None:
    settings = guest(machine)
    plain = plain_command(settings, ["tap0"])
    protected = build_command("a", settings, Descriptors(3, 4, 5, [6]), [Path("/s")], standby=False)
    for option in ("-device", "-cpu", "-smp", "-m", "-kernel", "-initrd", "-append", "-serial"):
        assert values(plain, option) == values(protected, option), option
    assert values(plain, "-machine") == [f"{machine},accel=tcg"]
    assert "-S" not in plain


def test_its_disks_are_raw_files_and_its_tap_is_its_own() -> None:
    plain = plain_command(guest("q35"), ["tap0"])
    assert values(plain, "-blockdev") == [
        "driver=raw,node-name=disk-root,read-only=on,file.driver=file,file.filename=/images/root,,1",
        "driver=raw,node-name=disk-data,read-only=off,file.driver=file,file.filename=/run/data.raw",
    ]
    assert values(plain, "-netdev") == ["tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off"]
