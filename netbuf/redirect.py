"""Network set-up over rtnetlink: quiet interfaces, redirects between them, bridge ports, loss counters.

Every refusal of the kernel becomes one named error that says which interface it was about and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netbuf.errors import (
    BridgeError,
    InterfaceVanishedError,
    KernelModuleError,
    KernelRefusedError,
    NameClashError,
    NetbufError,
    PrivilegeError,
)

# How many frames a TAP keeps for its reader. About 0.1 s of full-size frames at 1 Gbit/s, which is longer
# than any checkpoint pauses a guest or any turn of the event loop lasts; the ring itself takes 80 KiB.
RING_FRAMES = 10_000

# IPv6 stays away from an interface that can't carry its smallest packet (RFC 8200, section 5: 1280 bytes).
# On a hold this keeps a host that is a router from reporting its multicast groups among the guest's frames.
# An MTU binds only what the host itself sends: redirected frames of any size pass.
NO_IPV6_MTU_BYTES = 1279

_ADDRESS_GENERATION_NONE = 1  # IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
_ETH_P_ALL = 3  # linux/if_ether.h
_ROOT = 0xFFFFFFFF  # TC_H_ROOT of linux/pkt_sched.h
_ANY_CLASS = 0x10001  # u32 wants to name a class; the action decides before anybody looks at it


class Hook(IntEnum):
    """Where a redirect catches frames (TC_H_CLSACT with TC_H_MIN_INGRESS or TC_H_MIN_EGRESS)."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Bridge:
    """A bridge of this network namespace; `mtu_bytes` is what its ports should carry."""

    name: str
    index: int
    mtu_bytes: int


class Network:
    """The interfaces of the network namespace in which this object was made."""

    def __init__(self, netlink: Any = None) -> None:
        """Open an rtnetlink socket; `netlink` stands in for pyroute2's `IPRoute`."""
        self._netlink = IPRoute() if netlink is None else netlink

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def index(self, interface: str) -> int:
        """The index of `interface`. Raises `InterfaceVanishedError` if there is none."""
        found = self._netlink.link_lookup(ifname=interface)
        if not found:
            raise InterfaceVanishedError(f"interface {interface!r} is gone; find out who deletes it")
        return int(found[0])

    def bridge(self, name: str) -> Bridge:
        """The bridge `name`. Raises `BridgeError` if there is none, or if the interface is none."""
        found = self._netlink.link_lookup(ifname=name)
        if not found:
            raise BridgeError(f"bridge={name!r} doesn't exist; create it: ip link add {name} type bridge")
        (link,) = self._netlink.link("get", index=found[0])
        information = link.get_attr("IFLA_LINKINFO")
        kind = information.get_attr("IFLA_INFO_KIND") if information else None
        if kind != "bridge":
            raise BridgeError(f"bridge={name!r} is an interface of kind {kind!r}; name one of kind 'bridge'")
        return Bridge(name, int(found[0]), int(link.get_attr("IFLA_MTU")))

    def quieten(self, interface: str, *, mtu_bytes: int) -> None:
        """Make a TAP of ours fit to carry a guest's frames: the host itself sends none over it.

        No IPv6 address is generated, so nothing is solicited or announced. No queueing discipline: a frame
        goes from one TAP's writer into the other's ring within the write, on whatever processor, which is
        what makes a seal complete. Prerequisite: the interface is down.
        """
        index = self.index(interface)
        with _refusals(f"setting up interface {interface!r}"):
            self._netlink.link("set", index=index, mtu=mtu_bytes, txqlen=RING_FRAMES)
            self._netlink.tc("replace", "noqueue", index=index, parent=_ROOT, handle=0)
        inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDRESS_GENERATION_NONE)]}
        try:
            self._netlink.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", inet6)]})
        except NetlinkError as error:
            if error.code != errno.EAFNOSUPPORT:  # a kernel without IPv6 generates no address either
                raise _refused(error, f"silencing interface {interface!r}") from error

    def redirect(self, source: str, hook: Hook, target: str) -> None:
        """Every frame that passes `hook` of `source` goes out of `target` and nowhere else.

        If `target` is down or gone the frame is dropped (P4). A u32 filter without keys matches every frame,
        however short; unlike matchall it is in every kernel that we have met.
        Raises `KernelModuleError` by name, `NameClashError` if somebody else has filters on `source`.
        """
        source_index, target_index = self.index(source), self.index(target)
        about = f"redirecting {source!r} to {target!r}"
        with _refusals(about, module="sch_ingress (clsact)"):
            self._netlink.tc("add", "clsact", index=source_index)
        action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target_index}
        with _refusals(about, module="cls_u32 or act_mirred"):
            self._netlink.tc(
                "add-filter",
                "u32",
                index=source_index,
                parent=int(hook),
                protocol=_ETH_P_ALL,
                prio=1,
                target=_ANY_CLASS,
                keys=[],
                action=[action],
            )

    def undelivered(self, source_index: int, hook: Hook) -> int:
        """How many frames a redirect could not deliver: the target's ring was full, or it was down or gone.

        The action counts them as overlimits; a full ring's share of them is also the target's `tx_dropped`.
        """
        with _refusals(f"reading the filter of interface {source_index}"):
            filters = list(self._netlink.get_filters(index=source_index, parent=int(hook)))
        return sum(_overlimits(entry) for entry in filters)

    def enslave(self, interface: str, bridge: Bridge) -> None:
        """Make `interface` a port of `bridge`.

        A bridge without an address of its own takes the lowest of its ports. So that the bridge keeps the one
        that its neighbours know, the port's address begins with fe.
        """
        index = self.index(interface)
        with _refusals(f"adding {interface!r} to bridge {bridge.name!r}"):
            (link,) = self._netlink.link("get", index=index)
            address = "fe" + link.get_attr("IFLA_ADDRESS")[2:]
            self._netlink.link("set", index=index, address=address)
            self._netlink.link("set", index=index, master=bridge.index)

    def up(self, interface: str) -> None:
        """Bring `interface` up."""
        index = self.index(interface)
        with _refusals(f"bringing {interface!r} up"):
            self._netlink.link("set", index=index, state="up")


def _overlimits(entry: Any) -> int:
    """The overlimits of all actions of one filter message; a u32 dump also has messages without any."""
    options = entry.get_attr("TCA_OPTIONS")
    actions = options.get_attr("TCA_U32_ACT") if hasattr(options, "get_attr") else None
    if actions is None:
        return 0
    statistics = [action.get_attr("TCA_ACT_STATS") for _, action in actions["attrs"]]
    return sum(int(each.get_attr("TCA_STATS_QUEUE")["overlimits"]) for each in statistics if each)


@contextmanager
def _refusals(about: str, *, module: str | None = None) -> Iterator[None]:
    """Name what the kernel refuses; ENOENT of traffic control means that `module` is missing."""
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.ENOENT and module is not None:
            raise KernelModuleError(
                f"{about}: this kernel has no {module}; install the distribution's full kernel modules"
            ) from error
        raise _refused(error, about) from error


def _refused(error: NetlinkError, about: str) -> NetbufError:
    match error.code:
        case errno.EPERM | errno.EACCES:
            return PrivilegeError(f"{about} needs CAP_NET_ADMIN; run as root or grant it")
        case errno.ENODEV:
            return InterfaceVanishedError(f"{about}: the interface is gone; find out who deletes it")
        case errno.EEXIST:
            return NameClashError(f"{about}: it has filters already; create a new guest tap for a new hold")
        case _:
            return KernelRefusedError(f"{about} failed: {error}; see the kernel log")
