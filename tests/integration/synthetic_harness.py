"""A cluster whose guest is synthetic, and its clients: a load with a history, and a count of frames."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from daemon_harness import WAIT_LIMIT_S, Cluster, Shape, cluster, wait_for
from guest_client import socket_in

from remuslike.demo import plan
from remuslike.synthetic import Rates, program_path
from remuslike.synthetic.client import Client, Load, open_client
from remuslike.synthetic.history import judge_numbers
from remuslike.synthetic.service import FRAMES_PORT, decode_number

MEMORY_MIB = 32
DISK_BYTES = 8 << 20
CLIENTS = 16
ADDRESS = f"{plan.GUEST_ADDRESS}/24"


def empty_disk(home: Path) -> Path:
    """A node's, in its directory, which may not be there yet."""
    home.mkdir(exist_ok=True)
    disk = home / "data"
    with disk.open("xb") as image:
        image.truncate(DISK_BYTES)
    return disk


@contextmanager
def synthetic_cluster(rates: Rates, **shape: Any) -> Iterator[Cluster]:
    """Two nodes for a guest with these rates, an interface and a disk."""

    def make_guest(home: Path) -> dict[str, Any]:
        return {
            "qemu": str(program_path()),
            "memory_mib": MEMORY_MIB,
            "append": rates.append(),
            "disks": [{"name": "data", "store": str(empty_disk(home))}],
            "nics": [{"mac": plan.GUEST_MAC, "bridge": plan.BRIDGE}],
        }

    with cluster(Shape(**shape), make_guest) as hosts:
        yield hosts


@dataclass(slots=True)
class Frames:
    """The numbers of the guest's own frames, as they came."""

    numbers: list[int] = field(default_factory=list)

    async def listen(self, namespace: str, task_status: trio.TaskStatus[None]) -> None:
        with trio.socket.from_stdlib_socket(socket_in(namespace, socket.SOCK_DGRAM)) as listening:
            await listening.bind(("", FRAMES_PORT))
            task_status.started()
            while True:
                number = decode_number(await listening.recv(2048))
                if number is not None:
                    self.numbers.append(number)


@dataclass(slots=True)
class Clients:
    """All that a test's clients know."""

    client: Client
    load: Load
    frames: Frames

    async def wait_progress(self, answers: int = 200) -> None:
        """Returns when so many more requests have been answered."""
        goal = self.load.acknowledged + answers
        await wait_for(f"clients: {answers} more answers", lambda: self.load.acknowledged >= goal)

    def findings(self) -> list[str]:
        """What can't be true of what they were told. A frame's number comes once, and after all before it."""
        return [*self.load.verdict.findings, *judge_numbers(self.frames.numbers).findings()]


@asynccontextmanager
async def counting(hosts: Cluster, *, durable: bool = True) -> AsyncIterator[Clients]:
    """Clients at work while the body runs; then their last requests are answered, and all is read back."""
    udp = socket_in(hosts.namespaces.client, socket.SOCK_DGRAM)
    async with (
        open_client(udp, plan.GUEST_ADDRESS, answer_limit_s=WAIT_LIMIT_S) as client,
        trio.open_nursery() as listeners,
    ):
        frames = Frames()
        await listeners.start(frames.listen, hosts.namespaces.client)
        async with trio.open_nursery() as nursery:
            load = await client.start_load(nursery, CLIENTS, durable=durable)
            clients = Clients(client, load, frames)
            yield clients
            load.stop()
        await client.read_back(load)
        listeners.cancel_scope.cancel()
