"""`remuslike bench net`: what holding the guest's frames costs, against a bare tap in the same run.

Two kinds of guests send and receive. A real one, under QEMU, is what a hold is for. A synthetic one (see
`lan`) has this kernel's own TCP, which is faster than any guest, so it hides less of what a hold costs; and
it needs no QEMU, so the plug can be measured in the kernel lab. All settings stand side by side in one
private network namespace and are measured in turns.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from rich.console import Console

from netbuf import Backend, Hold, HostError, Pressure, Wish, choose, make_hold
from remuslike.bench import sealing, traffic
from remuslike.bench.environment import record_environment
from remuslike.bench.figures import Measure, Of, Report, Sample, Wanted
from remuslike.bench.lan import BRIDGE, Guest, Lan, enter_private_network
from remuslike.bench.machine import start_qemu_guest
from remuslike.bench.output import check_json_path, check_root, check_tools, take_samples
from remuslike.bench.plan import in_turn
from remuslike.bench.view import View
from remuslike.image import Accelerator, GuestImage, build_image, probe_accelerator

LIMIT_BYTES = 64 << 20
"""Of each hold, as the daemons' configuration has it by default."""

EPOCH_MS = 25.0
_DEPTH = 2  # as the default window
_SLOW_START_S = 2  # of a TCP connection whose round trip is an epoch
_REALTIME_PRIORITY = 1  # as a daemon's event loop runs, so that what holds is scheduled as it would be

TOOLS = {"iperf3": "iperf3", "ip": "iproute2", "nsenter": "util-linux", "setpriv": "util-linux"}

PARTS = ("tcp", "udp", "seal", "notify")
"""What can be measured by itself."""

Machine = tuple[GuestImage, Accelerator]

BARE, HIGH_LEVEL = "bare", "pyroute2"
TCP_OUT, TCP_IN, UDP_OUT = "tcp_out", "tcp_in", "udp_out"
QEMU_OUT, QEMU_IN = "tcp_out_qemu", "tcp_in_qemu"
SEAL_RELEASE, MESSAGES = "seal_release", "seal_release_messages"
TOLD_TCP, TOLD_UDP = "told_tcp", "told_udp"
EPOCHS = f", {EPOCH_MS:g} ms epochs"
UNTOLD = ", nobody told"

_TCP = dict.fromkeys(("tap", "plug"), Wanted(Of.RATIO, at_least=0.9))
_TOLD = [f"{hold}{state}" for hold in ("tap", "plug") for state in ("", EPOCHS)]
MEASURES = (
    Measure(QEMU_OUT, "TCP, QEMU guest to host", "Gbit/s", BARE, _TCP),
    Measure(QEMU_IN, "TCP, host to QEMU guest", "Gbit/s", BARE, _TCP),
    Measure(TCP_OUT, "TCP, synthetic guest to host", "Gbit/s", BARE, _TCP),
    Measure(TCP_IN, "TCP, host to synthetic guest", "Gbit/s", BARE, _TCP),
    Measure(
        UDP_OUT,
        "64-byte UDP, synthetic guest to host",
        "frames/s",
        BARE,
        {"plug": Wanted(Of.RATIO, at_least=0.8)},
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
    *(
        Measure(
            name,
            f"{title}, told of each epoch's first output",
            unit,
            wanted=dict.fromkeys(_TOLD, Wanted(Of.RATIO, at_least=0.95)),
            baselines={setting: f"{setting}{UNTOLD}" for setting in _TOLD},
        )
        for name, title, unit in ((TOLD_TCP, "TCP out", "Gbit/s"), (TOLD_UDP, "64-byte UDP", "frames/s"))
    ),
)


@dataclass(frozen=True, slots=True)
class NetOptions:
    """One invocation. Each sample of traffic takes `seconds`, each setting gives `repeat` of them.
    With `qemu` a real guest is measured, too, where one can be. `parts` are some of PARTS."""

    seconds: int = 2
    repeat: int = 5
    qemu: bool = True
    parts: tuple[str, ...] = PARTS
    json_path: Path | None = None

    def check(self) -> None:
        """Raises BenchOptionError."""
        check_json_path(self.json_path)


class Subject:
    """A guest and what stands between it and the bridge; without a hold its tap is a bare port."""

    def __init__(
        self, name: str, guest: Guest, hold: Hold | None, measures: tuple[str, str], *, told: bool = True
    ) -> None:
        """`measures` are those of TCP from the guest and to it. `told`: of each epoch's first output."""
        self.name = name
        self.guest = guest
        self.hold = hold
        self.measures = measures
        self._epoch = 1
        self._filling = trio.Event()
        if hold is not None:
            hold.on_pressure(self._fills)
            if told:
                hold.on_output(self._emits)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Within the block the hold is open; outside, nothing of it runs beside another's measurement."""
        async with trio.open_nursery() as nursery:
            if self.hold is not None:
                await nursery.start(self.hold.run)
                await self.hold.open()
            await self.guest.ready()
            yield
            nursery.cancel_scope.cancel()

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

    def _emits(self, _epoch: int) -> None:
        """Asked for as the engine asks, so that what it costs is measured."""

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

    def __init__(
        self, lan: Lan, options: NetOptions, view: View, stack: ExitStack, machine: Machine | str
    ) -> None:
        """Prepares all. What can't be done here is named in `skipped`; `machine` may be a reason for it."""
        self._options = options
        self._view = view
        self.samples: list[Sample] = []
        self.skipped: dict[str, str] = {}
        if isinstance(machine, str):
            self.skipped["QEMU guest"] = machine
        holds = self._possible_holds()
        self._subjects: list[Subject] = []
        for name in (BARE, *holds):
            guests: list[tuple[Guest, tuple[str, str]]] = [(lan.add_synthetic_guest(), (TCP_OUT, TCP_IN))]
            if not isinstance(machine, str):
                guests.append((start_qemu_guest(lan, *machine), (QEMU_OUT, QEMU_IN)))
            for guest, measures in guests:
                hold = None
                if name == BARE:
                    lan.join_bare(guest)
                else:
                    hold = _held(stack, guest, holds[name])
                self._subjects.append(Subject(name, guest, hold, measures))
        self._pairs: list[tuple[Subject, Subject]] = []
        if "notify" in options.parts:
            for told in [each for each in self._subjects if each.hold and each.guest.shares_kernel]:
                guest = lan.add_synthetic_guest()
                hold = _held(stack, guest, holds[told.name])
                untold = Subject(told.name, guest, hold, told.measures, told=False)
                self._pairs.append((told, untold))
        self._high_level: sealing.HighLevelPlug | None = None
        if Backend.PLUG in holds.values():
            self._high_level = stack.enter_context(closing(sealing.HighLevelPlug()))

    def _possible_holds(self) -> dict[str, Backend]:
        holds: dict[str, Backend] = {}
        wishes: tuple[Wish, ...] = ("tap", "plug")
        for wish in wishes:
            try:
                holds[wish] = choose(wish, LIMIT_BYTES).backend
            except HostError as error:
                self.skipped[wish] = str(error)
        return holds

    async def run(self) -> None:
        """Take all samples. Raises MeasurementError, `netbuf.NetbufError`."""
        for subject in self._subjects:
            async with subject.at_work():
                pass  # so that no guest boots beside a measurement
        for number in range(1, self._options.repeat + 1):
            for subject in in_turn(self._subjects, number):
                async with subject.at_work():
                    await self._turn(number, subject)
            for pair in self._pairs:
                for subject in in_turn(pair, number):
                    async with subject.at_work():
                        await self._notify(number, subject, "" if subject is pair[0] else UNTOLD)
            if self._high_level is not None and "seal" in self._options.parts:
                self._note(Sample(SEAL_RELEASE, HIGH_LEVEL, number, self._high_level.time_pairs()))
                self._note(Sample(MESSAGES, HIGH_LEVEL, number, self._high_level.count_pairs()))

    async def _turn(self, number: int, subject: Subject) -> None:
        parts = self._options.parts
        if "tcp" in parts:
            await self._tcp(number, subject, subject.name)
        if "udp" in parts and subject.guest.shares_kernel:
            await self._udp(number, subject)
        if subject.hold is None:
            return
        if "tcp" in parts:
            async with subject.holding(EPOCH_MS / 1e3):
                await self._tcp(number, subject, f"{subject.name}{EPOCHS}")
        if "seal" in parts and subject.guest.shares_kernel:  # and so says nothing by itself
            microseconds, messages = await subject.seal_and_release()
            self._note(Sample(SEAL_RELEASE, subject.name, number, microseconds))
            self._note(Sample(MESSAGES, subject.name, number, messages))

    async def _notify(self, number: int, subject: Subject, suffix: str) -> None:
        """While it is open, and while it holds: then each epoch has a first output."""
        await self._told(number, subject, f"{subject.name}{suffix}")
        async with subject.holding(EPOCH_MS / 1e3):
            await self._told(number, subject, f"{subject.name}{EPOCHS}{suffix}")

    async def _told(self, number: int, subject: Subject, setting: str) -> None:
        tcp = await traffic.measure_tcp(
            subject.guest, self._options.seconds, to_guest=False, settle_s=_SLOW_START_S
        )
        self._note(Sample(TOLD_TCP, setting, number, tcp.gbit_per_s, tcp.cores))
        udp = await traffic.measure_udp(subject.guest, self._options.seconds)
        self._note(Sample(TOLD_UDP, setting, number, udp.arrived_per_s, udp.cores))

    async def _tcp(self, number: int, subject: Subject, setting: str) -> None:
        for measure, to_guest in zip(subject.measures, (False, True), strict=True):
            found = await traffic.measure_tcp(subject.guest, self._options.seconds, to_guest=to_guest)
            self._note(Sample(measure, setting, number, found.gbit_per_s, found.cores))

    async def _udp(self, number: int, subject: Subject) -> None:
        found = await traffic.measure_udp(subject.guest, self._options.seconds)
        self._note(Sample(UDP_OUT, subject.name, number, found.arrived_per_s, found.cores))

    def _note(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._view.sample(sample, self._options.repeat)


def _held(stack: ExitStack, guest: Guest, backend: Backend) -> Hold:
    return stack.enter_context(closing(make_hold(backend, guest.tap, BRIDGE, LIMIT_BYTES, _DEPTH)))


def run_net_bench(options: NetOptions, console: Console) -> int:
    """Measure, and report on `console` and in `options.json_path`.

    This process leaves its network namespace for good. Returns the exit status, see `take_samples`. Raises
    BenchError, `netbuf.NetbufError`; whatever happens, no process, namespace or interface of the benchmark is
    left.
    """
    options.check()
    check_root()
    check_tools(TOOLS)
    environment = record_environment()
    view = View(console, MEASURES)
    machine = _machine(options, view, emulated=environment.emulated)
    enter_private_network()
    with ExitStack() as stack:
        lan = stack.enter_context(Lan())
        bench = NetBench(lan, options, view, stack, machine)
        report = Report(
            benchmark="net",
            environment=asdict(environment),
            options={
                "seconds": options.seconds,
                "repeat": options.repeat,
                "parts": options.parts,
                "epoch_ms": EPOCH_MS,
            },
            measures=MEASURES,
            skipped=bench.skipped,
            samples=bench.samples,
            timely=not environment.emulated,
        )
        with _as_a_daemon():
            return take_samples(bench.run, report, view, options.json_path)


def _machine(options: NetOptions, view: View, *, emulated: bool) -> Machine | str:
    """What a real guest runs as, or why there is none. May build the image, which needs a network."""
    if not options.qemu:
        return "not asked for"
    if emulated:
        return "this processor is emulated already: a guest would not boot in time"
    if shutil.which("qemu-system-x86_64") is None:
        return "qemu-system-x86_64 isn't installed; install it with: apt-get install qemu-system-x86"
    image = build_image(progress=view.say)
    return image, probe_accelerator(image)


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
