"""remuslike.synthetic.rates and .command: what the guest is told, and by whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from remuslike.config import GuestSettings
from remuslike.guest.command import Descriptors, build_command
from remuslike.synthetic import Rates, RatesError, SyntheticCommandError, program_path
from remuslike.synthetic.command import Disk, Nic, parse_command
from remuslike.synthetic.rates import parse_append

RATES = Rates(dirty_pages_s=2000, working_set_mib=8, frames_s=10, address="10.77.0.2/24", seed=5)


def test_rates_are_words_and_back() -> None:
    assert parse_append(RATES.append()) == RATES
    assert parse_append("console=ttyS0 quiet") == Rates()
    assert Rates().append() == ""
    assert RATES.append().split()[0] == "synthetic.dirty_pages_s=2000"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dirty_pages_s=many", r"synthetic\.dirty_pages_s = 'many': must be a whole number"),
        ("dirty_pages_s=-1", r"synthetic\.dirty_pages_s = '-1': must be a whole number"),
        ("dirty_pages_s", r"synthetic\.dirty_pages_s = '': must be a whole number"),
        ("dirty_pages_s=1000001", r"synthetic\.dirty_pages_s = 1000001: must be from 0 to 1000000"),
        ("working_set_mib=0", r"synthetic\.working_set_mib = 0: must be from 1"),
        ("frame_bytes=63", r"synthetic\.frame_bytes = 63: must be from 64 to 1514"),
        ("disk_write_bytes=1000", r"synthetic\.disk_write_bytes = 1000: must be a multiple of 512"),
        ("frames_s=1", r"synthetic\.frames_s = 1: needs synthetic\.address"),
        ("address=10.77.0.2", r"synthetic\.address = '10\.77\.0\.2': must be ADDRESS/LENGTH"),
        ("address=10.77.0.2/31", r"synthetic\.address = '10\.77\.0\.2/31': must be"),
        ("address=guest/24", r"synthetic\.address = 'guest/24': "),
        ("speed=1", r"synthetic\.speed = '1': there is no such key; there are dirty_pages_s, "),
        ("seed=1 synthetic.seed=2", r"synthetic\.seed = '2': is there twice"),
    ],
)
def test_a_word_that_cannot_be_followed_is_named(words: str, message: str) -> None:
    with pytest.raises(RatesError, match=message):
        parse_append(f"quiet synthetic.{words}")


def command_line(
    *, standby: bool = False, disks: int = 1, nics: int = 1, append: str | None = None
) -> list[str]:
    """As the daemons write it, without the program."""
    guest = GuestSettings.model_validate(
        {
            "memory_mib": 64,
            "append": RATES.append(),
            "qemu": str(program_path()),
            "disks": [
                {"name": "iso", "store": "/iso", "read_only": True},
                *({"name": f"data{number}", "store": f"/d{number}"} for number in range(disks)),
            ],
            "nics": [{"mac": f"52:54:00:00:00:{number:02x}", "bridge": "br0"} for number in range(nics)],
        }
    )
    sockets = [Path(f"/run/a,b/{number}.sock") for number in range(disks)]
    descriptors = Descriptors(10, 11, 12, list(range(20, 20 + nics)))
    return build_command("node-a", guest, descriptors, sockets, standby=standby)[1:]


@pytest.mark.parametrize("standby", [False, True])
def test_the_daemons_command_line_is_understood(standby: bool) -> None:
    command = parse_command(command_line(standby=standby))
    assert command.rates == RATES
    assert (command.memory, command.memory_bytes, command.monitor) == (10, 64 << 20, 11)
    assert command.descriptor_sets == {1: 12}
    assert command.nic == Nic(20, bytes.fromhex("525400000000"))
    assert command.disk == Disk("data0", "/run/a,b/0.sock")
    assert command.standby == standby


def test_a_guest_may_have_neither_disk_nor_interface() -> None:
    command = parse_command(command_line(disks=0, nics=0))
    assert (command.disk, command.nic) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-object is missing: this program is started by a daemon"),
        (["-object", "rng-random"], "-object 'rng-random': expected"),
        (command_line(disks=2), r"2 writable guest\.disks"),
        (command_line(nics=2), r"2 interfaces in guest\.nics"),
    ],
)
def test_another_command_line_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SyntheticCommandError, match=message):
        parse_command(arguments)
