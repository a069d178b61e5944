"""QEMU's command line for the lab."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from remuslike.lab.image import LabImage
from remuslike.lab.qemu import build_lab_command

IMAGE = LabImage(Path("/cache/kernel"), Path("/cache/initrd"))


def option(command: tuple[str, ...], name: str) -> list[str]:
    return [value for key, value in pairwise(command) if key == name]


def test_it_dies_with_whoever_started_it() -> None:
    command = build_lab_command(IMAGE, "tcg", 7)
    assert command[:5] == ("setpriv", "--pdeathsig", "KILL", "--", "qemu-system-x86_64")


def test_it_boots_the_image_and_ends_at_a_panic() -> None:
    command = build_lab_command(IMAGE, "kvm", 7)
    assert option(command, "-machine") == ["q35,accel=kvm"]
    assert option(command, "-kernel") == ["/cache/kernel"]
    assert option(command, "-initrd") == ["/cache/initrd"]
    assert "panic=-1" in option(command, "-append")[0]
    assert "-no-reboot" in command


def test_the_hosts_files_are_read_only_and_there_is_no_network() -> None:
    command = build_lab_command(IMAGE, "tcg", 7)
    (share,) = option(command, "-fsdev")
    assert {"path=/", "readonly=on", "multidevs=remap"} <= set(share.split(","))
    assert "-nodefaults" in command
    assert not any(word.startswith(("-net", "virtio-net", "-drive", "-blockdev")) for word in command)


def test_the_channel_is_the_descriptor() -> None:
    assert "socket,id=agent,fd=7" in option(build_lab_command(IMAGE, "tcg", 7), "-chardev")
