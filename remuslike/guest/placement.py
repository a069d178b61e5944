"""Which processor this thread runs on, while QEMU works beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from remuslike.errors import GuestError

# proc(5): of what follows the name in parentheses in /proc/PID/stat; "processor" is field 39 of all.
_PROCESSOR = 36
_STAT_BYTES = 1024


class Placement:
    """Keeps this thread and the main thread of process `pid` apart.

    QEMU's answer wakes this thread on QEMU's own processor, as the scheduler does with whoever wakes and is
    woken. Being real-time this thread then stays, and QEMU, which has more to do, waits for it in the run
    queue while another processor is idle.
    """

    def __init__(self, pid: int) -> None:
        self._allowed = os.sched_getaffinity(0)
        try:
            self._stat = os.open(f"/proc/{pid}/task/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise GuestError(f"QEMU (process {pid}) is gone: {error}") from error

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within the block this thread runs on any processor but QEMU's, if it may run on two."""
        others = self._allowed - {self._processor()}
        if not others:
            yield
            return
        os.sched_setaffinity(0, others)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self._allowed)

    def _processor(self) -> int | None:
        """QEMU's at this moment; None if it is gone."""
        try:
            fields = os.pread(self._stat, _STAT_BYTES, 0).rpartition(b")")[2].split()
        except ProcessLookupError:
            return None
        return int(fields[_PROCESSOR])

    def close(self) -> None:
        os.close(self._stat)
