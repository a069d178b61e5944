"""What the guest is made of: packages, kernel modules, folders, and the files in guest/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GUEST_DIRECTORY = Path(__file__).parent / "guest"

EPOCH_SECONDS = 1_700_000_000
"""Every time in the image. An hour of build would make two builds of the same packages differ."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Names of Debian packages, of kernel modules, and paths in the unpacked packages."""

    kernel_package: str = "linux-image-cloud-amd64"

    packages: tuple[str, ...] = (
        "busybox-static",
        "dnsmasq-base",
        "fio",
        "iperf3",
        "perl-base",
        "redis-server",
        "redis-tools",
        "sqlite3",
    )

    excluded: frozenset[str] = frozenset(
        {
            "adduser",
            "debconf",
            "dmsetup",
            "init-system-helpers",
            "initramfs-tools",
            "kmod",
            "libpam-modules",
            "linux-base",
            "lsb-base",
            "passwd",
            "python3",
            "sysvinit-utils",
        }
    )
    """Dependencies that only serve installation; neither they nor what they need is fetched."""

    programs: tuple[str, ...] = (
        "usr/bin/fio",
        "usr/bin/iperf3",
        "usr/bin/perl",
        "usr/bin/redis-benchmark",
        "usr/bin/redis-check-aof",
        "usr/bin/redis-check-rdb",
        "usr/bin/redis-cli",
        "usr/bin/redis-server",
        "usr/bin/sqlite3",
        "usr/sbin/dnsmasq",
    )

    loaded_at_run_time: tuple[str, ...] = ("usr/lib/x86_64-linux-gnu/libgcc_s.so.1",)
    """Libraries that no ELF header names: glibc opens this one when a thread is cancelled."""

    initramfs_modules: tuple[str, ...] = ("virtio_pci", "virtio_mmio", "virtio_blk", "squashfs", "overlay")
    """What it takes to reach the root image; q35 needs the first, microvm the second."""

    root_modules: tuple[str, ...] = ("virtio_net",)

    initramfs_applets: tuple[str, ...] = (
        "echo",
        "insmod",
        "mkdir",
        "mount",
        "poweroff",
        "sh",
        "switch_root",
    )

    directories: tuple[str, ...] = ("data", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var")

    links: tuple[tuple[str, str], ...] = (
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("sbin", "usr/sbin"),
        ("etc/mtab", "../proc/mounts"),
        ("var/run", "../run"),
        ("var/tmp", "../tmp"),
    )

    guest_files: tuple[tuple[str, str, int], ...] = (
        ("usr/sbin/guest-init", "guest-init.sh", 0o755),
        ("usr/bin/agent", "agent.sh", 0o755),
        ("usr/bin/stop-guest", "stop-guest.sh", 0o755),
        ("usr/bin/udp-echo", "udp-echo.pl", 0o755),
        ("etc/dnsmasq.conf", "dnsmasq.conf", 0o644),
        ("etc/redis.conf", "redis.conf", 0o644),
        ("etc/passwd", "passwd", 0o644),
        ("etc/group", "group", 0o644),
        ("etc/hosts", "hosts", 0o644),
    )
    """Path in the root, file in guest/, mode."""

    initramfs_init: str = "initramfs-init.sh"
