"""netbuf.tap: names, and what a machine without TUN says. (Real TAPs: tests/integration.)"""

from pathlib import Path

import pytest

from netbuf.errors import InterfaceNameError, TunDeviceError
from netbuf.tap import GuestTap, Tap, checked_prefix


@pytest.mark.parametrize("name", ["r", "rl0", "vm-7.lan_", "a" * 14])
def test_names_that_leave_room_for_a_letter_are_taken(name: str) -> None:
    assert checked_prefix(name) == name


@pytest.mark.parametrize("name", ["", "a" * 15, "a/b", "a b", "rl%d", "é", "rl0\n"])
def test_other_names_are_refused_by_value(name: str) -> None:
    with pytest.raises(InterfaceNameError) as refusal:
        GuestTap.create(name)
    assert repr(name) in str(refusal.value)


def test_a_missing_tun_device_is_named(tmp_path: Path) -> None:
    device = str(tmp_path / "tun")
    with pytest.raises(TunDeviceError, match=device):
        Tap("rl0g", vnet_header=True, device=device)


@pytest.mark.parametrize("device", ["/dev/null", "/"])
def test_what_is_no_tun_device_is_named(device: str) -> None:
    with pytest.raises(TunDeviceError, match="load the kernel module 'tun'"):
        Tap("rl0g", vnet_header=True, device=device)
