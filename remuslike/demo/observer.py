"""Watches both daemons through their control sockets, and notices when one of them ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from remuslike.demo.control import ask
from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import PrimaryStatistics, Sample, Samples, SecondaryStatistics
from remuslike.demo.processes import Process

POLL_S = 0.25
LAST_WORDS_S = 0.5  # a daemon that hangs up is about to end: wait for its status and its log


@dataclass(slots=True)
class Daemon:
    """A daemon under observation. `may_end`: from now on its end, and silence before it, are expected."""

    process: Process
    control: Path
    may_end: bool = False


@dataclass(slots=True)
class Observer:
    """What the daemons said last. `samples` are all finished epochs seen so far, in order."""

    primary: Daemon | None = None
    secondary: Daemon | None = None
    primary_said: PrimaryStatistics | None = None
    secondary_said: SecondaryStatistics | None = None
    samples: list[Sample] = field(default_factory=list)
    _next_sample: int = 0
    _polled: trio.Event = field(default_factory=trio.Event)

    async def run(self) -> None:
        """Until cancelled. Raises DaemonError when a daemon ends early or talks nonsense."""
        while True:
            await self._poll_primary()
            await self._poll_secondary()
            self._polled.set()
            self._polled = trio.Event()
            await trio.sleep(POLL_S)

    async def wait_until(self, reached: Callable[[], bool], what: str, limit_s: float) -> None:
        """Returns when `reached()` after a poll; raises DaemonError when that takes over `limit_s`."""
        with trio.move_on_after(limit_s):
            while not reached():
                await self._polled.wait()
            return
        daemons = [daemon for daemon in (self.primary, self.secondary) if daemon]
        logs = "\n".join(f"{daemon.process.program.name}: {daemon.process.log_tail()}" for daemon in daemons)
        raise DaemonError(f"{what}: not reached within {limit_s:g} s\n{logs}")

    async def wait_ended(self, daemon: Daemon, what: str, limit_s: float) -> None:
        """Returns when the daemon has ended with status 0; raises DaemonError otherwise."""
        daemon.may_end = True
        with trio.move_on_after(limit_s):
            await daemon.process.wait()
        if (status := daemon.process.status()) != 0:
            state = f"is still there after {limit_s:g} s" if status is None else f"ended with status {status}"
            name = daemon.process.program.name
            raise DaemonError(f"{what}: {name} {state}. {daemon.process.log_tail()}")

    async def _poll_primary(self) -> None:
        daemon = self.primary
        if daemon is None or daemon.may_end:
            return
        try:
            self.primary_said = await ask(daemon.control, PrimaryStatistics, "statistics")
            answer = await ask(daemon.control, Samples, "samples", since=self._next_sample)
            self.samples += answer.samples
            self._next_sample = answer.next
        except (OSError, DaemonError) as error:
            await self._explain(daemon, error)

    async def _poll_secondary(self) -> None:
        daemon = self.secondary
        if daemon is None or daemon.may_end:
            return
        try:
            self.secondary_said = await ask(daemon.control, SecondaryStatistics, "statistics")
        except (OSError, DaemonError) as error:
            await self._explain(daemon, error)

    async def _explain(self, daemon: Daemon, error: OSError | DaemonError) -> None:
        """An ended daemon is the better explanation; one that doesn't listen yet needs none."""
        if isinstance(error, DaemonError) and not daemon.may_end:
            with trio.move_on_after(LAST_WORDS_S):
                await daemon.process.wait()
        if daemon.may_end:
            return
        daemon.process.check_alive()
        if isinstance(error, DaemonError):
            raise error
