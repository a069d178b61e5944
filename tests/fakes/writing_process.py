"""A process that maps a memfd, as QEMU maps its RAM, and writes the pages that it is told to, from threads.

Run as a program by `WritingProcess`: one command a line on standard input, and "done" when it is obeyed.

    write VALUE THREADS PAGE...    write VALUE into the pages, dealt out to so many threads at once
    drop PAGE                      punch a hole over the page: not populated any more, and it reads as zeros
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

PAGE_BYTES = 4096

# linux/falloc.h
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


class WritingProcess:
    """The child, and our own mapping of its memory: `pages`, shape (page_count, PAGE_BYTES).

    `arguments`: of a command in front of it, such as one that sets a limit.
    """

    def __init__(self, page_count: int, command_in_front: Sequence[str] = ()) -> None:
        self.page_count = page_count
        self.descriptor = os.memfd_create("remuslike-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, page_count * PAGE_BYTES)
        mapping = mmap.mmap(self.descriptor, page_count * PAGE_BYTES)
        self.pages = np.frombuffer(mapping, np.uint8).reshape(-1, PAGE_BYTES)
        program = [sys.executable, __file__, str(self.descriptor), str(page_count)]
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

    def drop(self, page: int) -> None:
        """Have it punch a hole over `page`."""
        self._say(f"drop {page}")
        self.finish()

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self) -> None:
        assert self._answer() == "done"

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


def _serve(descriptor: int, page_count: int) -> None:
    memory = mmap.mmap(descriptor, page_count * PAGE_BYTES)
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    _reply(str(ctypes.addressof(ctypes.c_char.from_buffer(memory))))
    for line in sys.stdin:
        match line.split():
            case ["write", value, threads, *pages]:
                _write(memory, bytes([int(value)]) * 64, int(threads), [int(page) for page in pages])
                _reply("done")
            case ["drop", page]:
                _punch_hole(descriptor, int(page))
                _reply("done")
            case ["signals"]:
                _reply(str(len(seen)))


def _write(memory: mmap.mmap, data: bytes, thread_count: int, pages: list[int]) -> None:
    def write_some(mine: list[int]) -> None:
        for page in mine:
            memory[page * PAGE_BYTES : page * PAGE_BYTES + len(data)] = data

    threads = [
        threading.Thread(target=write_some, args=[pages[number::thread_count]])
        for number in range(thread_count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _punch_hole(descriptor: int, page: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(descriptor, _PUNCH_HOLE_KEEP_SIZE, page * PAGE_BYTES, PAGE_BYTES):
        raise OSError(ctypes.get_errno(), "fallocate")


def _reply(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
