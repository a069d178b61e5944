"""`remuslike bench disk`: what holding a disk's writes costs, against servers and drivers that hold nothing.

Four parts. `nbd` drives our server and nbdkit's memory plugin with fio's own NBD client; `connections` does
so with ten clients at once; `seal` times what a checkpoint asks of a buffer while the guest is paused;
`guest` has fio in real guests. All settings of a part stand side by side and are measured in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from remuslike.bench import diskguest, diskseal
from remuslike.bench.diskguest import DiskGuest, start_buffered_guest, start_raw_guest
from remuslike.bench.diskservers import Server, fill, measure_nbd, start_diskbuf, start_nbdkit
from remuslike.bench.environment import record_environment
from remuslike.bench.errors import BenchOptionError
from remuslike.bench.figures import Measure, Of, Report, Sample, Wanted
from remuslike.bench.fio import DEPTH, Job
from remuslike.bench.output import check_json_path, check_tools, take_samples
from remuslike.bench.plan import in_turn
from remuslike.bench.view import View
from remuslike.image import build_image, probe_accelerator

EPOCH_MS = 25.0
CLIENTS = 10
SEAL_WRITES = {"nothing": (0, 4096), "64 MiB in 256": (256, 256 << 10), "200 MiB in 51,200": (51_200, 4096)}
"""What the sealed epoch holds: how many writes of how many bytes."""

TOOLS = {"setpriv": "util-linux"}
FIO_TOOLS = {"fio": "fio", "nbdkit": "nbdkit"}
QEMU_TOOLS = {"qemu-system-x86_64": "qemu-system-x86"}

PARTS = ("nbd", "connections", "seal", "guest")
"""What can be measured by itself."""

NBDKIT, PLAIN, EPOCHS = "nbdkit", "diskbuf", "diskbuf, 25 ms epochs"
ONE, TEN = "1 client", f"{CLIENTS} clients"
NBDKIT_ONE, NBDKIT_TEN = f"{NBDKIT}, {ONE}", f"{NBDKIT}, {TEN}"
RAW, DIRECT = "QEMU's raw file", "QEMU's raw file, O_DIRECT"
BUFFERED, JOURNALLED = EPOCHS, f"{EPOCHS}, journal"

NBD_JOBS = {
    "write_4k": Job("randwrite", 4 << 10, ("--randrepeat=1",)),
    "read_4k": Job("randread", 4 << 10, ("--randrepeat=1",)),
    "write_256k": Job("write", 256 << 10),
    "read_256k": Job("read", 256 << 10),
}
CLIENT_JOBS = {"clients_write": NBD_JOBS["write_4k"], "clients_read": NBD_JOBS["read_4k"]}
SERVER_COST = {"clients_write": "clients_write_us", "clients_read": "clients_read_us"}
SEAL = "seal"
GUEST_JOBS = {
    "guest_write": diskguest.SEQUENTIAL,
    "guest_lone": diskguest.LONE,
    "guest_whole": diskguest.WHOLE,
    "guest_ordinary": diskguest.ORDINARY,
    "guest_fsync": diskguest.SYNCED,
}


def _nbd(name: str, title: str, at_least: float) -> Measure:
    wanted = {PLAIN: Wanted(Of.RATIO, at_least=at_least), EPOCHS: Wanted(Of.RATIO, at_least=0.85)}
    return Measure(name, title, "requests/s", NBDKIT, wanted, baselines={EPOCHS: PLAIN})


def _clients(name: str, title: str, unit: str, wanted: dict[str, Wanted]) -> Measure:
    return Measure(name, title, unit, ONE, wanted, baselines={NBDKIT_TEN: NBDKIT_ONE})


_NO_LESS = {TEN: Wanted(Of.RATIO, at_least=1.0)}
_NO_MORE = {TEN: Wanted(Of.RATIO, at_most=1.0)}
_GUEST = dict.fromkeys((BUFFERED, JOURNALLED), Wanted(Of.RATIO, at_least=0.9))
MEASURES = (
    _nbd("write_4k", "random writes of 4 KiB", 0.6),
    _nbd("read_4k", "random reads of 4 KiB", 0.6),
    _nbd("write_256k", "sequential writes of 256 KiB", 0.8),
    _nbd("read_256k", "sequential reads of 256 KiB", 0.8),
    _clients("clients_write", "random writes of 4 KiB, all clients", "requests/s", _NO_LESS),
    _clients("clients_write_us", "... the server's processor time each", "µs", _NO_MORE),
    _clients("clients_read", "random reads of 4 KiB, all clients", "requests/s", _NO_LESS),
    _clients("clients_read_us", "... the server's processor time each", "µs", _NO_MORE),
    Measure(
        SEAL,
        f"longest seal of {diskseal.SEALS}, holding",
        "µs",
        wanted=dict.fromkeys(SEAL_WRITES, Wanted(Of.MEDIAN, at_most=100)),
    ),
    Measure("guest_write", "guest: sequential writes of 256 KiB, 16 in flight", "requests/s", RAW, _GUEST),
    Measure("guest_lone", "... one at a time", "requests/s", RAW),
    Measure("guest_whole", "... over the disk once, 16 deep, fsync at the end", "requests/s", RAW, _GUEST),
    Measure("guest_ordinary", "... through its page cache, fsync each 16 MiB", "requests/s", RAW, _GUEST),
    Measure("guest_fsync", "guest: random writes of 4 KiB, fsync each", "requests/s", RAW, _GUEST),
)


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """One invocation. Each sample takes `seconds`, each setting gives `repeat` of them. `parts` are some of
    PARTS; disks have `disk_mib`; all that is written to files is below `directory`."""

    seconds: int = 2
    repeat: int = 5
    parts: tuple[str, ...] = PARTS
    directory: Path | None = None
    json_path: Path | None = None
    disk_mib: int = 1024

    def check(self) -> None:
        """Raises BenchOptionError."""
        check_json_path(self.json_path)
        if self.directory is not None and not self.directory.is_dir():
            raise BenchOptionError(f"--directory {self.directory}: there is none; create it first")


@dataclass(slots=True)
class DiskBench:
    """The settings of all parts, side by side, and the samples taken of them."""

    options: DiskOptions
    view: View
    directory: Path
    samples: list[Sample] = field(default_factory=list)

    async def run(self) -> None:
        """Take all samples. Raises MeasurementError."""
        for part, measure in (
            ("nbd", self._nbd),
            ("connections", self._connections),
            ("seal", self._seal),
            ("guest", self._guest),
        ):
            if part in self.options.parts:
                with ExitStack() as stack:
                    await measure(stack)

    async def _nbd(self, stack: ExitStack) -> None:
        """Each job goes to all servers in turn before the next one."""
        servers = [start_nbdkit(stack, NBDKIT, self.directory / "nbdkit.sock", self._disk_bytes)]
        for name, every_ms in ((PLAIN, 0.0), (EPOCHS, EPOCH_MS)):
            servers.append(self._diskbuf(stack, name, every_ms))
        for server in servers:
            await fill(server, self._disk_bytes)
        for number in self._rounds():
            for measure, job in NBD_JOBS.items():
                for server in in_turn(servers, number):
                    found = await measure_nbd(server, job, self._disk_bytes, self.options.seconds, 1)
                    self._note(Sample(measure, server.name, number, found.per_s, found.cores))

    async def _connections(self, stack: ExitStack) -> None:
        """Every client has DEPTH requests in flight; the same server serves one and ten of them. nbdkit does,
        too: ten clients take more of the machine, whoever serves them."""
        ours = self._diskbuf(stack, PLAIN, 0.0)
        nbdkit = start_nbdkit(stack, NBDKIT, self.directory / "nbdkit-clients.sock", self._disk_bytes)
        settings = [(ONE, ours, 1), (TEN, ours, CLIENTS)]
        settings += [(NBDKIT_ONE, nbdkit, 1), (NBDKIT_TEN, nbdkit, CLIENTS)]
        for server in (ours, nbdkit):
            await fill(server, self._disk_bytes)
        for number in self._rounds():
            for measure, job in CLIENT_JOBS.items():
                for setting, server, clients in in_turn(settings, number):
                    found = await measure_nbd(server, job, self._disk_bytes, self.options.seconds, clients)
                    self._note(Sample(measure, setting, number, found.per_s, found.cores))
                    self._note(Sample(SERVER_COST[measure], setting, number, found.server_us))

    async def _seal(self, _stack: ExitStack) -> None:
        for setting, (count, block_bytes) in SEAL_WRITES.items():
            writes = diskseal.scattered(count, block_bytes)
            for number in self._rounds():
                self._note(Sample(SEAL, setting, number, await diskseal.longest_seal_us(writes)))

    async def _guest(self, stack: ExitStack) -> None:
        guests = self._guests(stack)
        for guest in guests:
            await guest.agent.ready()
        for guest in guests:  # all have booted: none does beside a measurement
            await guest.fill()
        for number in self._rounds():
            for measure, job in GUEST_JOBS.items():
                for guest in in_turn(guests, number):
                    per_s, cores = await guest.measure(job, self.options.seconds)
                    self._note(Sample(measure, guest.name, number, per_s, cores))

    def _guests(self, stack: ExitStack) -> list[DiskGuest]:
        image = build_image(progress=self.view.say)
        machine = (image, probe_accelerator(image))
        disk_mib = self.options.disk_mib
        guests = [
            start_raw_guest(stack, name, self.directory, *machine, disk_mib=disk_mib, direct=direct)
            for name, direct in ((RAW, False), (DIRECT, True))
        ]
        for name, journal in ((BUFFERED, False), (JOURNALLED, True)):
            buffered = start_buffered_guest(
                stack, name, self.directory, *machine, disk_mib=disk_mib, every_ms=EPOCH_MS, journal=journal
            )
            guests.append(buffered)
        return guests

    def _diskbuf(self, stack: ExitStack, name: str, every_ms: float) -> Server:
        socket = self.directory / f"diskbuf-{every_ms:g}.sock"
        return start_diskbuf(stack, name, socket, f"memory:{self._disk_bytes}", every_ms=every_ms)

    @property
    def _disk_bytes(self) -> int:
        return self.options.disk_mib << 20

    def _rounds(self) -> range:
        return range(1, self.options.repeat + 1)

    def _note(self, sample: Sample) -> None:
        self.samples.append(sample)
        self.view.sample(sample, self.options.repeat)


def run_disk_bench(options: DiskOptions, console: Console) -> int:
    """Measure, and report on `console` and in `options.json_path`.

    Returns the exit status, see `take_samples`. Raises BenchError; whatever happens, no process and no file
    of the benchmark is left.
    """
    options.check()
    check_tools(_tools(options.parts))
    environment = record_environment()
    view = View(console, MEASURES, part="server")
    with TemporaryDirectory(prefix="remuslike-", dir=options.directory) as directory:
        bench = DiskBench(options, view, Path(directory))
        report = Report(
            benchmark="disk",
            environment=asdict(environment),
            options={
                "seconds": options.seconds,
                "repeat": options.repeat,
                "parts": options.parts,
                "disk_mib": options.disk_mib,
                "epoch_ms": EPOCH_MS,
                "depth": DEPTH,
            },
            measures=MEASURES,
            skipped={},
            samples=bench.samples,
            timely=not environment.emulated,
        )
        return take_samples(bench.run, report, view, options.json_path)


def _tools(parts: Sequence[str]) -> dict[str, str]:
    tools = dict(TOOLS)
    if "nbd" in parts or "connections" in parts:
        tools |= FIO_TOOLS
    if "guest" in parts:
        tools |= QEMU_TOOLS
    return tools
