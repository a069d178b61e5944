"""Where everything is and what it is called: namespaces, links, addresses, configuration files. No I/O.

```
 rl-TAG-a (primary)          rl-TAG-c (client)           rl-TAG-b (secondary)
   br0 ─ eth0 ───────── to-a ─ lan0 10.77.0.1 ─ to-b ───────── eth0 ─ br0
   peer 10.78.0.1 ────────────── replication link ────────────── peer 10.78.0.2
```

The guest is 10.77.0.2 on br0 of whichever host runs it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, Protocol

Role = Literal["primary", "secondary"]
ROLES: tuple[Role, ...] = ("primary", "secondary")

BRIDGE = "br0"
UPLINK = "eth0"
PEER_LINK = "peer"
LAN = "lan0"
PORTS: dict[Role, str] = {"primary": "to-a", "secondary": "to-b"}
PREFIX_LENGTH_LAN = 24
PREFIX_LENGTH_PEER = 30
CLIENT_ADDRESS = "10.77.0.1"
GUEST_ADDRESS = "10.77.0.2"
PEER_ADDRESSES: dict[Role, str] = {"primary": "10.78.0.1", "secondary": "10.78.0.2"}
REPLICATION_PORT = 7000
GUEST_MAC = "52:54:00:72:65:6d"
ROOT_DISK, DATA_DISK = "root", "data"
DATA_DEVICE = "vdb"  # the root image is the first disk
DAEMON = (str(Path(sys.executable).with_name("remuslike")),)  # in front of `primary --config FILE`

_NAMESPACE = re.compile(r"rl-(\d+)-[abc]")


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Names of the three network namespaces of the process `tag`."""

    tag: int

    @property
    def hosts(self) -> dict[Role, str]:
        return {"primary": f"rl-{self.tag}-a", "secondary": f"rl-{self.tag}-b"}

    @property
    def client(self) -> str:
        return f"rl-{self.tag}-c"

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.hosts.values(), self.client)


def abandoned(names: Iterable[str], living: frozenset[int]) -> list[str]:
    """Those namespaces of earlier demos whose process is gone."""
    matches = ((name, _NAMESPACE.fullmatch(name)) for name in names)
    return sorted(name for name, match in matches if match and int(match[1]) not in living)


@dataclass(frozen=True, slots=True)
class Directories:
    """The files of one run, all under `root`."""

    root: Path

    def daemon(self, role: Role) -> Path:
        return self.root / role

    def configuration(self, role: Role) -> Path:
        return self.daemon(role) / "remuslike.toml"

    def run_directory(self, role: Role) -> Path:
        return self.daemon(role) / "run"

    def log(self, role: Role) -> Path:
        return self.daemon(role) / "log.jsonl"

    def data_disk(self, role: Role) -> Path:
        return self.daemon(role) / "data.raw"

    def console(self, role: Role) -> Path:
        return self.daemon(role) / "console.log"

    @property
    def history(self) -> Path:
        return self.root / "history.json"

    @property
    def client_log(self) -> Path:
        return self.root / "client.log"

    @property
    def extracted(self) -> Path:
        return self.root / "extracted"

    @property
    def witness(self) -> Path:
        return self.root / "witness"


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What the guest boots from, and how; one that isn't QEMU's has a program of its own, and no image."""

    kernel: Path | None
    initrd: Path | None
    root: Path | None
    append: str
    accelerator: str
    qemu: str | None = None


class Definition(Protocol):
    """A machine and how it is protected; `epoch` is the configuration's table of that name."""

    @property
    def machine(self) -> str: ...
    @property
    def vcpus(self) -> int: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def epoch(self) -> Mapping[str, object]: ...
    @property
    def detect_ms(self) -> float: ...


def configuration(role: Role, options: Definition, guest: GuestFiles, directories: Directories) -> str:
    """The TOML text of a daemon's configuration, as `remuslike.config` reads it."""
    disks: list[tuple[str, Path, bool]] = [(DATA_DISK, directories.data_disk(role), False)]
    if guest.root is not None:
        disks.insert(0, (ROOT_DISK, guest.root, True))
    tables: list[tuple[str, Mapping[str, object]]] = [
        ("", {"name": role, "run_directory": directories.run_directory(role)}),
        (
            "[guest]",
            {
                "qemu": guest.qemu,
                "machine": options.machine,
                "accelerator": guest.accelerator,
                "vcpus": options.vcpus,
                "memory_mib": options.memory_mib,
                "kernel": guest.kernel,
                "initrd": guest.initrd,
                "append": guest.append,
                "local_arguments": ["-serial", f"file:{directories.console(role)}"],
            },
        ),
        *(
            ("[[guest.disks]]", {"name": name, "store": path, "read_only": read_only})
            for name, path, read_only in disks
        ),
        ("[[guest.nics]]", {"mac": GUEST_MAC, "bridge": BRIDGE}),
        ("[epoch]", options.epoch),
        (
            "[link]",
            {"address": f"{PEER_ADDRESSES['secondary']}:{REPLICATION_PORT}", "detect_ms": options.detect_ms},
        ),
        ("[witness]", {"kind": "file", "path": directories.witness}),
    ]
    return "\n".join(_table(header, values) for header, values in tables)


def _table(header: str, values: Mapping[str, object]) -> str:
    lines = [f"{name} = {_toml(item)}" for name, item in values.items() if item is not None]
    return "\n".join([*([header] if header else []), *lines, ""])


def _toml(item: object) -> str:
    # A JSON string in ASCII is a TOML basic string (toml.io, "String"), and so are numbers and booleans.
    return json.dumps(str(item) if isinstance(item, Path) else item)


def kill_after_s(seed: int, duration_s: float) -> float:
    """When the host dies: a moment in the second half of the load, the same for the same seed."""
    return duration_s * (0.5 + 0.5 * Random(seed).random())
