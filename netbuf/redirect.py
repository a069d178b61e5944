"""Network set-up over rtnetlink: quiet interfaces, redirects, gates, bridge ports, loss counters.

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
from netbuf.plugwire import PLUG_HANDLE

# How many frames a TAP keeps for its reader. About 0.1 s of full-size frames at 1 Gbit/s, which is longer
# than any checkpoint pauses a guest or any turn of the event loop lasts; the ring itself takes 80 KiB.
RING_FRAMES = 10_000

# IPv6 stays away from an interface that can't carry its smallest packet (RFC 8200, section 5: 1280 bytes).
# On a hold this keeps a host that is a router from reporting its multicast groups among the guest's frames.
# An MTU binds only what the host itself sends: redirected frames of any size pass.
NO_IPV6_MTU_BYTES = 1279

_ADDRESS_GENERATION_NONE = 1  # IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
# By its address an IFB is known as a hold of ours; it is on no LAN, so all have the same.
HOLD_ADDRESS = "fe:6e:65:74:62:66"

_FULL_KERNEL = "install the distribution's full kernel (Debian: linux-image-amd64) and its modules"

_REACHABLE = 0x02  # NUD_REACHABLE of linux/neighbour.h: an entry that ages
_ETH_P_ALL = 3  # linux/if_ether.h
_ROOT = 0xFFFFFFFF  # TC_H_ROOT of linux/pkt_sched.h
_ANY_CLASS = 0x10001  # u32 wants to name a class; the action decides before anybody looks at it

# The lower comes first. "na" and "nb" in ASCII: by its priority a redirect is known as one of ours.
_GATE_PRIORITY = 0x6E61
_REDIRECT_PRIORITY = 0x6E62
_GATE_NAME = "netbuf-gate"


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


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of this network namespace; `master` is the index of its bridge, 0 if it has none."""

    name: str
    index: int
    kind: str
    address: str
    alias: str
    master: int


@dataclass(frozen=True, slots=True)
class Undelivered:
    """Frames that went nowhere: what a redirect, and what the gate before it could not deliver."""

    redirected_items: int = 0
    passed_items: int = 0

    @property
    def items(self) -> int:
        """Both."""
        return self.redirected_items + self.passed_items


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

    def is_there(self, interface: str, index: int) -> bool:
        """Whether `interface` still is the one with `index`."""
        return bool(self._netlink.link_lookup(ifname=interface) == [index])

    def bridge(self, name: str) -> Bridge:
        """The bridge `name`. Raises `BridgeError` if there is none, or if the interface is none."""
        found = self._netlink.link_lookup(ifname=name)
        if not found:
            raise BridgeError(f"bridge={name!r} doesn't exist; create it: ip link add {name} type bridge")
        with _refusals(f"looking at bridge {name!r}"):
            (link,) = self._netlink.link("get", index=found[0])
        information = link.get_attr("IFLA_LINKINFO")
        kind = information.get_attr("IFLA_INFO_KIND") if information else None
        if kind != "bridge":
            raise BridgeError(f"bridge={name!r} is an interface of kind {kind!r}; name one of kind 'bridge'")
        return Bridge(name, int(found[0]), int(link.get_attr("IFLA_MTU")))

    def link(self, interface: str) -> Link | None:
        """What is known of `interface`; None if there is none."""
        found = self._netlink.link_lookup(ifname=interface)
        if not found:
            return None
        with _refusals(f"looking at interface {interface!r}"):
            (message,) = self._netlink.link("get", index=found[0])
        return _link(message)

    def links(self) -> list[Link]:
        """All interfaces."""
        with _refusals("listing interfaces"):
            return [_link(message) for message in self._netlink.get_links()]

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

    def create_hold(self, name: str, *, limit_bytes: int) -> None:
        """Make an IFB whose root is a plug that holds whatever comes, and bring it up.

        It bears HOLD_ADDRESS from its first instant, so a leftover is always recognised.
        Raises `KernelModuleError` by name, `NameClashError`.
        """
        try:
            self._netlink.link(
                "add",
                ifname=name,
                kind="ifb",
                address=HOLD_ADDRESS,
                mtu=NO_IPV6_MTU_BYTES,
                txqlen=RING_FRAMES,
            )
        except NetlinkError as error:
            raise _not_created(error, name) from error
        index = self.index(name)
        with _refusals(f"plugging {name!r}", module="sch_plug"):
            self._netlink.tc(
                "add",
                "plug",
                index=index,
                parent=_ROOT,
                handle=PLUG_HANDLE,
                action="TCQ_PLUG_LIMIT",
                limit=limit_bytes,
            )
        self.up(name)

    def delete(self, interface: str) -> None:
        """Delete `interface`; what waits in it is dropped. Nothing happens if it is gone already."""
        found = self._netlink.link_lookup(ifname=interface)
        if not found:
            return
        try:
            self._netlink.link("del", index=found[0])
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise _refused(error, f"deleting {interface!r}") from error

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
                prio=_REDIRECT_PRIORITY,
                target=_ANY_CLASS,
                keys=[],
                action=[action],
            )

    def attach_gate(self, source: str, program: int, target: str | None) -> None:
        """Have the program of descriptor `program` see each frame before the ingress redirect of `source`.

        What it matches goes on as if `target` had just received it, or as if there were no redirect if that
        is None. If `target` is down or gone the frame is dropped (P4). Prerequisite: the redirect is there.
        Raises `KernelModuleError` by name.
        """
        source_index = self.index(source)
        actions = []
        if target is not None:
            to = {"direction": "ingress", "action": "redirect", "ifindex": self.index(target)}
            actions.append({"kind": "mirred", **to})
        with _refusals(f"attaching a gate to {source!r}", module="cls_bpf"):
            self._netlink.tc(
                "add-filter",
                "bpf",
                index=source_index,
                parent=int(Hook.INGRESS),
                protocol=_ETH_P_ALL,
                prio=_GATE_PRIORITY,
                fd=program,
                name=_GATE_NAME,
                action=actions,
            )

    def undelivered(self, source_index: int, hook: Hook) -> Undelivered:
        """How many frames could not be delivered: the target's ring was full, or it was down or gone.

        The action counts them as overlimits; a full ring's share of them is also the target's `tx_dropped`.
        """
        with _refusals(f"reading the filter of interface {source_index}"):
            filters = list(self._netlink.get_filters(index=source_index, parent=int(hook)))
        return Undelivered(
            redirected_items=sum(_overlimits(entry) for entry in filters if not _is_gate(entry)),
            passed_items=sum(_overlimits(entry) for entry in filters if _is_gate(entry)),
        )

    def redirects(self, source_index: int) -> list[int]:
        """As `ingress_redirects`, for who means to take all filters away.

        Raises `NameClashError` also if there are egress filters of another kind.
        """
        about = f"reading the filters of interface {source_index}"
        self._refuse_strangers(self._filters(source_index, Hook.EGRESS, about), about)
        return self.ingress_redirects(source_index)

    def ingress_redirects(self, source_index: int) -> list[int]:
        """The indices to which ingress filters of an interface redirect, 0 for one that is gone.

        A gate's are among them, if it passes frames elsewhere than where they would go without a hold.
        Raises `NameClashError` if there are filters of another kind. About 0.4 ms.
        """
        about = f"reading the filters of interface {source_index}"
        entries = self._filters(source_index, Hook.INGRESS, about)
        self._refuse_strangers(entries, about)
        return [_target(action, about) for entry in entries for action in _actions(entry)]

    def _refuse_strangers(self, entries: list[Any], about: str) -> None:
        if not all(map(_may_be_ours, entries)):
            raise NameClashError(f"{about}: somebody else's are there; remove them or take another tap")

    def _filters(self, source_index: int, hook: Hook, about: str) -> list[Any]:
        try:
            return list(self._netlink.get_filters(index=source_index, parent=int(hook)))
        except NetlinkError as error:
            if error.code in (errno.EINVAL, errno.EOPNOTSUPP):  # no clsact
                return []
            raise _refused(error, about) from error

    def unhook(self, source: str) -> None:
        """Remove all ingress and egress filters of `source`. Prerequisite: it is down."""
        index = self.index(source)
        try:
            self._netlink.tc("del", "clsact", index=index)
        except NetlinkError as error:
            if error.code not in (errno.ENOENT, errno.EINVAL):  # none there
                raise _refused(error, f"removing the filters of {source!r}") from error

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

    def part(self, interface: str) -> None:
        """Take `interface` out of its bridge, if it is in one."""
        index = self.index(interface)
        with _refusals(f"taking {interface!r} out of its bridge"):
            self._netlink.link("set", index=index, master=0)

    def learn(self, interface: str, address: str) -> None:
        """Have the bridge of `interface` know that the station `address` is behind it, until that ages."""
        index = self.index(interface)
        with _refusals(f"telling the bridge of {interface!r} of {address}"):
            self._netlink.fdb("replace", ifindex=index, lladdr=address, state=_REACHABLE)

    def learn_nothing(self, interface: str) -> None:
        """Have the bridge of `interface` learn no station from what comes in by it."""
        self._set_port(interface, learning=0)

    def isolate(self, interface: str, isolated: bool) -> None:
        """Whether the bridge of `interface` keeps frames from going between it and other isolated ports."""
        self._set_port(interface, isolated=int(isolated))

    def _set_port(self, interface: str, **what: int) -> None:
        index = self.index(interface)
        with _refusals(f"setting up {interface!r} as a port"):
            self._netlink.brport("set", index=index, **what)

    def describe(self, interface: str, alias: str) -> None:
        """Write `alias` on `interface`."""
        index = self.index(interface)
        with _refusals(f"describing {interface!r}"):
            self._netlink.link("set", index=index, IFLA_IFALIAS=alias)

    def down(self, interface: str) -> None:
        """Take `interface` down."""
        index = self.index(interface)
        with _refusals(f"taking {interface!r} down"):
            self._netlink.link("set", index=index, state="down")

    def up(self, interface: str) -> None:
        """Bring `interface` up."""
        index = self.index(interface)
        with _refusals(f"bringing {interface!r} up"):
            self._netlink.link("set", index=index, state="up")


def _link(message: Any) -> Link:
    information = message.get_attr("IFLA_LINKINFO")
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=int(message["index"]),
        kind=(information.get_attr("IFLA_INFO_KIND") if information else None) or "",
        address=message.get_attr("IFLA_ADDRESS") or "",
        alias=message.get_attr("IFLA_IFALIAS") or "",
        master=int(message.get_attr("IFLA_MASTER") or 0),
    )


def _options(entry: Any) -> Any:
    """Those of one filter message; None if there are none to read."""
    options = entry.get_attr("TCA_OPTIONS")
    return options if hasattr(options, "get_attr") else None


def _may_be_ours(entry: Any) -> bool:
    """A redirect, a gate, or the head of a list of bpf filters, which says nothing of them."""
    kind = entry.get_attr("TCA_KIND")
    is_redirect = kind == "u32" and entry["info"] >> 16 == _REDIRECT_PRIORITY  # tcm_info of rtnetlink(7)
    return is_redirect or _is_gate(entry) or (kind == "bpf" and _options(entry) is None)


def _is_gate(entry: Any) -> bool:
    options = _options(entry)
    return options is not None and options.get_attr("TCA_BPF_NAME") == _GATE_NAME


def _actions(entry: Any) -> list[Any]:
    """The actions of one filter message; a u32 dump also has messages without any."""
    options = _options(entry)
    if options is None:
        return []
    actions = options.get_attr("TCA_BPF_ACT" if _is_gate(entry) else "TCA_U32_ACT")
    return [] if actions is None else [action for _, action in actions["attrs"]]


def _overlimits(entry: Any) -> int:
    statistics = [action.get_attr("TCA_ACT_STATS") for action in _actions(entry)]
    return sum(int(each.get_attr("TCA_STATS_QUEUE")["overlimits"]) for each in statistics if each)


def _target(action: Any, about: str) -> int:
    options = action.get_attr("TCA_ACT_OPTIONS")
    parameters = options.get_attr("TCA_MIRRED_PARMS") if hasattr(options, "get_attr") else None
    if parameters is None:
        raise NameClashError(f"{about}: somebody else's are there; remove them or take another tap")
    return int(parameters["ifindex"])


def _not_created(error: NetlinkError, name: str) -> NetbufError:
    match error.code:
        case errno.EEXIST:
            return NameClashError(f"interface {name!r} exists already; delete it or choose another name")
        case errno.EOPNOTSUPP:
            return KernelModuleError(f"creating {name!r}: this kernel has no ifb; {_FULL_KERNEL}")
        case _:
            return _refused(error, f"creating {name!r}")


@contextmanager
def _refusals(about: str, *, module: str | None = None) -> Iterator[None]:
    """Name what the kernel refuses; ENOENT of traffic control means that `module` is missing."""
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.ENOENT and module is not None:
            raise KernelModuleError(f"{about}: this kernel has no {module}; {_FULL_KERNEL}") from error
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
