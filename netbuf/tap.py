"""TAP devices: interfaces whose other end is a descriptor of this process (linux/if_tun.h).

They are not persistent: a TAP is gone when the last descriptor of it is closed, at the latest by the kernel
when the process dies. So no crash leaves one behind, and no held frame survives its holder (P4).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from contextlib import suppress
from typing import Protocol

from netbuf.errors import (
    InterfaceNameError,
    KernelRefusedError,
    NameClashError,
    NetbufError,
    PrivilegeError,
    TunDeviceError,
)

TUN_DEVICE = "/dev/net/tun"

# struct virtio_net_hdr_mrg_rxbuf of linux/virtio_net.h: the header that modern virtio-net guests use, so that
# one goes through all three TAPs as it is.
VNET_HEADER_BYTES = 12

# The kernel's own limit of a GSO frame (GSO_LEGACY_MAX_SIZE) is 65,536 bytes from the Ethernet header on; a
# VLAN tag and the vnet header come on top. Twice that leaves no frame that could be cut short.
FRAME_BYTES_MAX = 128 * 1024

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
_TUN_F_TSO_ECN = 0x08

_IFREQ = struct.Struct("16sH22s")  # struct ifreq: ifr_name, ifr_flags, the rest of the union
_NAME_BYTES_MAX = 15  # IFNAMSIZ without its terminator
_PREFIX = re.compile(r"[A-Za-z0-9_.-]+")
GUEST_SUFFIX = "g"
TAP_HOLD_SUFFIX = "h"
OUTLET_SUFFIX = "o"


class Tap:
    """One single-queue TAP with non-blocking, close-on-exec descriptor; made down, without an address."""

    __slots__ = ("_descriptor", "name")

    def __init__(self, name: str, *, vnet_header: bool, device: str = TUN_DEVICE) -> None:
        """Create interface `name` in this network namespace; a %d in it becomes the lowest free number.

        With `vnet_header` every frame is preceded by VNET_HEADER_BYTES, and GSO frames come whole.
        Raises `NameClashError`, `PrivilegeError`, `TunDeviceError` or `KernelRefusedError`.
        """
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL | (_IFF_VNET_HDR if vnet_header else 0)
        self._descriptor = -1
        try:
            self._descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            answer = fcntl.ioctl(self._descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags, b""))
            if vnet_header:
                fcntl.ioctl(self._descriptor, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER_BYTES))
                offloads = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
                fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, offloads)
        except OSError as error:
            self.close()
            raise _refused(error, name, device) from error
        interface: bytes = _IFREQ.unpack(answer)[0]
        self.name = interface.rstrip(b"\0").decode()

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor; the interface is gone unless another process has a copy. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # Linux has freed the descriptor even when close reports an error.
            with suppress(OSError):
                os.close(descriptor)


class Guest(Protocol):
    """A guest's tap, down and in no bridge; the names of a hold's interfaces begin with `prefix`."""

    @property
    def name(self) -> str: ...
    @property
    def prefix(self) -> str: ...


class GuestTap:
    """The TAP that QEMU opens through an inherited descriptor (`-netdev tap,fd=N`).

    It stays down until a hold has redirected its ingress: so no frame of the guest ever reaches the
    host's own network stack. It is in no bridge and has no address.
    """

    __slots__ = ("_tap", "prefix")

    def __init__(self, tap: Tap) -> None:
        """Wrap `tap`, whose name ends in the guest suffix; `create` makes both."""
        self._tap = tap
        self.prefix = tap.name.removesuffix(GUEST_SUFFIX)

    @classmethod
    def create(cls, name: str | None = None, vnet_header: bool = True) -> GuestTap:
        """Create the guest's TAP in the current network namespace.

        `name` is the prefix that this guest interface and those of its hold share ("rl0" gives rl0g, rl0h and
        rl0o); None takes the first free one of rl0, rl1 and so on. Hand `fileno()` to QEMU by `pass_fds`.
        Raises `InterfaceNameError` and what `Tap` raises.
        """
        prefix = "rl%d" if name is None else checked_prefix(name)
        return cls(Tap(prefix + GUEST_SUFFIX, vnet_header=vnet_header))

    @property
    def name(self) -> str:
        """The interface's name."""
        return self._tap.name

    def fileno(self) -> int:
        """Our descriptor, non-blocking and close-on-exec; -1 once closed."""
        return self._tap.fileno()

    def close(self) -> None:
        """Close our descriptor; the interface lives on as long as QEMU has a copy. Idempotent."""
        self._tap.close()


def checked_prefix(name: str) -> str:
    """`name` if interface names can be made of it by one more letter, else `InterfaceNameError`."""
    length_max = _NAME_BYTES_MAX - 1
    if len(name) > length_max or not _PREFIX.fullmatch(name):
        raise InterfaceNameError(
            f"name={name!r} can't begin an interface's name: use 1 to {length_max} letters, digits or _.-"
        )
    return name


def _refused(error: OSError, name: str, device: str) -> NetbufError:
    match error.errno:
        case errno.EBUSY | errno.EEXIST:
            return NameClashError(f"interface {name!r} exists already; delete it or choose another name")
        case errno.EPERM | errno.EACCES:
            return PrivilegeError(f"creating interface {name!r} needs CAP_NET_ADMIN; run as root or grant it")
        case errno.ENOENT | errno.ENXIO | errno.ENODEV | errno.ENOTTY | errno.EISDIR:
            return TunDeviceError(f"{device} is missing or no TUN device; load the kernel module 'tun'")
        case _:
            return KernelRefusedError(f"creating {name!r} failed: {error.strerror}; see the kernel log")
