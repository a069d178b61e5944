"""Processes that live as long as the benchmark that starts them, however it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress

# As the parent ends, however it does, so do these. The signal comes when the *thread* ends that started them,
# so they are started in the main thread.
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


def start_process(
    stack: ExitStack, command: Sequence[str], *, descriptors: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A process that is killed when `stack` is left, with a pipe as its standard input."""
    process = subprocess.Popen(
        [*_DIES_WITH_US, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,  # the terminal's Ctrl-C is for the benchmark, which then ends it
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
