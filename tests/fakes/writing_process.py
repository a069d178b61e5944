"""A process that maps memory, as QEMU maps its RAM, and writes the pages that it is told to, from threads."""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fakes import writing_program
from fakes.writing_program import PAGE_BYTES

# As short as a kernel's clock can be asked for; between two looks at a process that goes on by itself.
_LOOK_AGAIN_MS = 1


class WritingProcess:
    """The child, and our own mapping of its memfd: `pages`, shape (page_count, PAGE_BYTES).

    `command_in_front`: such as one that sets a limit. `mapping`: the memfd, as QEMU maps its RAM; a private
    copy of it; or anonymous memory. `snapshot` reads any of these.
    """

    def __init__(
        self,
        page_count: int,
        command_in_front: Sequence[str] = (),
        mapping: Literal["shared", "private", "anonymous"] = "shared",
    ) -> None:
        self.page_count = page_count
        self.descriptor = os.memfd_create("remuslike-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, page_count * PAGE_BYTES)
        ours = mmap.mmap(self.descriptor, page_count * PAGE_BYTES)
        self.pages = np.frombuffer(ours, np.uint8).reshape(-1, PAGE_BYTES)
        program = [sys.executable, writing_program.__file__, str(self.descriptor), str(page_count), mapping]
        self._process = subprocess.Popen(
            [*command_in_front, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self.descriptor],
        )
        self.start = int(self._answer())
        self.length = page_count * PAGE_BYTES

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> WritingProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        os.close(self.descriptor)

    def kill(self) -> None:
        """End it; idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def write(self, pages: Sequence[int], value: int, threads: int = 1) -> None:
        """Have it write `value` into each of `pages`; returns when it has."""
        self.begin_write(pages, value, threads)
        self.finish()

    def begin_write(self, pages: Sequence[int], value: int, threads: int = 1) -> None:
        """As `write`, but return at once; `finish` waits."""
        self._say(f"write {value} {threads} {' '.join(map(str, pages))}")

    def read(self, pages: Sequence[int]) -> None:
        """Have it look at `pages`."""
        self._say(f"read {' '.join(map(str, pages))}")
        self.finish()

    def drop(self, page: int) -> None:
        """Have it punch a hole over `page`."""
        self._say(f"drop {page}")
        self.finish()

    @contextmanager
    def one_thread_deaf(self) -> Iterator[None]:
        """In the body a thread of it waits in the kernel, where no signal but SIGKILL reaches it."""
        self._say("wait-uninterruptibly")
        self.finish()
        while not (children := self._children()):
            pass
        try:
            yield
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)

    def _children(self) -> list[int]:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(child) for task in tasks for child in task.read_text().split()]

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self) -> None:
        assert self._answer() == "done"

    def wait_finished_or_stopped(self) -> None:
        """Until it has obeyed, or can't, since it is stopped; `finish` comes later."""
        assert self._process.stdout is not None
        answer = select.poll()
        answer.register(self._process.stdout, select.POLLIN)
        while self.state() != "T" and not answer.poll(_LOOK_AGAIN_MS):
            pass

    def state(self) -> str:
        """R, S, D, T (stopped) or Z (proc(5), /proc/pid/stat)."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def snapshot(self) -> NDArray[np.uint8]:
        """What it sees, shape (page_count, PAGE_BYTES): a copy."""
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            seen = os.pread(memory.fileno(), self.length, self.start)
        return np.frombuffer(bytearray(seen), np.uint8).reshape(-1, PAGE_BYTES)

    def signals_seen(self) -> int:
        """How many SIGUSR1 it has handled."""
        self._say("signals")
        return int(self._answer())

    def open_files(self) -> dict[int, str]:
        """Its descriptors, and what each is of (proc(5), /proc/pid/fd)."""
        entries = Path(f"/proc/{self.pid}/fd").iterdir()
        return {int(entry.name): str(entry.readlink()) for entry in entries}

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
