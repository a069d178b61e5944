"""What a workload is given: a guest that has booted, the client's network, and a window that is measured."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import trio
from pyroute2 import netns

from remuslike.bench.errors import MeasurementError
from remuslike.bench.traffic import cpu_s, usage
from remuslike.demo.plan import GUEST_ADDRESS
from remuslike.demo.processes import Process, Program
from remuslike.image import AGENT_PORT

READY_LIMIT_S = 90.0  # for an emulated guest to boot
SHELL_LIMIT_S = 30.0
_ATTEMPT_S = 1.0
_RETRY_S = 0.05
_CONNECTIONS_POLL_S = 0.01
_ANSWER_BYTES_MAX = 1 << 26  # fio's log of every write of a minute
_RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen while the load ran: `began` and `ended` are CLOCK_MONOTONIC seconds."""

    began: float
    ended: float
    cores: Mapping[str, float]
    memory_mib: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


LAST_SAMPLES_S = 0.6
"""Two polls of the observer: by then it has the last checkpoints of a window that has ended."""


@dataclass(slots=True)
class Stage:
    """A guest that runs under one setting. `processes` (name and id) are those whose costs count; tools run
    in the network namespace `client`, and their errors go to `log`; `tools` are those under way."""

    client: str
    log: Path
    processes: Mapping[str, int]
    window: Window | None = None
    address: str = GUEST_ADDRESS
    tools: set[int] = field(default_factory=set)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """The load runs within this block: once in a cell."""
        assert self.window is None, "a cell has one window"
        try:
            for number in self.processes.values():
                _forget_peak(number)
            before_s, began = self._client_s(), monotonic()
            with usage(**self.processes) as used:
                yield
            memory_mib = {name: _peak_mib(number) for name, number in self.processes.items()}
        except OSError as error:
            raise MeasurementError(f"a process ended while it was measured: {error}") from error
        ended = monotonic()
        client = (self._client_s() - before_s) / (ended - began)
        self.window = Window(began, ended, {**used.cores, "client": round(client, 3)}, memory_mib)

    def _client_s(self) -> float:
        """Processor time of this process, of its children that have ended, and of the tools that run."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used) + sum(map(_running_s, self.tools))

    def take_window(self) -> Window:
        """The window of the cell that has been measured; the next cell has its own."""
        window, self.window = self.window, None
        assert window is not None, "nothing was measured"
        return window

    async def wait_ready(self) -> None:
        """Returns when the guest's agent answers. Raises MeasurementError."""
        with trio.move_on_after(READY_LIMIT_S):
            async with await self.connect(AGENT_PORT):
                return
        raise MeasurementError(f"the guest's agent doesn't answer within {READY_LIMIT_S:g} s")

    async def connect(self, port: int) -> trio.SocketStream:
        """A connection from the client to the guest; tries until it stands, the caller sets the limit."""
        while True:
            attempt = trio.socket.from_stdlib_socket(socket_in(self.client))
            try:
                with trio.move_on_after(_ATTEMPT_S):
                    await attempt.connect((self.address, port))
                    return trio.SocketStream(attempt)
            except OSError:
                attempt.close()
                await trio.sleep(_RETRY_S)
            except trio.Cancelled:
                attempt.close()
                raise
            attempt.close()

    async def shell(self, command: str, *, limit_s: float = SHELL_LIMIT_S) -> str:
        """What a command of the guest's shell prints, errors included. Raises MeasurementError."""
        async with self.shell_session(command, limit_s=limit_s) as session:
            return await session.rest()

    @asynccontextmanager
    async def shell_session(
        self, command: str, *, limit_s: float = SHELL_LIMIT_S
    ) -> AsyncIterator[ShellSession]:
        """A command of the guest's shell that is talked with; it gets no end of file until it is asked for
        its `rest`. Raises MeasurementError when that or the block takes longer than `limit_s`."""
        try:
            with trio.fail_after(limit_s):
                async with await self.connect(AGENT_PORT) as stream:
                    await stream.send_all(command.encode() + b"\n")
                    yield ShellSession(stream)
        except trio.TooSlowError as error:
            raise MeasurementError(f"in the guest, {command[:60]!r} isn't done in {limit_s:g} s") from error
        except (OSError, trio.BrokenResourceError) as error:
            raise MeasurementError(f"the guest's agent broke off at {command[:60]!r}: {error}") from error

    async def guest_clock_s(self) -> tuple[float, float]:
        """The time here and the guest's own at about the same moment: the question isn't held."""
        # Not before the shell is there, and without another program: both take an emulated processor long.
        question = "echo ready; read line; read uptime idle </proc/uptime; echo $uptime"
        async with self.shell_session(question) as session:
            await session.expect("ready")
            asked = monotonic()
            await session.send(b"\n")
            answer = await session.rest()
        try:
            return asked, float(answer)
        except ValueError as error:
            raise MeasurementError(f"the guest's /proc/uptime says {answer[:80]!r}") from error

    async def tool(self, *command: str, limit_s: float) -> str:
        """The standard output of a program on the client. Raises MeasurementError when it fails."""
        async with self.tool_session(*command, limit_s=limit_s) as session:
            return await session.finish()

    @asynccontextmanager
    async def tool_session(self, *command: str, limit_s: float) -> AsyncIterator[ToolSession]:
        """A program on the client that is talked with; it ends with the block at the latest."""
        program = Program(command[0], self.client, command, self.log, pipes=True)
        try:
            with trio.fail_after(limit_s), Process(program) as process:
                pipes = process.popen.stdin, process.popen.stdout
                assert pipes[0] is not None
                assert pipes[1] is not None
                stdin, stdout = (trio.lowlevel.FdStream(os.dup(pipe.fileno())) for pipe in pipes if pipe)
                pipes[0].close()  # or the program would never see its end
                self.tools.add(process.popen.pid)
                try:
                    async with stdin, stdout:
                        yield ToolSession(process, stdin, stdout)
                finally:
                    self.tools.discard(process.popen.pid)
        except trio.TooSlowError as error:
            raise MeasurementError(f"{command[0]} isn't done after {limit_s:g} s") from error


@dataclass(slots=True)
class _Lines:
    """Bytes that come in, as lines or all of them."""

    source: trio.abc.ReceiveStream
    _buffer: bytearray = field(default_factory=bytearray)

    async def line(self) -> str | None:
        """The next line without its end, or None when there is none any more."""
        while b"\n" not in self._buffer:
            if not await self._more():
                return None
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line.decode(errors="replace")

    async def all(self) -> str:
        while await self._more():
            pass
        return self._buffer.decode(errors="replace")

    async def _more(self) -> bool:
        data = await self.source.receive_some(_RECEIVE_BYTES)
        self._buffer += data
        if len(self._buffer) > _ANSWER_BYTES_MAX:
            raise MeasurementError(f"a program prints without end: {bytes(self._buffer[:80])!r}")
        return bool(data)


class ShellSession:
    """A command under way in the guest."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._lines = _Lines(stream)

    async def send(self, data: bytes) -> None:
        """To its standard input."""
        await self._stream.send_all(data)

    async def expect(self, wanted: str) -> None:
        """Returns when it prints the line `wanted`. Raises MeasurementError when it prints another."""
        line = await self._lines.line()
        if line != wanted:
            raise MeasurementError(f"in the guest: expected {wanted!r}, got {line!r}")

    async def line(self) -> str:
        """The next line that it prints; nothing at its end."""
        return await self._lines.line() or ""

    async def rest(self) -> str:
        """The end of its input; what it prints until its own."""
        await self._stream.send_eof()
        return await self._lines.all()


class ToolSession:
    """A program under way on the client."""

    def __init__(self, process: Process, stdin: trio.abc.SendStream, stdout: trio.abc.ReceiveStream) -> None:
        self._name = process.program.name
        self._process = process
        self._stdin = stdin
        self._lines = _Lines(stdout)

    async def send(self, data: bytes) -> None:
        """To its standard input."""
        with suppress(trio.BrokenResourceError):  # it has ended; `finish` says how
            await self._stdin.send_all(data)

    async def expect(self, wanted: str) -> None:
        """Returns when it prints the line `wanted`. Raises MeasurementError when it says another, or ends."""
        line = await self._lines.line()
        if line != wanted:
            raise MeasurementError(
                f"{self._name}: expected {wanted!r}, got {line!r}. {self._process.log_tail()}"
            )

    async def wait_connections(self, port: int, count: int) -> None:
        """Returns when it has so many TCP and UDP connections to `port`, or has ended; `finish` says how."""
        process = self._process
        # There is no event to wait for.
        while process.status() is None and _connections(process.popen.pid, port) < count:  # noqa: ASYNC110
            await trio.sleep(_CONNECTIONS_POLL_S)

    async def finish(self) -> str:
        """What else it prints until it ends. Raises MeasurementError when it fails."""
        await self._stdin.aclose()
        printed = await self._lines.all()
        status = await self._process.wait()
        if status:
            said = printed[-300:].strip()
            raise MeasurementError(
                f"{self._name} ended with status {status}: {said!r}. {self._process.log_tail()}"
            )
        return printed


def socket_in(namespace: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """An IPv4 socket of that network namespace, to which it belongs wherever its process goes."""
    netns.pushns()
    try:
        netns.setns(namespace, flags=0)
        return socket.socket(socket.AF_INET, kind)
    finally:
        netns.popns()


def _connections(process: int, port: int) -> int:
    """Those in the network namespace of `process`, which is the client's; 0 when it has ended."""
    # proc(5): rem_address and st are the third and the fourth column; 01 is ESTABLISHED, of UDP as well.
    suffix, found = f":{port:04X}", 0
    with suppress(OSError):
        for table in ("tcp", "udp"):
            for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
                _, _, remote, state, *_ = line.split()
                found += remote.endswith(suffix) and state == "01"
    return found


def _running_s(tool: int) -> float:
    """Its processor time, which is its parent's when it has ended and was waited for."""
    try:
        return cpu_s(tool)
    except OSError:
        return 0.0


def _forget_peak(process: int) -> None:
    """From now on VmHWM is of what comes; nothing else is cleared by a 5, proc(5)."""
    Path(f"/proc/{process or os.getpid()}/clear_refs").write_text("5")


def _peak_mib(process: int) -> float:
    status = Path(f"/proc/{process or os.getpid()}/status").read_text()
    found = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return round(int(found.split()[1]) / 1024, 1) if found else 0.0
