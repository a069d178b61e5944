"""The kernel command line that tells the guest what to do; guest/guest-init.sh is its reader. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface
from typing import Literal, get_args

from remuslike.image.errors import CommandLineError

READY_LINE = "remus-guest ready"
"""On the console when network, data disk, service and agent are up."""

STOPPED_LINE = "remus-guest stopped"
"""On the console when `stop-guest` has left the data disk clean, just before the power goes off."""

AGENT_PORT = 2222
SERVICE_PORT = 6379

ECHO_PORT = 7
"""UDP, of the service "dhcp": WORD is answered with "NUMBER WORD", which is a line of ECHO_LOG by then."""

ECHO_LOG = "/data/echo.log"
LEASE_FILE = "/run/dnsmasq.leases"
"""What the service "dhcp" knows, in the guest; LEASE_FILE is dnsmasq's: expiry, MAC, address, two names."""

Service = Literal["redis", "dhcp", "none"]

BASE_ARGUMENTS = ("console=ttyS0", "quiet", "panic=-1", "reboot=t", "mitigations=off")
"""A panic reboots at once, so that QEMU's -no-reboot ends it; by triple fault, since microvm's firmware hangs
at the other ways. Mitigations protect nothing in this guest."""

LENGTH_LIMIT = 2047
"""Bytes that an x86 kernel keeps of its command line (COMMAND_LINE_SIZE is 2048 with the zero)."""

TSC_MIN_KHZ, TSC_MAX_KHZ = 100_000, 10_000_000
"""0.1 to 10 GHz: a clock outside is a mistake in the unit."""

_DISK = re.compile(r"[a-z]+[0-9]*")


def kernel_command_line(
    *,
    addresses: Sequence[str] = (),
    gateway: str | None = None,
    data_disk: str | None = None,
    service: Service = "none",
    dhcp_pool: tuple[str, str] | None = None,
    tsc_khz: int | None = None,
    extra: Sequence[str] = (),
) -> str:
    """What to give to QEMU's -append.

    `addresses` are those of eth0, eth1 ... as ADDRESS/PREFIX; `data_disk` is a device name such as "vdb";
    `dhcp_pool` are the first and the last address that the service "dhcp" gives away, in eth0's network;
    `tsc_khz` is `host_tsc_khz()` of the host that boots the guest, without which microvm under TCG doesn't
    boot reliably; `extra` are further arguments of the kernel. Raises CommandLineError.
    """
    words = list(BASE_ARGUMENTS)
    for number, address in enumerate(addresses):
        words.append(f"remus.address{number or ''}={_interface(number, address)}")
    if gateway is not None:
        words.append(f"remus.gateway={_address(gateway)}")
    if data_disk is not None:
        if not _DISK.fullmatch(data_disk):
            raise CommandLineError(f"data_disk is {data_disk!r}; give a device name of the guest such as vdb")
        words.append(f"remus.data={data_disk}")
    if service not in get_args(Service):
        raise CommandLineError(f"service is {service!r}; use {', '.join(get_args(Service))}")
    words.append(f"remus.service={service}")
    if (service == "dhcp") != (dhcp_pool is not None):
        raise CommandLineError(
            f"dhcp_pool is {dhcp_pool!r} and service is {service!r}; give a pool to dhcp, and to nothing else"
        )
    if dhcp_pool is not None:
        words.append(f"remus.pool={_pool(dhcp_pool, addresses)}")
    if tsc_khz is not None:
        if not TSC_MIN_KHZ <= tsc_khz <= TSC_MAX_KHZ:
            raise CommandLineError(f"tsc_khz is {tsc_khz}; give {TSC_MIN_KHZ} to {TSC_MAX_KHZ}, or None")
        words.append(f"tsc_early_khz={tsc_khz}")
    for argument in extra:
        if not argument.isascii() or not argument.isprintable() or " " in argument or not argument:
            raise CommandLineError(f"extra has {argument!r}; give one printable ASCII word per argument")
        words.append(argument)
    line = " ".join(words)
    if len(line) > LENGTH_LIMIT:
        raise CommandLineError(
            f"the kernel keeps {LENGTH_LIMIT} bytes of its command line, this has {len(line)}; shorten extra"
        )
    return line


def _interface(number: int, address: str) -> str:
    try:
        if "/" not in address:
            raise ValueError
        return IPv4Interface(address).with_prefixlen
    except ValueError:
        raise CommandLineError(
            f"addresses[{number}] is {address!r}; give ADDRESS/PREFIX such as 10.77.0.2/24"
        ) from None


def _address(gateway: str) -> str:
    try:
        return str(IPv4Address(gateway))
    except ValueError:
        raise CommandLineError(f"gateway is {gateway!r}; give an IPv4 address such as 10.77.0.1") from None


def _pool(pool: tuple[str, str], addresses: Sequence[str]) -> str:
    if not addresses:
        raise CommandLineError("dhcp_pool without addresses: give eth0, on which dnsmasq serves, an address")
    network = IPv4Interface(addresses[0]).network
    try:
        first, last = (IPv4Address(text) for text in pool)
        if not network.network_address < first <= last < network.broadcast_address:
            raise ValueError
    except ValueError:
        raise CommandLineError(
            f"dhcp_pool is {pool!r}; give the first and the last of its addresses, both hosts of {network}"
        ) from None
    return f"{first},{last}"
