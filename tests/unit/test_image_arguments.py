"""The guest's kernel command line."""

from __future__ import annotations

import pytest

from remuslike.image.arguments import LENGTH_LIMIT, kernel_command_line
from remuslike.image.errors import CommandLineError

POOL = ("10.77.0.9", "10.77.0.99")
DHCP = {"service": "dhcp", "addresses": ["10.77.0.2/24"]}


def test_everything_at_once() -> None:
    line = kernel_command_line(
        addresses=["10.77.0.2/24", "10.78.0.2/16"],
        gateway="10.77.0.1",
        data_disk="vdb",
        service="redis",
        tsc_khz=2_600_000,
        extra=["nokaslr"],
    )
    assert line.split() == [
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "reboot=t",
        "mitigations=off",
        "remus.address=10.77.0.2/24",
        "remus.address1=10.78.0.2/16",
        "remus.gateway=10.77.0.1",
        "remus.data=vdb",
        "remus.service=redis",
        "tsc_early_khz=2600000",
        "nokaslr",
    ]


def test_a_guest_that_leases_addresses() -> None:
    line = kernel_command_line(
        addresses=["10.77.0.2/16"], service="dhcp", dhcp_pool=("10.77.16.0", "10.77.63.255")
    )
    assert line.endswith(" remus.address=10.77.0.2/16 remus.service=dhcp remus.pool=10.77.16.0,10.77.63.255")


def test_the_plainest_guest() -> None:
    assert kernel_command_line().endswith(" remus.service=none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"addresses": ["10.77.0.2"]}, r"addresses\[0\] is '10.77.0.2'"),
        ({"addresses": ["10.77.0.2/24", "10.77.0.300/24"]}, r"addresses\[1\] is '10.77.0.300/24'"),
        ({"addresses": ["10.77.0.2/24 init=/bin/sh"]}, r"addresses\[0\]"),
        ({"gateway": "gate"}, "gateway is 'gate'"),
        ({"data_disk": "/dev/vdb"}, "data_disk is '/dev/vdb'"),
        ({"service": "mysql"}, "service is 'mysql'; use redis, dhcp, none"),
        ({"service": "dhcp"}, "dhcp_pool is None and service is 'dhcp'; give a pool to dhcp"),
        ({"dhcp_pool": POOL}, "service is 'none'; give a pool to dhcp, and to nothing else"),
        ({"service": "dhcp", "dhcp_pool": POOL}, "dhcp_pool without addresses: give eth0"),
        ({**DHCP, "dhcp_pool": ("10.77.0.9", "10.77.0.8")}, "both hosts of 10.77.0.0/24"),
        ({**DHCP, "dhcp_pool": ("10.77.0.0", "10.77.0.8")}, "both hosts of 10.77.0.0/24"),
        ({**DHCP, "dhcp_pool": ("10.77.0.9", "10.77.0.255")}, "both hosts of 10.77.0.0/24"),
        ({**DHCP, "dhcp_pool": ("10.77.0.9", "10.77.1.9")}, "both hosts of 10.77.0.0/24"),
        ({**DHCP, "dhcp_pool": ("10.77.0.9", "12h")}, "dhcp_pool is .*'12h'"),
        ({"tsc_khz": 2600}, "tsc_khz is 2600; give 100000 to"),
        ({"extra": ["two words"]}, "extra has 'two words'"),
        ({"extra": [""]}, "extra has ''"),
        ({"extra": ["a\n"]}, "extra has"),
        ({"extra": ["x" * LENGTH_LIMIT]}, f"keeps {LENGTH_LIMIT} bytes"),
    ],
)
def test_a_value_that_does_not_fit_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CommandLineError, match=message):
        kernel_command_line(**arguments)  # type: ignore[arg-type]
