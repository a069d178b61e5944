"""A client on a cluster's LAN: a shell in the guest, and writes to its redis with a history of answers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import trio
from daemon_harness import WAIT_LIMIT_S, Cluster, Daemon, Node, wait_for
from pyroute2 import netns

from remuslike.demo.client import Connection, Load, Work, read_back
from remuslike.demo.plan import GUEST_ADDRESS
from remuslike.demo.survivor import examine
from remuslike.image import AGENT_PORT, SERVICE_PORT

WORK = Work(seed=7, connections=2, pipeline=1, payload_bytes=64, limit_bytes=16 << 20)
ATTEMPT_S = 1.0


def socket_in(namespace: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """An IPv4 socket of that network namespace, to which it belongs wherever its process goes."""
    netns.pushns()
    try:
        netns.setns(namespace, flags=0)
        return socket.socket(socket.AF_INET, kind)
    finally:
        netns.popns()


async def connect(namespace: str, address: str, port: int) -> trio.SocketStream:
    """A connection; tries again until the limit, since a guest that starts refuses or is silent."""
    with trio.move_on_after(WAIT_LIMIT_S):
        while True:
            attempt = trio.socket.from_stdlib_socket(socket_in(namespace))
            try:
                with trio.move_on_after(ATTEMPT_S):
                    await attempt.connect((address, port))
                    return trio.SocketStream(attempt)
            except OSError:
                await trio.sleep(ATTEMPT_S / 10)
            attempt.close()
    raise AssertionError(f"{address}:{port} takes no connection within {WAIT_LIMIT_S} s")


async def shell(cluster: Cluster, command: str, address: str = GUEST_ADDRESS) -> str:
    """The output of a command in the guest, errors included."""
    with trio.fail_after(WAIT_LIMIT_S):
        async with await connect(cluster.namespaces.client, address, AGENT_PORT) as stream:
            await stream.send_all(command.encode() + b"\n")
            await stream.send_eof()
            return b"".join([bytes(part) async for part in stream]).decode()


async def tell(cluster: Cluster, command: str) -> None:
    """A command after which the guest may not answer any more, nor its connection end."""
    with trio.move_on_after(ATTEMPT_S):
        await shell(cluster, command)


async def stop_guest(cluster: Cluster, *daemons: Daemon) -> None:
    """Have the guest stop itself, and these daemons follow."""
    async with trio.open_nursery() as nursery:
        # Its shell ends with the connection, so the connection stays for as long as the guest does.
        nursery.start_soon(shell, cluster, "stop-guest")
        for daemon in daemons:
            await daemon.wait_ended(0)
        nursery.cancel_scope.cancel()


@dataclass(slots=True)
class Client:
    """Connections that write without a pause, each waiting for the answer before its next write."""

    work: Work
    load: Load
    abandoned: bool = False
    cancel_scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self) -> None:
        with self.cancel_scope:
            await self.load.run()

    @property
    def acknowledged(self) -> int:
        return sum(connection.acknowledged for connection in self.load.connections)

    @property
    def failures(self) -> list[str]:
        return [connection.failure for connection in self.load.connections if connection.failure is not None]

    async def wait_progress(self, count: int = 20) -> None:
        """Returns when each connection has been answered `count` times more."""
        goals = [connection.acknowledged + count for connection in self.load.connections]

        def reached() -> bool:
            assert not self.failures, f"connections failed: {self.failures}"
            pairs = zip(self.load.connections, goals, strict=True)
            return all(connection.acknowledged >= goal for connection, goal in pairs)

        await wait_for(f"client: {count} more writes acknowledged", reached)

    def abandon(self) -> None:
        """The guest is gone on purpose: what is under way stays unanswered, and nothing is read back."""
        self.abandoned = True
        self.cancel_scope.cancel()

    async def read_back(self) -> None:
        """Compare all values with what was written. Prerequisite: nothing is being written."""
        assert not self.failures, f"connections failed: {self.failures}"
        for connection in self.load.connections:
            with trio.fail_after(WAIT_LIMIT_S):
                findings = await read_back(self.work, connection)
            assert connection.failure is None, connection.failure
            assert not findings, f"connection {connection.number}: {findings[:5]}"

    async def check_disk(self, cluster: Cluster, node: Node) -> None:
        """File system and append-only file on the data disk of a guest that was stopped."""
        extracted = cluster.directory / "extracted"
        extracted.mkdir()
        histories = {connection.number: connection.history() for connection in self.load.connections}
        found = await examine(
            node.disks[0], extracted, histories, seed=self.work.seed, payload_bytes=self.work.payload_bytes
        )
        assert found.filesystem.clean, found.filesystem.output
        assert found.append_only_file.clean, found.append_only_file.output
        assert not found.findings, found.findings[:5]


@asynccontextmanager
async def writing(cluster: Cluster, work: Work = WORK) -> AsyncIterator[Client]:
    """Writes under way while the body runs. Then every write is waited for, and read back through the same
    connection."""
    async with AsyncExitStack() as stack:
        connections = []
        for number in range(work.connections):
            stream = await connect(cluster.namespaces.client, GUEST_ADDRESS, SERVICE_PORT)
            stack.push_async_callback(trio.aclose_forcefully, stream)
            connections.append(Connection(number, stream))
        client = Client(work, Load(work, connections))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            yield client
            client.load.draining.set()
        if not client.abandoned:
            await client.read_back()
