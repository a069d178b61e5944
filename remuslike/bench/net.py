"""`remuslike bench net`: what holding the guest's frames costs, against a bare tap in the same run.

The guest is synthetic (see `lan`): its TCP is this kernel's, which is faster than any guest and so hides less
of what a hold costs, and it needs no QEMU, so the plug can be measured in the kernel lab. All settings stand
side by side in one private network namespace and are measured in turns.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from rich.console import Console

from netbuf import Hold, HostError, Pressure, choose, make_hold
from remuslike.bench import sealing, traffic
from remuslike.bench.environment import record_environment
from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError, MeasurementError
from remuslike.bench.figures import Measure, Of, Report, Sample, Wanted
from remuslike.bench.lan import BRIDGE, Lan, SyntheticGuest, enter_private_network
from remuslike.bench.view import View

LIMIT_BYTES = 64 << 20
"""Of each hold, as the daemons' configuration has it by default."""

EPOCH_MS = 25.0
_DEPTH = 2  # as the default window
_REALTIME_PRIORITY = 1  # as a daemon's event loop runs, so that what holds is scheduled as it would be

TOOLS = {"iperf3": "iperf3", "ip": "iproute2", "nsenter": "util-linux", "setpriv": "util-linux"}

BARE, HIGH_LEVEL = "bare", "pyroute2"
TCP_OUT, TCP_IN, UDP_OUT = "tcp_out", "tcp_in", "udp_out"
SEAL_RELEASE, MESSAGES = "seal_release", "seal_release_messages"

_TCP = Wanted(Of.RATIO, at_least=0.9)
MEASURES = (
    Measure(TCP_OUT, "TCP, guest to host", "Gbit/s", BARE, {"tap": _TCP, "plug": _TCP}),
    Measure(TCP_IN, "TCP, host to guest", "Gbit/s", BARE, {"tap": _TCP, "plug": _TCP}),
    Measure(
        UDP_OUT, "UDP of 64 bytes, guest to host", "frames/s", BARE, {"plug": Wanted(Of.RATIO, at_least=0.8)}
    ),
    Measure(
        SEAL_RELEASE,
        "seal and release, nothing held",
        "µs",
        HIGH_LEVEL,
        {"plug": Wanted(Of.RATIO, at_most=0.1), "tap": Wanted(Of.MEDIAN, at_most=50)},
    ),
    Measure(
        MESSAGES,
        "... of it netlink messages",
        "messages",
        HIGH_LEVEL,
        {"plug": Wanted(Of.MEDIAN, at_most=2)},
        counted=True,
    ),
)


@dataclass(frozen=True, slots=True)
class NetOptions:
    """One invocation. Each sample of traffic takes `seconds`, each setting gives `repeat` of them."""

    seconds: int = 2
    repeat: int = 5
    json_path: Path | None = None

    def check(self) -> None:
        """Raises BenchOptionError."""
        if self.json_path is not None and not self.json_path.absolute().parent.is_dir():
            raise BenchOptionError(f"--json {self.json_path}: its directory doesn't exist; create it first")


class Subject:
    """A guest and what stands between it and the bridge; without a hold its tap is a bare port."""

    def __init__(self, name: str, guest: SyntheticGuest, hold: Hold | None) -> None:
        self.name = name
        self.guest = guest
        self.hold = hold
        self._epoch = 1
        self._filling = trio.Event()
        if hold is not None:
            hold.on_pressure(self._fills)

    @asynccontextmanager
    async def holding(self, every_s: float) -> AsyncIterator[None]:
        """Within the block frames are let out every `every_s`, or earlier if the hold gets half full."""
        assert self.hold is not None, f"{self.name} has nothing that holds"
        self.hold.hold(self._epoch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._release_on_a_timer, self.hold, every_s)
            yield
            nursery.cancel_scope.cancel()
        await self.hold.open()

    async def _release_on_a_timer(self, hold: Hold, every_s: float) -> None:
        while True:
            with trio.move_on_after(every_s):
                await self._filling.wait()
            self._filling = trio.Event()
            hold.prepare()
            hold.seal(self._epoch)
            self._epoch += 1
            await hold.release(self._epoch - 1)

    def _fills(self, _level: Pressure) -> None:
        self._filling.set()

    async def seal_and_release(self) -> tuple[float, float]:
        """What an empty epoch costs: µs and netlink messages."""
        assert self.hold is not None, f"{self.name} has nothing that holds"
        self.hold.hold(self._epoch)
        median_us, self._epoch = await sealing.time_pairs(self.hold, self._epoch)
        messages, self._epoch = await sealing.count_pairs(self.hold, self._epoch)
        await self.hold.open()
        return median_us, messages


class NetBench:
    """The settings, side by side on one LAN, and the samples taken of them."""

    def __init__(self, lan: Lan, options: NetOptions, view: View, stack: ExitStack) -> None:
        """Prepares all; a hold that this kernel can't do is named in `skipped`."""
        self._options = options
        self._view = view
        self.samples: list[Sample] = []
        self.skipped: dict[str, str] = {}
        bare = lan.add_guest()
        lan.join_bare(bare)
        self._subjects = [Subject(BARE, bare, None)]
        self._high_level: sealing.HighLevelPlug | None = None
        for wish in ("tap", "plug"):
            try:
                choice = choose(wish, LIMIT_BYTES)
            except HostError as error:
                self.skipped[wish] = str(error)
                continue
            guest = lan.add_guest()
            hold = stack.enter_context(
                closing(make_hold(choice.backend, guest.tap, BRIDGE, LIMIT_BYTES, _DEPTH))
            )
            self._subjects.append(Subject(wish, guest, hold))
            if wish == "plug":
                self._high_level = stack.enter_context(closing(sealing.HighLevelPlug()))

    async def run(self) -> None:
        """Take all samples. Raises MeasurementError, `netbuf.NetbufError`."""
        async with trio.open_nursery() as nursery:
            for subject in self._subjects:
                if subject.hold is not None:
                    await nursery.start(subject.hold.run)
                    await subject.hold.open()
            for number in range(1, self._options.repeat + 1):
                await self._round(number)
            nursery.cancel_scope.cancel()

    async def _round(self, number: int) -> None:
        # They take turns at being the first of a round, too.
        first = (number - 1) % len(self._subjects)
        for subject in self._subjects[first:] + self._subjects[:first]:
            await self._traffic(number, subject, subject.name)
            await self._udp(number, subject)
            if subject.hold is not None:
                async with subject.holding(EPOCH_MS / 1e3):
                    await self._traffic(number, subject, f"{subject.name}, {EPOCH_MS:g} ms epochs")
                microseconds, messages = await subject.seal_and_release()
                self._note(Sample(SEAL_RELEASE, subject.name, number, microseconds))
                self._note(Sample(MESSAGES, subject.name, number, messages))
        if self._high_level is not None:
            self._note(Sample(SEAL_RELEASE, HIGH_LEVEL, number, self._high_level.time_pairs()))
            self._note(Sample(MESSAGES, HIGH_LEVEL, number, self._high_level.count_pairs()))

    async def _traffic(self, number: int, subject: Subject, setting: str) -> None:
        for measure, to_guest in ((TCP_OUT, False), (TCP_IN, True)):
            found = await traffic.measure_tcp(subject.guest, self._options.seconds, to_guest=to_guest)
            self._note(Sample(measure, setting, number, found.gbit_per_s, found.cores))

    async def _udp(self, number: int, subject: Subject) -> None:
        found = await traffic.measure_udp(subject.guest, self._options.seconds)
        self._note(Sample(UDP_OUT, subject.name, number, found.arrived_per_s, found.cores))

    def _note(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._view.sample(sample, self._options.repeat)


def run_net_bench(options: NetOptions, console: Console) -> Report:
    """Measure, and report on `console` and in `options.json_path`.

    This process leaves its network namespace for good. Raises BenchError, `netbuf.NetbufError`; whatever
    happens, no process, namespace or interface of the benchmark is left.
    """
    options.check()
    _check_environment()
    environment = record_environment()
    view = View(console, MEASURES)
    enter_private_network()
    with ExitStack() as stack:
        lan = stack.enter_context(Lan())
        bench = NetBench(lan, options, view, stack)
        with _as_a_daemon():
            trio.run(_first_cause, bench)
    report = Report(
        benchmark="net",
        environment=asdict(environment),
        options={"seconds": options.seconds, "repeat": options.repeat, "epoch_ms": EPOCH_MS},
        measures=MEASURES,
        skipped=bench.skipped,
        samples=bench.samples,
        timely=not environment.emulated,
    )
    view.report(report)
    if options.json_path is not None:
        _write_json(options.json_path, report)
    return report


async def _first_cause(bench: NetBench) -> None:
    try:
        await bench.run()
    except BaseExceptionGroup as group:
        # One failed: the rest was cancelled. A defect of ours stays a group, with all its tracebacks.
        expected = group.subgroup(MeasurementError)
        if expected is not None and group.split(MeasurementError)[1] is None:
            raise _leaf(expected) from group
        raise


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _as_a_daemon() -> Iterator[None]:
    """Real-time, the lowest of it, as `remuslike primary` runs its loop. Children don't inherit it."""
    before, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    os.sched_setscheduler(0, policy, os.sched_param(_REALTIME_PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, parameters)


def _check_environment() -> None:
    if os.geteuid() != 0:
        raise BenchEnvironmentError("the benchmark makes network namespaces and needs root; run it with sudo")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise BenchEnvironmentError(f"{tool} isn't installed; install it with: apt-get install {package}")


def _write_json(path: Path, report: Report) -> None:
    try:
        path.write_text(json.dumps(report.document(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise BenchEnvironmentError(f"--json {path}: can't be written: {error.strerror}") from error
