"""One run of the demo: two hosts, a guest, a client, a death, and the examination afterwards."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import trio

from remuslike.demo.control import ask
from remuslike.demo.daemons import start_daemon
from remuslike.demo.errors import DaemonError, DemoError, GuestLostError, LoadError
from remuslike.demo.load import LoadClient, client_program, load_history
from remuslike.demo.messages import Pauses, Takeover
from remuslike.demo.observer import Daemon, Observer
from remuslike.demo.options import DemoOptions
from remuslike.demo.plan import GUEST_ADDRESS, Directories, GuestFiles, Role, kill_after_s
from remuslike.demo.processes import Process, Victims
from remuslike.demo.report import Observation, Result, conclude
from remuslike.demo.survivor import examine
from remuslike.demo.topology import NAMESPACE_DIRECTORY, Topology, topology
from remuslike.demo.view import REDRAW_S, Gauges, View
from remuslike.image import AGENT_PORT, SERVICE_PORT

# Far above what the slowest machine with emulation needs; they only bound a hang.
READY_LIMIT_S = 30
PROTECTED_LIMIT_S = 120
CONNECT_LIMIT_S = 60
TAKEOVER_LIMIT_S = 30
VERIFY_LIMIT_S = 180
STOP_LIMIT_S = 60

SETTLE_S = 2.0  # of load between takeover and the pause measurement: the outage ends in it
BASELINE_PAUSES = 40
BASELINE_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Killed:
    """The moment of the host's death, what was acknowledged before, and what the survivor did."""

    at: float
    acknowledged: int
    takeover: Takeover


@dataclass(slots=True)
class Scenario:
    """One run; `directories` exist and are empty."""

    options: DemoOptions
    seed: int
    guest: GuestFiles
    directories: Directories
    view: View
    observer: Observer

    async def run(self) -> Result:
        """Plays it. Raises an expected error when it can't be played to its end."""
        began = monotonic()
        self.view.timings_s.clear()
        with topology(os.getpid()) as network, ExitStack() as processes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.observer.run)
                await self._protect(network, processes)
                client = self._start_client(network, processes)
                nursery.start_soon(client.run)
                with self.view.stage("connections open"):
                    await client.wait_for("connected", "connecting to the guest's redis", CONNECT_LIMIT_S)
                self.view.timings_s["set-up"] = monotonic() - began
                load_started_at = monotonic()
                async with self._shown(client):
                    killed = await self._kill_under_load(network, client, load_started_at)
                    baseline = await self._measure_baseline()
                with self.view.stage("values read back"):
                    client.tell("drain")
                    await client.wait_for("verified", "reading the values back", VERIFY_LIMIT_S)
                with self.view.stage("guest stopped"):
                    await self._stop_guest(client)
                nursery.cancel_scope.cancel()
        with self.view.stage("disk examined"):
            return await self._conclude(client, load_started_at, killed, baseline)

    def _start_daemon(self, role: Role, network: Topology, processes: ExitStack) -> Daemon:
        namespace = network.namespaces.hosts[role]
        daemon = start_daemon(role, namespace, self.options, self.seed, self.guest, self.directories)
        processes.enter_context(daemon.process)
        return daemon

    async def _protect(self, network: Topology, processes: ExitStack) -> None:
        """Starts both daemons, and returns when the guest is protected."""
        observer = self.observer
        with self.view.stage("secondary waiting"):
            observer.secondary = self._start_daemon("secondary", network, processes)
            await observer.wait_until(
                lambda: observer.secondary_said is not None, "the secondary's control socket", READY_LIMIT_S
            )
        with self.view.stage("primary running"):
            observer.primary = self._start_daemon("primary", network, processes)
            await observer.wait_until(
                lambda: observer.primary_said is not None, "the primary's control socket", READY_LIMIT_S
            )
        with self.view.stage("guest protected") as tell:

            def is_protected() -> bool:
                tell(self._synchronisation())
                return self._is_protected()

            await observer.wait_until(is_protected, "a protected guest", PROTECTED_LIMIT_S)

    def _synchronisation(self) -> str:
        said = self.observer.primary_said
        if said is None or said.sync is None:
            return said.phase if said else "starting"
        return (
            f"pass {said.sync.passes}, {said.sync.pages_sent} pages, {said.sync.chunks_sent} disk chunks sent"
        )

    def _is_protected(self) -> bool:
        primary, secondary = self.observer.primary_said, self.observer.secondary_said
        return bool(primary and primary.protected and secondary and secondary.phase == "standby")

    def _start_client(self, network: Topology, processes: ExitStack) -> LoadClient:
        program = client_program(
            network.namespaces.client,
            self.directories.client_log,
            host=GUEST_ADDRESS,
            service_port=SERVICE_PORT,
            agent_port=AGENT_PORT,
            seed=self.seed,
            connections=self.options.connections,
            pipeline=self.options.pipeline,
            payload_bytes=self.options.payload_bytes,
            limit_bytes=self.options.load_limit_bytes,
            history=self.directories.history,
        )
        return LoadClient(processes.enter_context(Process(program)))

    @asynccontextmanager
    async def _shown(self, client: LoadClient) -> AsyncIterator[None]:
        gauges = Gauges(self.observer, monotonic())

        async def redraw() -> None:
            while True:
                self.view.show(gauges.read(monotonic(), client.progress))
                await trio.sleep(REDRAW_S)

        with self.view.load():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(redraw)
                yield
                nursery.cancel_scope.cancel()

    async def _kill_under_load(self, network: Topology, client: LoadClient, load_started_at: float) -> Killed:
        """Lets the load run, kills the primary's host, and waits for the secondary to be active."""
        observer = self.observer
        assert observer.primary is not None
        kill_at = load_started_at + kill_after_s(self.seed, self.options.duration_s)
        await trio.sleep(kill_at - monotonic())
        if client.progress.limited:
            raise LoadError(
                f"the load reached its limit of {self.options.load_limit_bytes >> 20} MiB before the kill;"
                f" give more than --memory-mib {self.options.memory_mib} or a shorter --duration-s"
            )
        victims = Victims(NAMESPACE_DIRECTORY / network.namespaces.hosts["primary"])
        observer.primary.may_end = True
        acknowledged = client.progress.acknowledged
        killed_at = monotonic()
        # The links first: a host without power sends no FIN for its dead processes' sockets.
        network.cut_primary()
        victims.kill()
        victims.close()
        self.view.say(
            f"killed the primary's host {killed_at - load_started_at:.2f} s into the load:"
            f" SIGKILL to {victims.count} processes, links cut"
        )
        try:
            await observer.wait_until(self._is_active, "takeover by the secondary", TAKEOVER_LIMIT_S)
        except DemoError as error:
            raise GuestLostError(f"the guest did not outlive its host: {error}") from error
        assert observer.secondary_said is not None
        assert observer.secondary_said.takeover is not None
        takeover = observer.secondary_said.takeover
        if takeover.decided_at < killed_at:
            raise DaemonError(
                f"the secondary took over {killed_at - takeover.decided_at:.3f} s before the kill"
                f" ({takeover.cause}): it heard nothing for longer than --detect-ms"
                f" {self.options.detect_ms:g}; give more on a machine as busy as this"
            )
        return Killed(killed_at, acknowledged, takeover)

    def _is_active(self) -> bool:
        said = self.observer.secondary_said
        return said is not None and said.phase == "active" and said.takeover is not None

    async def _measure_baseline(self) -> tuple[float, ...]:
        """QEMU's own stop, save and continue on the survivor, under the same load."""
        await trio.sleep(SETTLE_S)
        assert self.observer.secondary is not None
        control = self.observer.secondary.control
        pauses = await ask(control, Pauses, "measure-pause", limit_s=BASELINE_LIMIT_S, count=BASELINE_PAUSES)
        return tuple(pauses.pause_ms)

    async def _stop_guest(self, client: LoadClient) -> None:
        """The guest stops itself, the file system clean; the survivor's daemon follows."""
        survivor = self.observer.secondary
        assert survivor is not None
        survivor.may_end = True
        client.tell("stop-guest")
        await client.wait_for("stopping", "reaching the guest's agent", STOP_LIMIT_S)
        await self.observer.wait_ended(survivor, "the end of the stopped guest", STOP_LIMIT_S)

    async def _conclude(
        self, client: LoadClient, load_started_at: float, killed: Killed, baseline: tuple[float, ...]
    ) -> Result:
        history = load_history(self.directories.history)
        extracted = self.directories.extracted
        extracted.mkdir()
        examination = await examine(
            self.directories.data_disk("secondary"),
            extracted,
            history.by_connection,
            seed=self.seed,
            payload_bytes=self.options.payload_bytes,
        )
        samples = (s for s in self.observer.samples if load_started_at <= s.at <= killed.at)
        return conclude(
            Observation(
                seed=self.seed,
                acknowledged_writes=sum(entry.acknowledged for entry in history.connections),
                acknowledged_before_kill=killed.acknowledged,
                failures=history.failures,
                findings=history.found,
                read_back_complete=client.progress.complete,
                load_limited=client.progress.limited,
                reply_times=tuple(history.reply_times),
                samples=tuple(samples),
                load_started_at=load_started_at,
                killed_at=killed.at,
                takeover=killed.takeover,
                baseline_pause_ms=baseline,
                examination=examination,
                timings_s=dict(self.view.timings_s),
            )
        )
