"""remuslike.guest.refusals: what would break capture is refused by name, and nothing else is."""

from __future__ import annotations

import pytest

from remuslike.guest.refusals import refuse_arguments

PRIVATE_RAM = "has RAM of its own outside the shared file"


def refusal(*arguments: str, machine: str = "q35") -> str:
    with pytest.raises(ValueError, match=r"refused") as caught:
        refuse_arguments(machine, arguments)
    assert type(caught.value) is ValueError
    return str(caught.value)


@pytest.mark.parametrize("machine", ["q35", "pc", "microvm", "q35,hpet=off", "microvm,pcie=on,rtc=on"])
def test_plain_machines_without_arguments_are_fine(machine: str) -> None:
    refuse_arguments(machine, [])


@pytest.mark.parametrize(
    "arguments",
    [
        ["-device", "virtio-rng-pci"],
        ["-device", "virtio-serial-pci", "-chardev", "null,id=c", "-device", "virtconsole,chardev=c"],
        ["-serial", "file:/tmp/log"],
        ["-rtc", "base=utc"],
        ["-global", "kvm-pit.lost_tick_policy=discard"],
        ["-object", "rng-random,id=r,filename=/dev/urandom"],
        ["-object", "iothread,id=t"],
        ["-boot", "order=c"],
        ["-bios", "/usr/share/seabios/bios.bin"],
        ["-name", "VGA"],
    ],
)
def test_devices_without_private_state_are_fine(arguments: list[str]) -> None:
    refuse_arguments("q35", arguments)


@pytest.mark.parametrize("name", ["VGA", "qxl", "cirrus-vga", "bochs-display", "ramfb", "virtio-vga-gl"])
def test_devices_with_video_memory_are_refused(name: str) -> None:
    assert refusal("-device", name) == (
        f"-device {name!r} is refused: {PRIVATE_RAM}, which a capture would miss"
    )


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("pc-dimm,memdev=m", PRIVATE_RAM),
        ("nvdimm", PRIVATE_RAM),
        ("virtio-mem-pci", PRIVATE_RAM),
        ("virtio-pmem-pci", PRIVATE_RAM),
        ("ivshmem-plain", PRIVATE_RAM),
        ("virtio-gpu-pci", "keeps state outside QEMU"),
        ("virtio-9p-pci", "keeps state outside QEMU"),
        ("virtio-balloon-pci,id=b", "gives RAM back to the host"),
        ("vhost-vsock-pci,guest-cid=3", "writes to RAM would not be noticed"),
        ("vhost-user-fs-pci", "writes to RAM would not be noticed"),
        ("vfio-pci,host=01:00.0", "the hardware writes to RAM unnoticed"),
        ("usb-host", "keeps state outside QEMU"),
        ("tpm-tis", "keeps state outside QEMU"),
        ("virtio-blk-pci,drive=d", "under guest.disks"),
        ("nvme,drive=d", "under guest.disks"),
        ("scsi-hd,drive=d", "under guest.disks"),
        ("ide-hd,drive=d", "under guest.disks"),
        ("usb-storage,drive=d", "under guest.disks"),
        ("virtio-net-pci,netdev=n", "under guest.nics"),
        ("e1000e", "under guest.nics"),
        ("rtl8139", "under guest.nics"),
    ],
)
def test_other_devices_are_refused_with_the_reason(device: str, reason: str) -> None:
    message = refusal("-device", device)
    assert repr(device.partition(",")[0]) in message
    assert reason in message


@pytest.mark.parametrize("option", ["-device", "--device"])
@pytest.mark.parametrize("value", ["VGA", "driver=VGA", "VGA,id=v"])
def test_every_way_to_say_device_is_seen(option: str, value: str) -> None:
    assert "'VGA'" in refusal(option, value)


def test_a_driver_that_is_not_named_first_is_seen() -> None:
    assert "VGA" in refusal("-device", "id=v,driver=VGA")
    assert "memory-backend-ram" in refusal("-object", "id=m,qom-type=memory-backend-ram,size=1M")


@pytest.mark.parametrize("value", ['{"driver": "VGA"}', '{"qom-type": "memory-backend-ram"}'])
@pytest.mark.parametrize("option", ["-device", "-object"])
def test_json_is_refused_since_names_hide_in_it(option: str, value: str) -> None:
    assert "JSON is refused" in refusal(option, value)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("-m", "set guest.memory_mib instead"),
        ("-smp", "set guest.vcpus instead"),
        ("-cpu", "set guest.cpu instead"),
        ("-machine", "set guest.machine instead"),
        ("-M", "set guest.machine instead"),
        ("-accel", "set guest.accelerator instead"),
        ("-enable-kvm", "set guest.accelerator instead"),
        ("-kernel", "set guest.kernel instead"),
        ("-drive", "list it under guest.disks"),
        ("-blockdev", "list it under guest.disks"),
        ("-hda", "list it under guest.disks"),
        ("-cdrom", "read_only = true"),
        ("-netdev", "list it under guest.nics"),
        ("-nic", "list it under guest.nics"),
        ("-net", "list it under guest.nics"),
        ("-mem-path", "RAM must be the daemon's shared file"),
        ("-numa", "RAM must be one shared file"),
        ("-vga", PRIVATE_RAM),
        ("-sandbox", "would refuse the userfaultfd"),
        ("-incoming", "is the daemon's to give"),
        ("-S", "is the daemon's to give"),
        ("-daemonize", "is the daemon's to give"),
        ("-qmp", "is the daemon's to give"),
        ("-no-reboot", "is the daemon's to give"),
        ("-snapshot", "the daemon's to buffer"),
        ("-loadvm", "is the daemon's to give"),
        ("-virtfs", "keeps state outside QEMU"),
        ("-readconfig", "write it out"),
        ("-usbdevice", "keeps state outside QEMU"),
    ],
)
def test_options_that_are_not_the_users_are_refused(option: str, hint: str) -> None:
    for spelled in (option, "-" + option):
        message = refusal("-rtc", "base=utc", spelled, "something")
        assert repr(spelled) in message
        assert hint in message


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("memory-backend-ram,id=m,size=1M", "memory-backend-ram"),
        ("memory-backend-file,id=m", "memory-backend-file"),
        ("qom-type=memory-backend-memfd,id=m", "memory-backend-memfd"),
        ("filter-dump,id=f,netdev=net0", "filter-dump"),
        ("colo-compare,id=c", "colo-compare"),
    ],
)
def test_objects_that_split_ram_or_touch_frames_are_refused(value: str, named: str) -> None:
    assert repr(named) in refusal("-object", value)


@pytest.mark.parametrize(
    "field",
    [
        "memory-backend=other",
        "accel=tcg",
        "memory-encryption=sev0",
        "confidential-guest-support=s",
        "nvdimm=on",
    ],
)
def test_properties_of_the_machine_are_checked(field: str) -> None:
    message = refusal(machine=f"q35,hpet=off,{field}")
    assert f"machine: property {field.partition('=')[0]!r} is refused" in message


def test_a_value_is_not_taken_for_an_option() -> None:
    refuse_arguments("q35", ["-name", "m", "-append-is-no-option", "x"])


def test_an_option_at_the_very_end_is_seen() -> None:
    assert "'-S'" in refusal("-rtc", "base=utc", "-S")
    refuse_arguments("q35", ["-device"])


def test_a_stray_argument_would_be_an_unheld_disk() -> None:
    with pytest.raises(ValueError, match=r"'/srv/data\.img' is refused"):
        refuse_arguments("q35", ["-device", "virtio-rng-pci", "/srv/data.img"])
    with pytest.raises(ValueError, match=r"'disk\.img' is refused"):
        refuse_arguments("q35", ["disk.img"])
