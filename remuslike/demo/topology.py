"""The LAN of the demo: three network namespaces and the links between them, through pyroute2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from remuslike.demo import plan
from remuslike.demo.errors import DemoEnvironmentError
from remuslike.demo.plan import Namespaces, Role
from remuslike.demo.processes import all_processes, end_processes_in

NAMESPACE_DIRECTORY = Path("/run/netns")  # as in ip-netns(8)

# Learned at once, forwards at once, and no snooping: an Ethernet segment that adds no delay.
_BRIDGE = {"kind": "bridge", "br_stp_state": 0, "br_forward_delay": 0, "br_mcast_snooping": 0}


@dataclass(frozen=True, slots=True)
class Cut:
    """Takes a link down at the end that the host doesn't own."""

    sockets: tuple[tuple[IPRoute, int], ...]

    def __call__(self) -> None:
        for socket, index in self.sockets:
            socket.link("set", index=index, state="down")


@dataclass(frozen=True, slots=True)
class Topology:
    """The network as it stands; `cut_primary` parts the primary's host from both its links."""

    namespaces: Namespaces
    cut_primary: Cut


@contextmanager
def topology(tag: int) -> Iterator[Topology]:
    """Builds the network and removes it, with every process that is in it, whatever happens.

    Raises DemoEnvironmentError when a namespace exists already or the kernel refuses a device.
    """
    remove_abandoned()
    names = Namespaces(tag)
    with ExitStack() as stack:
        try:
            yield _build(names, stack)
        except NetlinkError as error:
            raise DemoEnvironmentError(f"the kernel refuses a link of the demo's network: {error}") from error


def remove_abandoned() -> None:
    """Removes what demos left that were killed."""
    if not NAMESPACE_DIRECTORY.is_dir():
        return
    names = [entry.name for entry in NAMESPACE_DIRECTORY.iterdir()]
    for name in plan.abandoned(names, frozenset(all_processes())):
        _remove(name)


def _remove(name: str) -> None:
    end_processes_in(NAMESPACE_DIRECTORY / name)
    netns.remove(name)


def _build(names: Namespaces, stack: ExitStack) -> Topology:
    sockets: dict[str, IPRoute] = {}
    for name in names.all:
        if (NAMESPACE_DIRECTORY / name).exists():
            raise DemoEnvironmentError(
                f"the network namespace {name} exists already; remove it with: ip netns delete {name}"
            )
        netns.create(name)
        stack.callback(_remove, name)
        sockets[name] = stack.enter_context(IPRoute(netns=name))
        _up(sockets[name], "lo")

    client = sockets[names.client]
    client.link("add", ifname=plan.LAN, **_BRIDGE)
    _address(client, plan.LAN, plan.CLIENT_ADDRESS, plan.PREFIX_LENGTH_LAN)
    _up(client, plan.LAN)
    for role, name in names.hosts.items():
        _connect_host(client, sockets[name], role, name)

    primary, secondary = (sockets[names.hosts[role]] for role in plan.ROLES)
    peer = {"ifname": plan.PEER_LINK, "net_ns_fd": names.hosts["secondary"]}
    primary.link("add", ifname=plan.PEER_LINK, kind="veth", peer=peer)
    for role, socket in zip(plan.ROLES, (primary, secondary), strict=True):
        _address(socket, plan.PEER_LINK, plan.PEER_ADDRESSES[role], plan.PREFIX_LENGTH_PEER)
        _up(socket, plan.PEER_LINK)

    outside = ((secondary, plan.PEER_LINK), (client, plan.PORTS["primary"]))
    return Topology(names, Cut(tuple((socket, _index(socket, link)) for socket, link in outside)))


def _connect_host(client: IPRoute, host: IPRoute, role: Role, namespace: str) -> None:
    port = plan.PORTS[role]
    client.link("add", ifname=port, kind="veth", peer={"ifname": plan.UPLINK, "net_ns_fd": namespace})
    client.link("set", index=_index(client, port), master=_index(client, plan.LAN))
    _up(client, port)
    host.link("add", ifname=plan.BRIDGE, **_BRIDGE)
    host.link("set", index=_index(host, plan.UPLINK), master=_index(host, plan.BRIDGE))
    _up(host, plan.UPLINK)
    _up(host, plan.BRIDGE)


def _index(socket: IPRoute, name: str) -> int:
    (index,) = socket.link_lookup(ifname=name)
    return int(index)


def _up(socket: IPRoute, name: str) -> None:
    socket.link("set", index=_index(socket, name), state="up")


def _address(socket: IPRoute, name: str, address: str, prefix_length: int) -> None:
    socket.addr("add", index=_index(socket, name), address=address, prefixlen=prefix_length)
