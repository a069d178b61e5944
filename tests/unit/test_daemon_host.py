"""What a side tells of itself: each setting that must agree differs by its own key, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes.peers import hello
from fakes.witness import FakeWitness

from remuslike.config import Settings
from remuslike.daemon.backup import BackupDaemon
from remuslike.daemon.disks import open_disks
from remuslike.daemon.hooks import pass_step
from remuslike.daemon.host import Host, introduce, make_witness
from remuslike.daemon.outputs import Outputs
from remuslike.engine import events as on
from remuslike.engine.handshake import PROTOCOL_VERSION, Hello, check_agreement
from remuslike.engine.ports import Token
from remuslike.errors import ConfigurationError, HandshakeError
from remuslike.witness import FileWitness, NoWitness

Document = dict[str, Any]
Change = Callable[[Document], object]

DISK_BYTES = 1 << 16
FILES = {"kernel": b"kernel", "initrd": b"initrd", "root": b"read-only root", "data": bytes(DISK_BYTES)}


@pytest.fixture
def document(tmp_path: Path) -> Document:
    """A configuration whose files exist."""
    for name, contents in FILES.items():
        (tmp_path / name).write_bytes(contents)
    return {
        "name": "node-a",
        "run_directory": str(tmp_path / "run"),
        "guest": {
            "machine": "q35",
            "accelerator": "tcg",
            "cpu": "max",
            "vcpus": 1,
            "memory_mib": 64,
            "kernel": str(tmp_path / "kernel"),
            "initrd": str(tmp_path / "initrd"),
            "append": "quiet",
            "qemu": "qemu-system-x86_64",
            "extra_arguments": ["-device", "virtio-rng-pci"],
            "local_arguments": ["-serial", "null"],
            "disks": [
                {"name": "root", "store": str(tmp_path / "root"), "read_only": True},
                {"name": "data", "store": str(tmp_path / "data"), "journal": False},
            ],
            "nics": [
                {"mac": "52:54:00:00:00:01", "bridge": "br0"},
                {"mac": "52:54:00:00:00:02", "bridge": "br1"},
            ],
        },
        "link": {"address": "127.0.0.1:7000", "detect_ms": 100.0},
        "witness": {"kind": "none"},
    }


async def introduction(document: Document, qemu_version: str = "7.2.22") -> Hello:
    settings = Settings.model_validate(document)
    with ExitStack() as stack:
        disks, shared = await open_disks(stack, settings, 3, pass_step, owns_shared=True)
        host = Host(Outputs([], disks, shared), [], [], Path("/nonexistent/qemu.log"))
        return await introduce(settings, host, qemu_version)


def differing(one: Hello, other: Hello) -> set[str]:
    keys = {*one.definition, *other.definition}
    return {key for key in keys if one.definition.get(key) != other.definition.get(key)}


def guest(**changes: Any) -> Change:
    return lambda document: document["guest"].update(changes)


def disk(number: int, **changes: Any) -> Change:
    return lambda document: document["guest"]["disks"][number].update(changes)


def nic(number: int, **changes: Any) -> Change:
    return lambda document: document["guest"]["nics"][number].update(changes)


def contents(name: str, data: bytes) -> Change:
    return lambda document: Path(document["run_directory"]).with_name(name).write_bytes(data)


def swap(items: list[Any]) -> None:
    items.reverse()


DIFFERENCES: dict[str, tuple[Change, set[str]]] = {
    "machine": (guest(machine="microvm"), {"guest.machine"}),
    "a machine's property": (guest(machine="q35,hpet=off"), {"guest.machine"}),
    "accelerator": (guest(accelerator="kvm"), {"guest.accelerator"}),
    "cpu": (guest(cpu="max,-x2apic"), {"guest.cpu"}),
    "vcpus": (guest(vcpus=2), {"guest.vcpus"}),
    "memory": (guest(memory_mib=65), {"guest.memory_mib"}),
    "append": (guest(append="quiet "), {"guest.append"}),
    "extra arguments": (
        guest(extra_arguments=["-device", "virtio-rng-pci,id=r"]),
        {"guest.extra_arguments"},
    ),
    "no extra arguments": (guest(extra_arguments=[]), {"guest.extra_arguments"}),
    "the kernel's contents": (contents("kernel", b"kernel."), {"guest.kernel"}),
    "no initrd": (guest(initrd=None), {"guest.initrd"}),
    "the initrd's contents": (contents("initrd", b"another"), {"guest.initrd"}),
    "a read-only disk's contents": (contents("root", b"read-only ROOT"), {"guest.disks[0]"}),
    "a disk's size": (contents("data", bytes(DISK_BYTES + 512)), {"guest.disks[1]"}),
    "a disk's name": (disk(1, name="date"), {"guest.disks[1]"}),
    "a shared disk": (disk(1, shared=True), {"guest.disks[1]"}),
    "a disk that may be written": (disk(0, read_only=False), {"guest.disks[0]"}),
    "one disk less": (lambda document: document["guest"]["disks"].pop(), {"guest.disks[1]"}),
    "the order of disks": (
        lambda document: swap(document["guest"]["disks"]),
        {"guest.disks[0]", "guest.disks[1]"},
    ),
    "a mac": (nic(1, mac="52:54:00:00:00:03"), {"guest.nics[1]"}),
    "one interface less": (lambda document: document["guest"]["nics"].pop(), {"guest.nics[1]"}),
    "the order of interfaces": (
        lambda document: swap(document["guest"]["nics"]),
        {"guest.nics[0]", "guest.nics[1]"},
    ),
    "detect_ms": (lambda document: document["link"].update(detect_ms=101.0), {"link.detect_ms"}),
    "the witness's kind": (
        lambda document: document.update(witness={"kind": "file", "path": "/shared/token"}),
        {"witness.kind"},
    ),
}


@pytest.mark.parametrize(("change", "keys"), DIFFERENCES.values(), ids=DIFFERENCES)
async def test_what_must_agree_differs_by_its_own_key(
    document: Document, change: Change, keys: set[str]
) -> None:
    before = await introduction(document)
    changed = copy.deepcopy(document)
    change(changed)
    after = await introduction(changed)
    assert differing(before, after) == keys
    with pytest.raises(HandshakeError) as refused:
        check_agreement(before, after.model_copy(update={"name": "node-b"}))
    for key in keys:
        assert f"{key}: node-b has {after.definition.get(key, 'nothing')!r}" in str(refused.value)


async def test_another_qemu_differs_by_its_version(document: Document) -> None:
    older, newer = [await introduction(document, version) for version in ("7.2.21", "7.2.22")]
    assert differing(older, newer) == {"qemu version"}


def elsewhere(document: Document) -> None:
    """The same files under other paths."""
    home = Path(document["run_directory"]).with_name("elsewhere")
    home.mkdir()
    for name, data in FILES.items():
        (home / name).write_bytes(data)
    document["guest"] |= {"kernel": str(home / "kernel"), "initrd": str(home / "initrd")}
    for settings in document["guest"]["disks"]:
        settings["store"] = str(home / settings["name"])


SAME: dict[str, Change] = {
    "local arguments": guest(local_arguments=["-serial", "file:/var/log/guest"]),
    "bridge": nic(0, bridge="lan7"),
    "paths": elsewhere,
    "qemu's path": guest(qemu="/opt/qemu"),
    "a disk's contents": contents("data", b"\xff" * DISK_BYTES),
    "run directory": lambda document: document.update(run_directory="/run/other"),
    "address": lambda document: document["link"].update(address="10.0.0.1:7001"),
    "successor": lambda document: document["link"].update(successor="10.0.0.9:7001"),
    "what a lost secondary means": lambda document: document.update(on_secondary_loss="stall"),
    "epochs": lambda document: document.update(epoch={"epoch_ms": 50, "window": 3}),
    "limits": lambda document: document.update(buffers={"network_limit_mib": 1, "disk_limit_mib": 1}),
    "log": lambda document: document.update(log={"level": "debug"}),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
async def test_what_is_each_sides_own_does_not_differ(document: Document, change: Change) -> None:
    before = await introduction(document)
    changed = copy.deepcopy(document)
    change(changed)
    after = await introduction(changed)
    assert differing(before, after) == set()
    check_agreement(before, after.model_copy(update={"name": "node-b"}))


async def test_where_two_witness_files_are_does_not_differ(document: Document) -> None:
    sides = []
    for path in ("/shared/token", "/mnt/token"):
        document["witness"] = {"kind": "file", "path": path}
        sides.append(await introduction(document))
    assert differing(*sides) == set()


async def test_an_introduction_has_this_sides_name_and_no_generation(document: Document) -> None:
    said = await introduction(document)
    assert (said.name, said.protocol, said.generation) == ("node-a", PROTOCOL_VERSION, 0)


@pytest.mark.parametrize("name", ["kernel", "initrd", "root"])
async def test_a_file_that_cannot_be_read_is_named(document: Document, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    with pytest.raises(ConfigurationError, match=f"= '{tmp_path}/{name}': can't be read"):
        await introduction(document)


# --- whether a primary is taken -------------------------------------------------------------------


def test_the_witness_is_the_configured_one(document: Document) -> None:
    assert isinstance(make_witness(Settings.model_validate(document)), NoWitness)
    document["witness"] = {"kind": "file", "path": "/shared/token"}
    assert isinstance(make_witness(Settings.model_validate(document)), FileWitness)


@pytest.fixture
def witness() -> FakeWitness:
    made = FakeWitness()
    made.token = Token(4, "node-b")
    return made


def daemon_of(document: Document, witness: FakeWitness, kind: str = "file") -> BackupDaemon:
    document["witness"] = {"kind": kind, **({"path": "/shared/token"} if kind == "file" else {})}
    daemon = BackupDaemon(Settings.model_validate(document), lambda _step, _epoch: None)
    daemon._witness = witness
    return daemon


async def test_a_primary_of_the_witnesss_generation_is_taken(
    document: Document, witness: FakeWitness
) -> None:
    assert await daemon_of(document, witness)._refusal(hello("node-b", 4)) is None


@pytest.mark.parametrize("generation", [0, 3, 5])
async def test_a_primary_of_another_generation_is_not(
    document: Document, witness: FakeWitness, generation: int
) -> None:
    reason = await daemon_of(document, witness)._refusal(hello("node-b", generation))
    assert reason == (
        f"finds generation 4 at its witness, 'node-b' has {generation}: both must use the same one"
    )


async def test_without_its_witness_it_takes_no_primary(document: Document, witness: FakeWitness) -> None:
    witness.reachable = False
    reason = await daemon_of(document, witness)._refusal(hello("node-b", 4))
    assert reason == "does not reach its witness: the witness can't be reached; ask again"


async def test_where_there_is_no_witness_it_is_not_asked(document: Document, witness: FakeWitness) -> None:
    witness.reachable = False
    assert await daemon_of(document, witness, "none")._refusal(hello("node-b", 9)) is None


async def test_one_that_has_a_primary_takes_no_other(document: Document, witness: FakeWitness) -> None:
    daemon = daemon_of(document, witness)
    daemon._core.step(on.PeerReady(1.0, 4))
    assert await daemon._refusal(hello("node-b", 4)) == "takes no primary: it is syncing"


async def test_one_that_still_applies_takes_no_primary(document: Document, witness: FakeWitness) -> None:
    daemon = daemon_of(document, witness)
    daemon._core.unapplied.append(7)
    assert await daemon._refusal(hello("node-b", 4)) is not None
