"""remuslike.config: what is wrong is named, with file, key and value, and all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remuslike.config import (
    RUN_DIRECTORY_BYTES_MAX,
    DiskSettings,
    Settings,
    load_settings,
    parse_settings,
)
from remuslike.errors import ConfigurationError

MINIMAL = """
name = "node-a"
run_directory = "/run/remuslike"

[guest]
memory_mib = 256

[link]
address = "10.0.0.2:7000"

[witness]
kind = "file"
path = "/shared/token"
"""

FULL = """
name = "node-a"
run_directory = "/run/remuslike"
on_secondary_loss = "stall"

[guest]
machine = "microvm,pcie=on"
accelerator = "tcg"
cpu = "max,+x2apic"
vcpus = 2
memory_mib = 512
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
append = "console=ttyS0 quiet"
qemu = "/usr/bin/qemu-system-x86_64"
tracker = "soft-dirty"
extra_arguments = ["-device", "virtio-rng-pci"]
local_arguments = ["-serial", "file:/tmp/log"]

[[guest.disks]]
name = "root"
store = "/var/root.img"
read_only = true

[[guest.disks]]
name = "data"
store = "file:/var/data.img"
journal = "/srv/data.journal"

[[guest.nics]]
mac = "52:54:00:AB:cd:01"
bridge = "br0"

[epoch]
epoch_ms = 12.5
window = 3

[buffers]
hold = "tap"
network_limit_mib = 8
disk_limit_mib = 16

[link]
address = "[fd00::2]:7000"
successor = "10.0.0.3:7001"
detect_ms = 250
ack = "durable"

[witness]
kind = "none"

[log]
level = "debug"
format = "console"
"""


def parse(text: str) -> Settings:
    return parse_settings(text, "node.toml")


def complaint(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("node.toml: ")
    assert "\n" not in message
    assert "Traceback" not in message
    return message


def changed(old: str, new: str, text: str = FULL) -> str:
    assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
    return text.replace(old, new)


def disk_of(table: str) -> DiskSettings:
    """The disk of a file that has no other."""
    return parse(f'{MINIMAL}\n[[guest.disks]]\nname = "d"\n{table}').guest.disks[0]


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ('store = "/srv/d.img"', "/srv/d.img.journal"),
        ('store = "file:d.img"', "d.img.journal"),
        ('store = "/srv/d.img"\njournal = "/fast/j"', "/fast/j"),
        ('store = "/srv/d.img"\njournal = false', None),
        ('store = "/srv/d.img"\nshared = true', None),
        ('store = "/srv/d.img"\nread_only = true', None),
        ('store = "nbd://10.0.0.9/d"', None),
        ('store = "nbd://10.0.0.9/d"\njournal = "/srv/j"', "/srv/j"),
    ],
)
def test_a_journal_lies_beside_its_image_unless_said_otherwise(table: str, path: str | None) -> None:
    found = disk_of(table).journal_path
    assert found == (None if path is None else Path(path))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('store = "nbd://10.0.0.9/d"\nread_only = true', "read_only: only for an image in a file"),
        ('store = "memory:1G"\nshared = true', "shared: only for an image in a file"),
        ('store = "/d"\nshared = true\njournal = "/j"', "journal = '/j'"),
        ('store = "/d"\nread_only = true\njournal = "/j"', "journal = '/j'"),
        ('store = "/d"\nread_only = true\nshared = true', "a read-only disk is never written to"),
    ],
)
def test_what_a_disk_cannot_be_is_said(table: str, named: str) -> None:
    assert named in complaint(f'{MINIMAL}\n[[guest.disks]]\nname = "d"\n{table}')


def test_durable_acknowledgements_need_journals() -> None:
    text = changed('journal = "/srv/data.journal"', "journal = false")
    assert "guest.disks.1.journal: link.ack = 'durable' needs one" in complaint(text)


# --- what is right --------------------------------------------------------------------------------


def test_a_minimal_file_has_the_stated_defaults() -> None:
    settings = parse(MINIMAL)
    assert settings.on_secondary_loss == "solo"
    assert (settings.guest.machine, settings.guest.accelerator, settings.guest.vcpus) == ("q35", "kvm", 1)
    assert settings.guest.tracker == "auto"
    assert (settings.epoch.epoch_ms, settings.epoch.window) == (25, 2)
    assert (settings.link.detect_ms, settings.link.ack) == (100, "memory")
    buffers = settings.buffers
    assert (buffers.hold, buffers.link_mbit, buffers.disk_limit_mib) == ("auto", 10_000, 256)
    assert buffers.network_limit_mib is None
    assert (settings.log.level, settings.log.format) == ("info", "json")
    assert settings.guest.disks == []
    assert settings.guest.nics == []
    assert settings.link.successor is None
    assert settings.control_path == Path("/run/remuslike/control.sock")


def test_every_key_is_read() -> None:
    settings = parse(FULL)
    guest = settings.guest
    assert [(disk.name, disk.store, disk.read_only) for disk in guest.disks] == [
        ("root", "/var/root.img", True),
        ("data", "file:/var/data.img", False),
    ]
    assert guest.disks[0].image == Path("/var/root.img")
    assert guest.disks[0].journal_path is None
    assert guest.disks[1].journal_path == Path("/srv/data.journal")
    assert settings.link.ack == "durable"
    assert [(nic.mac, nic.bridge) for nic in guest.nics] == [("52:54:00:ab:cd:01", "br0")]
    assert guest.tracker == "soft-dirty"
    assert guest.extra_arguments == ["-device", "virtio-rng-pci"]
    assert settings.link.address == "[fd00::2]:7000"
    assert settings.link.successor == "10.0.0.3:7001"
    assert settings.witness.kind == "none"


def test_settings_do_not_change() -> None:
    settings = parse(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        settings.name = "other"


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("name", 'name = "node-a"\n'),
        ("run_directory", 'run_directory = "/run/remuslike"\n'),
        ("guest.memory_mib", "memory_mib = 256\n"),
        ("link.address", 'address = "10.0.0.2:7000"\n'),
        ("witness.file.path", 'path = "/shared/token"\n'),
    ],
)
def test_a_missing_key_is_named(key: str, line: str) -> None:
    assert f"{key}: is missing" in complaint(changed(line, "", MINIMAL))


@pytest.mark.parametrize("section", ["guest", "link", "witness"])
def test_a_missing_section_is_named(section: str) -> None:
    kept = [part for part in MINIMAL.split("\n\n") if f"[{section}]" not in part]
    assert f"{section}: is missing" in complaint("\n\n".join(kept))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('name = "node-a"', 'name = "node-a"\ncolour = "red"', "colour: is not a known key (value 'red')"),
        ("vcpus = 2", "vcpus = 2\nvcpu = 2", "guest.vcpu: is not a known key (value 2)"),
        ("window = 3", "window = 3\nwindows = 3", "epoch.windows: is not a known key"),
        ("detect_ms = 250", "detect_ms = 250\ntimeout = 1", "link.timeout: is not a known key"),
        ('kind = "none"', 'kind = "none"\npath = "/x"', "witness.none.path: is not a known key"),
        ("read_only = true", "read_only = true\nsize = 1", "guest.disks.0.size: is not a known key"),
    ],
)
def test_an_unknown_key_is_named_with_its_value(old: str, new: str, key: str) -> None:
    assert key in complaint(changed(old, new))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "node-a"', "name = 7", "name = 7"),
        ('run_directory = "/run/remuslike"', "run_directory = 7", "run_directory = 7"),
        ("memory_mib = 512", 'memory_mib = "512"', "guest.memory_mib = '512'"),
        ("memory_mib = 512", "memory_mib = 512.0", "guest.memory_mib = 512.0"),
        ("memory_mib = 512", "memory_mib = true", "guest.memory_mib = True"),
        ("vcpus = 2", "vcpus = [2]", "guest.vcpus"),
        ('append = "console=ttyS0 quiet"', "append = 1", "guest.append = 1"),
        ("read_only = true", 'read_only = "yes"', "guest.disks.0.read_only = 'yes'"),
        ("epoch_ms = 12.5", 'epoch_ms = "12"', "epoch.epoch_ms = '12'"),
        ('extra_arguments = ["-device", "virtio-rng-pci"]', "extra_arguments = [1]", "guest.extra_arguments"),
        ('kind = "none"', "kind = 1", "witness"),
        ('name = "node-a"', "name = 2020-01-01", "name = "),
    ],
)
def test_a_value_of_the_wrong_type_is_named(old: str, new: str, named: str) -> None:
    assert named in complaint(changed(old, new))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("memory_mib = 512", "memory_mib = 15", "guest.memory_mib = 15"),
        ("memory_mib = 512", "memory_mib = -1", "guest.memory_mib = -1"),
        ("memory_mib = 512", "memory_mib = 4194305", "guest.memory_mib = 4194305"),
        ("vcpus = 2", "vcpus = 0", "guest.vcpus = 0"),
        ("vcpus = 2", "vcpus = 256", "guest.vcpus = 256"),
        ("epoch_ms = 12.5", "epoch_ms = 0.9", "epoch.epoch_ms = 0.9"),
        ("epoch_ms = 12.5", "epoch_ms = 10001", "epoch.epoch_ms = 10001"),
        ("epoch_ms = 12.5", "epoch_ms = nan", "epoch.epoch_ms = nan"),
        ("epoch_ms = 12.5", "epoch_ms = inf", "epoch.epoch_ms = inf"),
        ("window = 3", "window = 0", "epoch.window = 0"),
        ("window = 3", 'mode = "remus"', "epoch.mode = 'remus': Input should be 'epoch', 'event-tap' or"),
        ("window = 3", 'taps = ["net", "usb"]', "epoch.taps.1 = 'usb': Input should be 'net' or 'disk'"),
        ("window = 3", "taps = []", "epoch.taps: List should have at least 1 item"),
        ("window = 3", 'taps = ["net", "net"]', "epoch: taps = ['net', 'net']: names one twice"),
        ("window = 3", "floor_ms = -1", "epoch.floor_ms = -1"),
        ("window = 3", "floor_ms = 12.6", "epoch: floor_ms = 12.6: is over epoch_ms = 12.5"),
        ("window = 3", "window = 9", "epoch.window = 9"),
        ("detect_ms = 250", "detect_ms = 49.9", "link.detect_ms = 49.9: must be at least 50, or a slow"),
        ("detect_ms = 250", "detect_ms = 60001", "link.detect_ms = 60001"),
        ("detect_ms = 250", "detect_ms = nan", "link.detect_ms = nan"),
        ('hold = "tap"', 'hold = "ifb"', "buffers.hold = 'ifb'"),
        ('ack = "durable"', 'ack = "maybe"', "link.ack = 'maybe'"),
        ('store = "file:/var/data.img"', 'store = ""', "guest.disks.1.store = ''"),
        ('store = "file:/var/data.img"', 'store = "ftp://host/data"', "store = 'ftp://host/data'"),
        ('journal = "/srv/data.journal"', "journal = true", "guest.disks.1.journal"),
        ('tracker = "soft-dirty"', 'tracker = "dirty-ring"', "guest.tracker = 'dirty-ring'"),
        ("network_limit_mib = 8", "link_mbit = 0", "buffers.link_mbit = 0"),
        ("network_limit_mib = 8", "network_limit_mib = 0", "buffers.network_limit_mib = 0"),
        ("disk_limit_mib = 16", "disk_limit_mib = 65537", "buffers.disk_limit_mib = 65537"),
        ('bridge = "br0"', 'bridge = ""', "guest.nics.0.bridge = ''"),
        ('bridge = "br0"', 'bridge = "sixteen-letters!"', "guest.nics.0.bridge"),
        ('machine = "microvm,pcie=on"', 'machine = "q35 -S"', "guest.machine = 'q35 -S'"),
        ('machine = "microvm,pcie=on"', 'machine = ""', "guest.machine = ''"),
        ('cpu = "max,+x2apic"', 'cpu = "max -S"', "guest.cpu = 'max -S'"),
        ('accelerator = "tcg"', 'accelerator = "xen"', "guest.accelerator = 'xen'"),
        ('level = "debug"', 'level = "loud"', "log.level = 'loud'"),
        ('format = "console"', 'format = "xml"', "log.format = 'xml'"),
        ('on_secondary_loss = "stall"', 'on_secondary_loss = "panic"', "on_secondary_loss = 'panic'"),
        ('kind = "none"', 'kind = "etcd"', "witness"),
    ],
)
def test_a_value_out_of_range_is_named(old: str, new: str, named: str) -> None:
    assert named in complaint(changed(old, new))


@pytest.mark.parametrize(
    "name", ["", "Node", "1node", "-node", "a" * 16, "a b", "a/b", "a_b", "näme", "a\\n"]
)
def test_names_are_short_and_plain(name: str) -> None:
    assert "must be 1 to 15 of a-z" in complaint(changed('name = "node-a"', f'name = "{name}"'))
    assert "guest.disks.1.name" in complaint(changed('name = "data"', f'name = "{name}"'))


@pytest.mark.parametrize(
    ("mac", "reason"),
    [
        ("", "must be six bytes"),
        ("52:54:00:00:00", "must be six bytes"),
        ("52:54:00:00:00:0g", "must be six bytes"),
        ("52-54-00-00-00-01", "must be six bytes"),
        ("01:00:5e:00:00:01", "is a multicast address"),
        ("ff:ff:ff:ff:ff:ff", "is a multicast address"),
    ],
)
def test_addresses_of_interfaces_are_unicast(mac: str, reason: str) -> None:
    message = complaint(changed("52:54:00:AB:cd:01", mac))
    assert f"guest.nics.0.mac = '{mac}': {reason}" in message


@pytest.mark.parametrize(
    "address", ["", "host", ":7000", "host:", "host:0", "host:65536", "host:-1", "host:http", "host:1e3"]
)
def test_addresses_of_hosts_have_a_port(address: str) -> None:
    message = complaint(changed("[fd00::2]:7000", address))
    assert f"link.address = '{address}': must be HOST:PORT" in message
    message = complaint(changed("10.0.0.3:7001", address))
    assert f"link.successor = '{address}': must be HOST:PORT" in message


@pytest.mark.parametrize("port", ["²", "٣", "7000\\n"])
def test_ports_are_plain_digits(port: str) -> None:
    assert "link.address" in complaint(changed("[fd00::2]:7000", f"host:{port}"))


def test_disks_and_interfaces_have_names_of_their_own() -> None:
    assert "disks.name: 'root' is there twice" in complaint(changed('name = "data"', 'name = "root"'))
    twice = FULL + '\n[[guest.nics]]\nmac = "52:54:00:ab:CD:01"\nbridge = "br1"\n'
    assert "nics.mac: '52:54:00:ab:cd:01' is there twice" in complaint(twice)


def test_there_are_limits_to_disks_and_interfaces() -> None:
    disks = "".join(f'[[guest.disks]]\nname = "d{n}"\nstore = "/d"\n' for n in range(17))
    assert "guest.disks" in complaint(MINIMAL + disks)
    nics = "".join(f'[[guest.nics]]\nmac = "52:54:00:00:00:0{n}"\nbridge = "b"\n' for n in range(9))
    assert "guest.nics" in complaint(MINIMAL + nics)


def test_an_initrd_needs_a_kernel() -> None:
    assert "initrd: needs a kernel" in complaint(changed('kernel = "/boot/vmlinuz"\n', ""))


def test_the_run_directory_leaves_room_for_sockets() -> None:
    fits = "/" + "d" * (RUN_DIRECTORY_BYTES_MAX - 1)
    assert parse(changed("/run/remuslike", fits)).run_directory == Path(fits)
    longest = parse(changed("/run/remuslike", fits)).run_directory / f"disk-{'n' * 15}.sock"
    assert len(bytes(longest)) < 108  # unix(7): sun_path with its terminator
    assert "run_directory" in complaint(changed("/run/remuslike", fits + "d"))
    assert "run_directory" in complaint(changed("/run/remuslike", "/" + "ü" * (RUN_DIRECTORY_BYTES_MAX - 2)))


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ('["-device", "VGA"]', "'VGA' is refused: has RAM of its own"),
        ('["-m", "1G"]', "'-m' is refused: set guest.memory_mib instead"),
        ('["--drive", "file=x"]', "'--drive' is refused"),
        ('["-object", "memory-backend-ram,id=x,size=1M"]', "memory-backend-ram"),
    ],
)
@pytest.mark.parametrize("key", ["extra_arguments", "local_arguments"])
def test_arguments_that_would_break_capture_are_refused(key: str, arguments: str, refused: str) -> None:
    old = {
        "extra_arguments": 'extra_arguments = ["-device", "virtio-rng-pci"]',
        "local_arguments": 'local_arguments = ["-serial", "file:/tmp/log"]',
    }[key]
    assert refused in complaint(changed(old, f"{key} = {arguments}"))


def test_all_mistakes_are_named_at_once() -> None:
    message = complaint(changed("vcpus = 2", "vcpus = 0", changed("window = 3", "window = 0")))
    assert "guest.vcpus = 0" in message
    assert "epoch.window = 0" in message


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["name = ", "name = 1\nname = 2", "[", "\0", "= 1", '"""', "a.b = 1\na = 1"])
def test_what_is_not_toml_is_named_with_its_place(text: str) -> None:
    assert "is not TOML" in complaint(text)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(MINIMAL)
    assert load_settings(path) == parse(MINIMAL)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigurationError, match="can't be read") as caught:
            load_settings(path)
        assert str(path) in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigurationError, match=r"node\.toml: can't be read"):
        load_settings(path)


repeatable = settings(derandomize=True, deadline=None, max_examples=150)

TOML_VALUES = st.sampled_from(
    [
        "0",
        "-1",
        "1e400",
        "nan",
        "true",
        '""',
        '"x"',
        "[]",
        "{}",
        "[[]]",
        "1979-05-27",
        "07:32:00",
        '"\\u0000"',
    ]
)
LINES = [line for line in FULL.splitlines() if "=" in line]


@repeatable
@given(text=st.text(max_size=200))
def test_any_text_is_settings_or_a_configuration_error(text: str) -> None:
    try:
        parse(text)
    except ConfigurationError as error:
        assert str(error).startswith("node.toml: ")


@repeatable
@given(line=st.sampled_from(LINES), value=TOML_VALUES)
def test_any_value_of_any_key_is_settings_or_a_configuration_error(line: str, value: str) -> None:
    key = line.partition(" = ")[0]
    try:
        parse(FULL.replace(line, f"{key} = {value}"))
    except ConfigurationError as error:
        assert str(error).startswith("node.toml: ")


@repeatable
@given(position=st.integers(0, len(FULL)), junk=st.text(max_size=5))
def test_any_damage_to_a_file_is_settings_or_a_configuration_error(position: int, junk: str) -> None:
    try:
        parse(FULL[:position] + junk + FULL[position + len(junk) :])
    except ConfigurationError as error:
        assert str(error).startswith("node.toml: ")


def test_deep_nesting_is_not_toml() -> None:
    assert "TOML" in complaint("a = " + "[" * 5000)


def test_a_zero_byte_is_named_wherever_it_stands() -> None:
    with pytest.raises(ConfigurationError, match=r"guest\.disks\.0\.store = '/a.x00b': contains a zero byte"):
        parse_settings('[[guest.disks]]\nstore = "/a\\u0000b"', "here")
