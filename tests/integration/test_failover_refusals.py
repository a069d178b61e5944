"""What is refused before a guest runs: configurations, hosts and peers, each by name."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daemon_harness import COMMAND, Cluster, Daemon, Node, cluster, marks

pytestmark = marks

CLEAN, FAILED, USAGE, FENCED = 0, 1, 2, 3

NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", COMMAND)

Document = dict[str, Any]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def primary(hosts: Cluster) -> Iterator[Node]:
    yield from unchanged(hosts.primary)


@pytest.fixture
def secondary(hosts: Cluster) -> Iterator[Node]:
    yield from unchanged(hosts.secondary)


def unchanged(node: Node) -> Iterator[Node]:
    """The node, with its document as it was for whoever is next."""
    before = copy.deepcopy(node.document)
    yield node
    node.document = before


@pytest.fixture(autouse=True)
def _ended(hosts: Cluster) -> Iterator[None]:
    """No daemon of a test that failed meets the next test's."""
    yield
    hosts.kill_daemons()


def complaint(daemon: Daemon) -> str:
    """The one line that a daemon ends with before it logs anything else than JSON."""
    (line,) = (line for line in daemon.log.splitlines() if not line.startswith("{"))
    return line


def without_link(document: Document) -> None:
    del document["link"]


WRONG_CONFIGURATIONS: dict[str, tuple[Callable[[Document], None], str]] = {
    "missing key": (without_link, "link: is missing"),
    "unknown key": (lambda document: document.update(colour="blue"), "colour: is not a known key"),
    "out of range": (lambda document: document["guest"].update(memory_mib=1), "guest.memory_mib = 1"),
    "wrong kind": (lambda document: document["epoch"].update(epoch_ms="soon"), "epoch.epoch_ms = 'soon'"),
    "no address": (lambda document: document["link"].update(address="here"), "link.address = 'here'"),
    "refused argument": (
        lambda document: document["guest"].update(extra_arguments=["-device", "VGA"]),
        "-device 'VGA' is refused",
    ),
}


@pytest.mark.parametrize(("change", "reason"), WRONG_CONFIGURATIONS.values(), ids=WRONG_CONFIGURATIONS)
async def test_a_wrong_configuration(
    hosts: Cluster, primary: Node, change: Callable[[Document], None], reason: str
) -> None:
    change(primary.document)
    daemon = hosts.start(primary)
    await daemon.wait_ended(USAGE)
    assert reason in complaint(daemon)


def other_qemu(document: Document) -> None:
    document["guest"]["qemu"] = "qemu-system-none"


def other_bridge(document: Document) -> None:
    document["guest"]["nics"][0]["bridge"] = "br9"


def other_disk(document: Document) -> None:
    document["guest"]["disks"][1]["store"] = "/nonexistent/data"


def other_kernel(document: Document) -> None:
    document["guest"]["kernel"] = "/nonexistent/kernel"


def other_argument(document: Document) -> None:
    document["guest"]["extra_arguments"] = ["-device", "no-such-device"]


def other_run_directory(document: Document) -> None:
    document["run_directory"] = "/proc/nonexistent"


LACKING_HOSTS: dict[str, tuple[Callable[[Document], None], int, str]] = {
    "no QEMU": (other_qemu, FAILED, "'qemu-system-none' is not installed"),
    "no bridge": (other_bridge, FAILED, "br9"),
    "no disk": (other_disk, FAILED, "/nonexistent/data"),
    "no kernel": (other_kernel, FAILED, "/nonexistent/kernel"),
    "no such device": (other_argument, FAILED, "no-such-device"),
    "no run directory": (other_run_directory, USAGE, "run_directory = '/proc/nonexistent'"),
}


@pytest.mark.parametrize(("change", "status", "reason"), LACKING_HOSTS.values(), ids=LACKING_HOSTS)
async def test_a_host_that_lacks_something(
    hosts: Cluster, primary: Node, change: Callable[[Document], None], status: int, reason: str
) -> None:
    change(primary.document)
    daemon = hosts.start(primary)
    await daemon.wait_ended(status)
    assert reason in complaint(daemon)


async def test_an_unknown_step_to_be_killed_at(hosts: Cluster, primary: Node) -> None:
    daemon = hosts.start(primary, kill_at="tea.time@4")
    await daemon.wait_ended(USAGE)
    assert "REMUSLIKE_KILL_AT = 'tea.time@4'" in complaint(daemon)


@pytest.mark.parametrize("role", ["primary", "secondary"])
async def test_a_user_who_is_not_root(hosts: Cluster, role: str, request: pytest.FixtureRequest) -> None:
    node: Node = request.getfixturevalue(role)
    # The configuration must be readable for the refusal to be about the user.
    hosts.directory.chmod(0o755)
    daemon = hosts.start(node, command=NOBODY)
    await daemon.wait_ended(FAILED)
    assert "need root" in complaint(daemon)


async def test_a_port_in_use(hosts: Cluster, secondary: Node) -> None:
    first = hosts.start(secondary)
    await first.wait_phase("waiting")
    port = secondary.document["link"]["address"]
    secondary.document |= {"name": "other", "run_directory": hosts.directory / "other"}
    secondary.document["guest"]["disks"][1]["store"] = hosts.primary.disks[0]
    second = hosts.start(secondary)
    await second.wait_over(FAILED)
    assert port in complaint(second)
    first.terminate()
    await first.wait_ended(CLEAN)


async def test_a_run_directory_in_use(hosts: Cluster, secondary: Node) -> None:
    first = hosts.start(secondary)
    await first.wait_phase("waiting")
    second = hosts.start(secondary)
    await second.wait_over(USAGE)
    assert "another daemon uses it" in complaint(second)
    first.terminate()
    await first.wait_ended(CLEAN)


def other_memory(document: Document) -> None:
    document["guest"]["memory_mib"] = 96


def other_machine(document: Document) -> None:
    document["guest"]["machine"] = "q35"


async def test_sides_that_define_different_guests(hosts: Cluster, primary: Node, secondary: Node) -> None:
    other_size = hosts.directory / "larger"
    other_size.write_bytes(b"")
    os.truncate(other_size, 2 * primary.disks[0].stat().st_size)

    def other_disk_size(document: Document) -> None:
        document["guest"]["disks"][1]["store"] = other_size

    size = primary.disks[0].stat().st_size
    agreed = copy.deepcopy(primary.document)
    waiting = hosts.start(secondary)
    await waiting.wait_phase("waiting")
    for change, ours, theirs in (
        (other_memory, "'96'", "'128'"),
        (other_machine, "'q35'", "'microvm'"),
        (other_disk_size, f"{2 * size} bytes", f"{size} bytes"),
    ):
        primary.document = copy.deepcopy(agreed)
        change(primary.document)
        refused = hosts.start(primary)
        line = await refused.wait_logged("the secondary refused")
        assert ours in line, line
        assert theirs in line, line
        await refused.wait_phase("solo")
        await waiting.wait_phase("waiting")
        refused.terminate()
        await refused.wait_ended(CLEAN)
    waiting.terminate()
    await waiting.wait_ended(CLEAN)
