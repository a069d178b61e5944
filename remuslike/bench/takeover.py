"""A cell that ends with a death: a load whose every write is known, the primary's host killed under it, and
what the survivor then has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic

import trio

from remuslike.bench.errors import MeasurementError
from remuslike.bench.hosts import Hosts
from remuslike.bench.options import RunOptions
from remuslike.bench.results import Load
from remuslike.bench.stage import LAST_SAMPLES_S
from remuslike.demo import messages
from remuslike.demo.load import History, LoadClient, client_program, load_history
from remuslike.demo.plan import GUEST_ADDRESS
from remuslike.demo.processes import Process, Victims
from remuslike.demo.topology import NAMESPACE_DIRECTORY
from remuslike.image import AGENT_PORT, SERVICE_PORT

CONNECTIONS, PIPELINE, PAYLOAD_BYTES = 64, 4, 256  # as in the demo
_LOAD_SHARE = 4  # of the guest's memory: it holds what is written three times

_CONNECT_LIMIT_S = 60.0
_TAKEOVER_LIMIT_S = 30.0
_VERIFY_LIMIT_S = 180.0
AFTERWARDS_S = 1.0  # of load on the survivor: the client's retransmission comes in it


@dataclass(frozen=True, slots=True)
class Takeover:
    """Milliseconds from the kill to each of its parts, and acknowledged writes that the survivor hasn't."""

    after_ms: Mapping[str, float] = field(default_factory=dict)
    lost: int | None = None


async def measure_takeover(running: Hosts, options: RunOptions, seed: int) -> tuple[Load, Takeover]:
    """Writes for `options.seconds`, kills, and reads back. Raises MeasurementError, `DemoError`."""
    program = client_program(
        running.network.namespaces.client,
        running.directories.client_log,
        host=GUEST_ADDRESS,
        service_port=SERVICE_PORT,
        agent_port=AGENT_PORT,
        seed=seed,
        connections=CONNECTIONS,
        pipeline=PIPELINE,
        payload_bytes=PAYLOAD_BYTES,
        limit_bytes=(options.memory_mib << 20) // _LOAD_SHARE,
        history=running.directories.history,
    )
    with ExitStack() as stack:
        client = LoadClient(stack.enter_context(Process(program)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await client.wait_for("connected", "connecting to the guest's redis", _CONNECT_LIMIT_S)
            with running.stage.measured():
                await trio.sleep(options.seconds)
            await trio.sleep(LAST_SAMPLES_S)  # under load as before
            killed_at = kill(running)
            takeover = await taken_over(running, killed_at)
            await trio.sleep(AFTERWARDS_S)
            client.tell("drain")
            await client.wait_for("verified", "reading the values back", _VERIFY_LIMIT_S)
            complete = client.progress.complete
            nursery.cancel_scope.cancel()
    if not complete:
        raise MeasurementError("the values were not all read back in time: what is lost is unknown")
    return _concluded(running, load_history(running.directories.history), killed_at, takeover)


def kill(running: Hosts) -> float:
    """The primary's host dies: when. The links go first, for a host without power sends no FIN."""
    assert running.observer.primary is not None
    victims = Victims(NAMESPACE_DIRECTORY / running.network.namespaces.hosts["primary"])
    running.observer.primary.may_end = True
    killed_at = monotonic()
    running.network.cut_primary()
    victims.kill()
    victims.close()
    return killed_at


async def taken_over(running: Hosts, killed_at: float) -> messages.Takeover:
    """What the secondary says of its takeover. Raises MeasurementError when that was none of the kill's."""
    observer = running.observer

    def is_active() -> bool:
        said = observer.secondary_said
        return said is not None and said.phase == "active" and said.takeover is not None

    await observer.wait_until(is_active, "takeover by the secondary", _TAKEOVER_LIMIT_S)
    assert observer.secondary_said is not None
    assert observer.secondary_said.takeover is not None
    takeover = observer.secondary_said.takeover
    if takeover.decided_at < killed_at:
        raise MeasurementError(
            f"the secondary took over {killed_at - takeover.decided_at:.3f} s before the kill"
            f" ({takeover.cause}): give more for --detect-ms on a machine as busy as this"
        )
    return takeover


def parts_of(takeover: messages.Takeover, killed_at: float, reply_times: Iterable[float]) -> dict[str, float]:
    """Milliseconds from the kill to each part of the takeover, and to the first reply of the survivor."""
    running_at = takeover.running_at or takeover.decided_at
    moments = {
        "decided": takeover.decided_at,
        "granted": takeover.granted_at,
        "opened": takeover.opened_at,
        "running": takeover.running_at,
        "first_reply": min((at for at in reply_times if at >= running_at), default=None),
    }
    return {name: round((at - killed_at) * 1e3, 3) for name, at in moments.items() if at is not None}


def _concluded(
    running: Hosts, history: History, killed_at: float, takeover: messages.Takeover
) -> tuple[Load, Takeover]:
    if history.failures:
        raise MeasurementError(f"{len(history.failures)} connections failed: {history.failures[0]}")
    window = running.stage.window
    assert window is not None
    replies = sum(window.began <= at <= window.ended for at in history.reply_times)
    lost = sum(finding.acknowledged for finding in history.found)
    load = Load(unit="replies/s", rate=replies / window.seconds)
    return load, Takeover(parts_of(takeover, killed_at, history.reply_times), lost)
