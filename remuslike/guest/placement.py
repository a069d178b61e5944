"""Which processor this thread runs on, while QEMU and the guest work beside it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import ExitStack

from remuslike.errors import GuestError

# proc(5): of what follows the name in parentheses in /proc/PID/stat; "processor" is field 39 of all.
_PROCESSOR = 36
_STAT_BYTES = 1024

_current_processor = ctypes.CDLL(None).sched_getcpu


class Placement:
    """Keeps this thread apart from the main thread of process `pid` in a pause, and from the guest's virtual
    CPUs otherwise.

    QEMU's answer wakes this thread on QEMU's own processor, as the scheduler does with whoever wakes and is
    woken. Being real-time this thread then stays, and QEMU, which has more to do, waits for it in the run
    queue while another processor is idle.

    The same with a virtual CPU: a real-time thread wakes where it ran last, whoever has run there since, for
    of idle processors the kernel takes no account.
    """

    def __init__(self, pid: int, virtual_cpus: Sequence[int]) -> None:
        """`virtual_cpus`: the threads that they are."""
        self._allowed = os.sched_getaffinity(0)
        with ExitStack() as opened:
            self._main = _Thread(pid, pid)
            opened.callback(self._main.close)
            # With as many of them as there are processors no place is better than another.
            few = virtual_cpus if len(virtual_cpus) < len(self._allowed) else ()
            self._virtual_cpus = []
            for thread in few:
                self._virtual_cpus.append(_Thread(pid, thread))
                opened.callback(self._virtual_cpus[-1].close)
            self._opened = opened.pop_all()

    def stand_apart(self) -> None:
        """From now on run on any processor but QEMU's, if this thread may run on two."""
        others = self._allowed - {self._main.processor()}
        if others:
            os.sched_setaffinity(0, others)

    def make_way(self) -> None:
        """Leave a processor that a virtual CPU runs on, or would if we didn't, for one that none does."""
        theirs = {thread.processor() for thread in self._virtual_cpus}
        if _current_processor() in theirs and (others := self._allowed - theirs):
            # Once is enough, for there this thread will wake. A choice that was kept would be inherited by
            # threads that are started later, which have to go where there is room.
            os.sched_setaffinity(0, others)
            os.sched_setaffinity(0, self._allowed)

    def go_anywhere(self) -> None:
        """The end of that. A thread that was started meanwhile keeps to what this one had then."""
        os.sched_setaffinity(0, self._allowed)

    def close(self) -> None:
        self._opened.close()


class _Thread:
    """Where a thread of another process runs, or did last."""

    def __init__(self, pid: int, thread: int) -> None:
        try:
            self._stat = os.open(f"/proc/{pid}/task/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise GuestError(f"QEMU (process {pid}) is gone: {error}") from error

    def processor(self) -> int | None:
        """None if it is gone."""
        try:
            fields = os.pread(self._stat, _STAT_BYTES, 0).rpartition(b")")[2].split()
        except ProcessLookupError:
            return None
        return int(fields[_PROCESSOR])

    def close(self) -> None:
        os.close(self._stat)
