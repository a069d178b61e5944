"""A stage without a guest, and places where benchmarks' guests run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import trio

from remuslike.bench.plan import Visit
from remuslike.bench.results import Load
from remuslike.bench.stage import Window
from remuslike.demo.messages import Sample

LINK_MS = 0.25
CONNECTS_S = 3.0


@dataclass
class FakeSession:
    """A program that says "ready" and at its end `answer`."""

    answer: str
    heard: list[bytes] = field(default_factory=list)
    connections: tuple[int, int] = (0, 0)

    async def expect(self, wanted: str) -> None:
        assert wanted == "ready"

    async def wait_connections(self, port: int, count: int) -> None:
        self.connections = (port, count)
        await trio.sleep(CONNECTS_S)

    async def send(self, data: bytes) -> None:
        self.heard.append(data)

    async def rest(self) -> str:
        return self.answer

    finish = rest


@dataclass
class FakeStage:
    """Answers each command of the guest (`shell`) and of the client (`tool`) by what its first lines contain.
    The guest's clock goes at `clock_rate` of trio's."""

    shell_answers: Mapping[str, str] = field(default_factory=dict)
    tool_answers: Mapping[str, str] = field(default_factory=dict)
    clock_rate: float = 1.0
    address: str = "10.77.0.2"
    windows: list[Window] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    sessions: list[FakeSession] = field(default_factory=list)

    @contextmanager
    def measured(self) -> Iterator[None]:
        began = trio.current_time()
        yield
        self.windows.append(Window(began, trio.current_time(), {"qemu": 0.5}, {"qemu": 100.0}))

    def take_window(self) -> Window:
        return self.windows.pop()

    async def shell(self, command: str, *, limit_s: float = 0) -> str:
        return self._answer(self.shell_answers, command)

    async def tool(self, *command: str, limit_s: float) -> str:
        return self._answer(self.tool_answers, " ".join(command))

    @asynccontextmanager
    async def shell_session(self, command: str, *, limit_s: float = 0) -> AsyncIterator[FakeSession]:
        self.sessions.append(FakeSession(self._answer(self.shell_answers, command)))
        yield self.sessions[-1]

    @asynccontextmanager
    async def tool_session(self, *command: str, limit_s: float) -> AsyncIterator[FakeSession]:
        self.sessions.append(FakeSession(self._answer(self.tool_answers, " ".join(command))))
        yield self.sessions[-1]

    async def guest_clock_s(self) -> tuple[float, float]:
        now = trio.current_time()
        return now, now * self.clock_rate

    def _answer(self, answers: Mapping[str, str], command: str) -> str:
        self.said.append(command)
        return next((answer for part, answer in answers.items() if part in command), "")


@dataclass
class FakeWorkload:
    """Measures one thing a second, unless `fails` says otherwise."""

    name: str
    variants: tuple[Mapping[str, int], ...] = ({},)
    fails: Callable[[Mapping[str, int]], Exception | None] = lambda _parameters: None
    service: str = "none"

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {}

    async def measure(self, stage: FakeStage, parameters: Mapping[str, int], seconds: int) -> Load:
        if error := self.fails(parameters):
            raise error
        with stage.measured():
            await trio.sleep(seconds)
        return Load(unit="things/s", rate=1.0, latencies_ms=(1.0, 2.0))


def sample(epoch: int, at: float) -> Sample:
    return Sample(
        epoch=epoch,
        at=at,
        dirty_pages=10,
        seal_ms=0.1,
        gap_ms=0.1,
        pause_ms=4.0,
        stop_ms=1.0,
        scan_ms=1.0,
        copy_ms=1.0,
        devices_ms=1.0,
        resume_ms=0.0,
        raw_bytes=40960,
        wire_bytes=100,
        commit_ms=None,
    )


@dataclass
class FakePlace:
    """Boots in `boot_s`, but for the boots (from 0 on) that `fail`; notes its visits. The primary runs alone
    for a while two seconds after the boots that are `parted`."""

    boot_s: float = 10.0
    fail: Mapping[int, Exception] = field(default_factory=dict)
    parted: frozenset[int] = frozenset()
    visits: list[Visit] = field(default_factory=list)
    standing: int = 0

    @asynccontextmanager
    async def __call__(self, visit: Visit, root: Path) -> AsyncIterator[SimpleNamespace]:
        self.visits.append(visit)
        await trio.sleep(self.boot_s)
        if error := self.fail.get(len(self.visits) - 1):
            raise error
        self.standing += 1
        began = trio.current_time()
        samples = [sample(number, began + number) for number in range(10)] if visit.setting.protected else []
        try:
            # As of the real one, what is raised within comes out in a group.
            async with trio.open_nursery() as nursery:
                said = SimpleNamespace(protected=True, generation=1) if visit.setting.protected else None
                if len(self.visits) - 1 in self.parted:
                    nursery.start_soon(_part, said)
                observer = SimpleNamespace(samples=samples, primary_said=said)
                yield SimpleNamespace(
                    stage=FakeStage(), observer=observer, link_round_trip_ms=lambda: LINK_MS
                )
                nursery.cancel_scope.cancel()
        finally:
            self.standing -= 1


async def _part(said: SimpleNamespace | None) -> None:
    """The secondary is lost, and has been found again before anybody looks."""
    assert said is not None, "only what is protected can be parted"
    await trio.sleep(2)
    said.generation += 1
