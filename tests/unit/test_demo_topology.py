"""The demo's network as the kernel has it. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
from pyroute2 import netns

from remuslike.demo import plan
from remuslike.demo.errors import DemoEnvironmentError
from remuslike.demo.topology import NAMESPACE_DIRECTORY, topology

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

NAMES = plan.Namespaces(os.getpid())
ABANDONED = "rl-4194305-a"  # above the kernel's PID_MAX_LIMIT, so that no process has it


def run(namespace: str, *command: str) -> subprocess.CompletedProcess[str]:
    arguments = ["ip", "netns", "exec", namespace, *command]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def links(namespace: str) -> dict[str, dict[str, Any]]:
    output = run(namespace, "ip", "-json", "-details", "address", "show").stdout
    return {link["ifname"]: link for link in json.loads(output)}


def addresses(link: dict[str, Any]) -> list[str]:
    return [
        f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"] if entry["family"] == "inet"
    ]


def existing() -> set[str]:
    return {name for name in NAMES.all if (NAMESPACE_DIRECTORY / name).exists()}


def test_hosts_and_client_share_a_lan_and_the_hosts_have_a_link_of_their_own() -> None:
    with topology(os.getpid()):
        client = links(NAMES.client)
        assert addresses(client["lan0"]) == ["10.77.0.1/24"]
        assert {client[port].get("master") for port in ("to-a", "to-b")} == {"lan0"}
        for role in plan.ROLES:
            host = links(NAMES.hosts[role])
            assert host["eth0"]["master"] == "br0"
            assert addresses(host["br0"]) == []
            assert addresses(host["peer"]) == [f"{plan.PEER_ADDRESSES[role]}/30"]
            assert {"UP"} <= set(host["eth0"]["flags"]) & set(host["br0"]["flags"]) & set(
                host["peer"]["flags"]
            )
        for bridge in (client["lan0"], links(NAMES.hosts["primary"])["br0"]):
            data = bridge["linkinfo"]["info_data"]
            assert (data["stp_state"], data["forward_delay"], data["mcast_snooping"]) == (0, 0, 0)
        assert run(NAMES.hosts["primary"], "ping", "-c", "1", "-W", "5", "10.78.0.2").returncode == 0
    assert existing() == set()


def test_a_cut_host_reaches_nobody() -> None:
    with topology(os.getpid()) as network:
        network.cut_primary()
        assert "UP" not in links(NAMES.client)["to-a"]["flags"]
        assert "UP" in links(NAMES.client)["to-b"]["flags"]
        assert "UP" not in links(NAMES.hosts["secondary"])["peer"]["flags"]
        assert "UP" in links(NAMES.hosts["primary"])["peer"]["flags"]  # the host itself did nothing
        assert run(NAMES.hosts["primary"], "ping", "-c", "1", "-W", "0.2", "10.78.0.2").returncode != 0


def test_everything_goes_also_when_the_demo_fails() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), topology(os.getpid()):
        assert existing() == set(NAMES.all)
        raise RuntimeError("on purpose")
    assert existing() == set()


def test_a_name_that_is_taken_is_left_alone_and_named() -> None:
    netns.create(NAMES.hosts["secondary"])
    try:
        with (
            pytest.raises(DemoEnvironmentError, match=f"{NAMES.hosts['secondary']} exists already"),
            topology(os.getpid()),
        ):
            pass
        assert existing() == {NAMES.hosts["secondary"]}
    finally:
        netns.remove(NAMES.hosts["secondary"])


def test_what_a_killed_demo_left_is_removed() -> None:
    netns.create(ABANDONED)
    with topology(os.getpid()):
        assert not (NAMESPACE_DIRECTORY / ABANDONED).exists()
