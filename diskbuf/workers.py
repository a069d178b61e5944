"""A few threads that do what is put to them, in order; made when they are needed, all of them joined."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Workers:
    """Up to `count` threads. One thread puts and joins; jobs deal with their own failures."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)  # counts threads that wait, each for a job of its own

    def put(self, job: Callable[[], None]) -> None:
        """Have it done by the next free thread."""
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._count:
            thread = threading.Thread(target=self._run, name=f"diskbuf-{self._name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self) -> None:
        """Return when everything is done that was put before."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            if self._jobs.empty():
                self._idle.release()
