"""netbuf.redirect: what is asked of the kernel in which order, and each of its refusals by name."""

import errno
from typing import Any

import pytest
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
from netbuf.redirect import HOLD_ADDRESS, RING_FRAMES, Hook, Network, Undelivered


class Attributes(dict[str, Any]):
    """A netlink message as far as `get_attr` goes."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


class FakeNetlink:
    """Knows interfaces by name and writes down what is asked; `refuse` gives a request's errno."""

    def __init__(self, *interfaces: str) -> None:
        self.indices = {name: index for index, name in enumerate(interfaces, start=1)}
        self.kinds = {"br0": "bridge", "eth0": None, "v0": "veth"}
        self.asked: list[tuple[Any, ...]] = []
        self.refuse: dict[str, int] = {}
        self.filters: list[Attributes] = []
        self.egress_filters: list[Attributes] = []
        self.closed = False

    def link_lookup(self, ifname: str) -> list[int]:
        return [self.indices[ifname]] if ifname in self.indices else []

    def link(self, command: str, index: int = 0, **what: Any) -> list[Attributes]:
        self._refuse(f"link {command}", *what)
        if command == "add":
            self.indices[what["ifname"]] = index = len(self.indices) + 1
        if command == "get":
            (name,) = (name for name, known in self.indices.items() if known == index)
            kind = self.kinds.get(name)
            information = Attributes(IFLA_INFO_KIND=kind) if kind else None
            return [
                Attributes(
                    index=index,
                    IFLA_IFNAME=name,
                    IFLA_LINKINFO=information,
                    IFLA_MTU=1450,
                    IFLA_ADDRESS="0a:11:22:33:44:55",
                )
            ]
        self.asked.append(("link", index, what))
        return []

    def get_links(self) -> list[Attributes]:
        return [message for index in self.indices.values() for message in self.link("get", index)]

    def fdb(self, command: str, **what: Any) -> None:
        self._refuse(f"fdb {command}")
        self.asked.append(("fdb", command, what))

    def tc(self, command: str, kind: str, **what: Any) -> None:
        self._refuse(f"tc {command} {kind}")
        self.asked.append(("tc", command, kind, what))

    def get_filters(self, index: int, parent: int) -> list[Attributes]:
        self._refuse("get_filters")
        return self.egress_filters if parent == Hook.EGRESS else self.filters

    def close(self) -> None:
        self.closed = True

    def _refuse(self, *requests: str) -> None:
        for request in requests:
            if request in self.refuse:
                raise NetlinkError(self.refuse[request])


def test_a_bridge_is_known_by_index_and_mtu() -> None:
    found = Network(FakeNetlink("lo", "br0")).bridge("br0")
    assert (found.name, found.index, found.mtu_bytes) == ("br0", 2, 1450)


def test_a_missing_bridge_says_how_to_make_it() -> None:
    with pytest.raises(
        BridgeError, match="bridge='br0' doesn't exist; create it: ip link add br0 type bridge"
    ):
        Network(FakeNetlink("lo")).bridge("br0")


@pytest.mark.parametrize("name", ["eth0", "v0"])
def test_another_kind_of_interface_is_no_bridge(name: str) -> None:
    with pytest.raises(BridgeError, match=f"bridge='{name}' is an interface of kind"):
        Network(FakeNetlink("eth0", "v0")).bridge(name)


def test_quiet_means_no_address_no_queue_and_a_deep_ring() -> None:
    netlink = FakeNetlink("rl0h")
    Network(netlink).quieten("rl0h", mtu_bytes=9000)
    size, queue, silence = netlink.asked
    assert size == ("link", 1, {"mtu": 9000, "txqlen": RING_FRAMES})
    assert queue[1:3] == ("replace", "noqueue")
    assert silence[2]["IFLA_AF_SPEC"]["attrs"][0][0] == "AF_INET6"


def test_a_kernel_without_ipv6_is_quiet_already() -> None:
    netlink = FakeNetlink("rl0h")
    netlink.refuse["IFLA_AF_SPEC"] = errno.EAFNOSUPPORT
    Network(netlink).quieten("rl0h", mtu_bytes=1500)


def test_another_refusal_of_silence_is_named() -> None:
    netlink = FakeNetlink("rl0h")
    netlink.refuse["IFLA_AF_SPEC"] = errno.EINVAL
    with pytest.raises(KernelRefusedError, match="silencing interface 'rl0h'"):
        Network(netlink).quieten("rl0h", mtu_bytes=1500)


@pytest.mark.parametrize("target", ["rl0o", None])
def test_a_gate_comes_before_the_redirect(target: str | None) -> None:
    netlink = FakeNetlink("rl0g", "rl0h", "rl0o")
    network = Network(netlink)
    network.redirect("rl0g", Hook.INGRESS, "rl0h")
    network.attach_gate("rl0g", 17, target)
    _, redirect, gate = netlink.asked
    assert (gate[1:3], gate[3]["fd"], gate[3]["parent"]) == (("add-filter", "bpf"), 17, 0xFFFFFFF2)
    assert gate[3]["prio"] < redirect[3]["prio"]
    to_ingress = {"kind": "mirred", "direction": "ingress", "action": "redirect", "ifindex": 3}
    assert gate[3]["action"] == ([to_ingress] if target else [])


def test_a_kernel_without_gates_is_named() -> None:
    netlink = FakeNetlink("rl0g")
    netlink.refuse["tc add-filter bpf"] = errno.ENOENT
    with pytest.raises(KernelModuleError, match="attaching a gate to 'rl0g': this kernel has no cls_bpf"):
        Network(netlink).attach_gate("rl0g", 17, None)


def test_a_redirect_matches_every_frame() -> None:
    netlink = FakeNetlink("rl0g", "rl0h")
    Network(netlink).redirect("rl0g", Hook.INGRESS, "rl0h")
    qdisc, entry = netlink.asked
    assert qdisc[1:3] == ("add", "clsact")
    assert entry[3]["keys"] == []
    assert entry[3]["parent"] == 0xFFFFFFF2
    assert entry[3]["action"] == [
        {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": 2}
    ]


@pytest.mark.parametrize(
    ("request_name", "code", "error", "message"),
    [
        ("tc add clsact", errno.ENOENT, KernelModuleError, "no sch_ingress"),
        ("tc add-filter u32", errno.ENOENT, KernelModuleError, "no cls_u32 or act_mirred"),
        ("tc add clsact", errno.EEXIST, NameClashError, "create a new guest tap"),
        ("tc add clsact", errno.EPERM, PrivilegeError, "CAP_NET_ADMIN"),
        ("tc add-filter u32", errno.ENODEV, InterfaceVanishedError, "is gone"),
        ("tc add-filter u32", errno.EINVAL, KernelRefusedError, "Invalid argument"),
    ],
)
def test_each_refusal_has_a_name(
    request_name: str, code: int, error: type[NetbufError], message: str
) -> None:
    netlink = FakeNetlink("rl0g", "rl0h")
    netlink.refuse[request_name] = code
    with pytest.raises(error, match=f"redirecting 'rl0g' to 'rl0h'.*{message}"):
        Network(netlink).redirect("rl0g", Hook.INGRESS, "rl0h")


def test_an_interface_that_is_gone_is_named() -> None:
    network = Network(FakeNetlink("rl0g"))
    for call in (
        lambda: network.redirect("rl0g", Hook.INGRESS, "rl0h"),
        lambda: network.up("rl0h"),
        lambda: network.quieten("rl0h", mtu_bytes=1500),
    ):
        with pytest.raises(InterfaceVanishedError, match="'rl0h' is gone"):
            call()


def test_a_port_gets_a_high_address_before_it_joins() -> None:
    netlink = FakeNetlink("br0", "rl0o")
    network = Network(netlink)
    network.enslave("rl0o", network.bridge("br0"))
    assert netlink.asked == [
        ("link", 2, {"address": "fe:11:22:33:44:55"}),
        ("link", 2, {"master": 1}),
    ]


def test_losses_are_the_overlimits_of_the_actions() -> None:
    netlink = FakeNetlink("rl0g")
    action = Attributes(TCA_ACT_STATS=Attributes(TCA_STATS_QUEUE={"overlimits": 502}))
    netlink.filters = [
        Attributes(),
        Attributes(TCA_OPTIONS="an older kernel's opaque options"),
        Attributes(TCA_OPTIONS=Attributes()),
        Attributes(TCA_OPTIONS=Attributes(TCA_U32_ACT={"attrs": [("TCA_ACT_PRIO_1", action)]})),
        Attributes(TCA_OPTIONS=Attributes(TCA_U32_ACT={"attrs": [("TCA_ACT_PRIO_1", Attributes())]})),
    ]
    assert Network(netlink).undelivered(1, Hook.INGRESS) == Undelivered(redirected_items=502)


def test_what_a_gate_lost_is_told_apart() -> None:
    netlink = FakeNetlink("rl0g")
    lost = Attributes(TCA_ACT_STATS=Attributes(TCA_STATS_QUEUE={"overlimits": 3}))
    netlink.filters = [
        Attributes(TCA_KIND="bpf"),
        Attributes(TCA_KIND="bpf", TCA_OPTIONS=gate_options(lost)),
        Attributes(TCA_KIND="bpf", TCA_OPTIONS=Attributes(TCA_BPF_NAME="netbuf-gate")),
        Attributes(TCA_OPTIONS=Attributes(TCA_U32_ACT={"attrs": [("TCA_ACT_PRIO_1", lost)]})),
    ]
    found = Network(netlink).undelivered(1, Hook.INGRESS)
    assert found == Undelivered(redirected_items=3, passed_items=3)
    assert found.items == 6


def test_the_losses_of_an_interface_that_is_gone_are_unknown() -> None:
    netlink = FakeNetlink()
    netlink.refuse["get_filters"] = errno.ENODEV
    with pytest.raises(InterfaceVanishedError, match="interface 1: the interface is gone"):
        Network(netlink).undelivered(1, Hook.INGRESS)


def test_close_closes_the_socket() -> None:
    netlink = FakeNetlink()
    Network(netlink).close()
    assert netlink.closed


# --- what a plug hold is made of ------------------------------------------------------------------


def test_a_hold_bears_its_address_from_its_first_instant_and_comes_up_last() -> None:
    netlink = FakeNetlink("rl0g")
    Network(netlink).create_hold("rl0i", limit_bytes=1000)
    created, plug, up = netlink.asked
    assert (created[2]["kind"], created[2]["address"]) == ("ifb", HOLD_ADDRESS)
    assert plug[1:3] == ("add", "plug")
    assert (plug[3]["limit"], plug[3]["handle"]) == (1000, PLUG_HANDLE)
    assert up == ("link", 2, {"state": "up"})


@pytest.mark.parametrize(
    ("request_name", "code", "error", "message"),
    [
        ("link add", errno.EOPNOTSUPP, KernelModuleError, "no ifb; install .*linux-image-amd64"),
        ("link add", errno.EEXIST, NameClashError, "'rl0i' exists already"),
        ("link add", errno.EPERM, PrivilegeError, "CAP_NET_ADMIN"),
        ("tc add plug", errno.ENOENT, KernelModuleError, "no sch_plug; install .*linux-image-amd64"),
        ("tc add plug", errno.EPERM, PrivilegeError, "CAP_NET_ADMIN"),
    ],
)
def test_what_a_hold_lacks_is_named(
    request_name: str, code: int, error: type[NetbufError], message: str
) -> None:
    netlink = FakeNetlink("rl0g")
    netlink.refuse[request_name] = code
    with pytest.raises(error, match=message):
        Network(netlink).create_hold("rl0i", limit_bytes=1000)


def test_deleting_what_is_gone_is_nothing() -> None:
    netlink = FakeNetlink("rl0i")
    network = Network(netlink)
    network.delete("rl1i")
    assert netlink.asked == []
    network.delete("rl0i")
    netlink.refuse["link del"] = errno.ENODEV
    network.delete("rl0i")
    netlink.refuse["link del"] = errno.EPERM
    with pytest.raises(PrivilegeError, match="deleting 'rl0i'"):
        network.delete("rl0i")


def test_links_are_known_by_kind_address_and_bridge() -> None:
    network = Network(FakeNetlink("br0", "eth0"))
    assert [(link.name, link.index, link.kind) for link in network.links()] == [
        ("br0", 1, "bridge"),
        ("eth0", 2, ""),
    ]
    assert network.link("br0") == network.links()[0]
    assert network.link("br7") is None


def action_to(index: int) -> Attributes:
    return Attributes(TCA_ACT_OPTIONS=Attributes(TCA_MIRRED_PARMS={"ifindex": index}))


def gate_options(*actions: Attributes) -> Attributes:
    return Attributes(
        TCA_BPF_NAME="netbuf-gate",
        TCA_BPF_ACT={"attrs": [(f"TCA_ACT_PRIO_{place}", action) for place, action in enumerate(actions, 1)]},
    )


OURS = 0x6E62 << 16  # tcm_info: the priority is in its upper half
STRANGERS = 2 << 16


def redirect_to(index: int, info: int = OURS) -> Attributes:
    action = action_to(index)
    options = Attributes(TCA_U32_ACT={"attrs": [("TCA_ACT_PRIO_1", action)]})
    return Attributes(TCA_KIND="u32", info=info, TCA_OPTIONS=options)


def test_redirects_are_known_by_their_targets() -> None:
    netlink = FakeNetlink("rl0g")
    netlink.filters = [Attributes(TCA_KIND="u32", info=OURS), redirect_to(7), redirect_to(0)]
    assert Network(netlink).redirects(1) == [7, 0]


def test_a_gate_redirects_as_well() -> None:
    netlink = FakeNetlink("rl0g")
    netlink.filters = [
        Attributes(TCA_KIND="bpf"),
        Attributes(TCA_KIND="bpf", TCA_OPTIONS=gate_options(action_to(9))),
        redirect_to(7),
    ]
    assert Network(netlink).redirects(1) == [9, 7]


def test_an_interface_without_hooks_has_no_redirects() -> None:
    netlink = FakeNetlink("rl0g")
    netlink.refuse["get_filters"] = errno.EINVAL
    assert Network(netlink).redirects(1) == []


def test_filters_of_somebody_else_are_named() -> None:
    netlink = FakeNetlink("rl0g")
    other = Attributes(TCA_U32_ACT={"attrs": [("TCA_ACT_PRIO_1", Attributes(TCA_ACT_OPTIONS=Attributes()))]})
    named = Attributes(TCA_BPF_NAME="somebody's")
    for entry in (
        Attributes(TCA_KIND="flower"),
        Attributes(TCA_KIND="bpf", TCA_OPTIONS=named),
        Attributes(TCA_KIND="u32", info=OURS, TCA_OPTIONS=other),
        redirect_to(0, info=STRANGERS),
    ):
        netlink.filters = [entry]
        with pytest.raises(NameClashError, match="somebody else's"):
            Network(netlink).redirects(1)
    netlink.filters, netlink.egress_filters = [redirect_to(7)], [Attributes(TCA_KIND="flower")]
    with pytest.raises(NameClashError, match="somebody else's"):
        Network(netlink).redirects(1)


def test_a_redirect_of_what_leaves_is_no_redirect_of_what_comes() -> None:
    netlink = FakeNetlink("rl0o")
    netlink.egress_filters = [redirect_to(7)]
    assert Network(netlink).redirects(1) == []


def test_unhooking_what_has_no_hooks_is_nothing() -> None:
    netlink = FakeNetlink("rl0g")
    network = Network(netlink)
    network.unhook("rl0g")
    for code in (errno.ENOENT, errno.EINVAL):
        netlink.refuse["tc del clsact"] = code
        network.unhook("rl0g")
    netlink.refuse["tc del clsact"] = errno.EPERM
    with pytest.raises(PrivilegeError, match="removing the filters of 'rl0g'"):
        network.unhook("rl0g")


def test_the_bridge_learns_an_address_that_ages() -> None:
    netlink = FakeNetlink("rl0g")
    Network(netlink).learn("rl0g", "52:54:00:00:00:01")
    assert netlink.asked == [
        ("fdb", "replace", {"ifindex": 1, "lladdr": "52:54:00:00:00:01", "state": 0x02}),
    ]
