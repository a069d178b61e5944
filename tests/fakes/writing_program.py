"""What `fakes.writing_process.WritingProcess` runs: maps memory, prints its address, and obeys.

writing_program.py DESCRIPTOR PAGE_COUNT shared|private|anonymous, then one command a line on standard input,
and "done" when it is obeyed:

    write VALUE THREADS PAGE...    write VALUE into the pages, dealt out to so many threads at once
    read PAGE...                   look at the pages, which populates them
    drop PAGE                      punch a hole over the page: not populated any more, and it reads as zeros
    signals                        say how many SIGUSR1 were handled
    wait-uninterruptibly           have a thread wait in the kernel, deaf to signals, for the end of a child
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import sys
import threading

PAGE_BYTES = 4096

# linux/sched.h
_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000
_STACK_BYTES = 65536

# linux/falloc.h
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01


def _map(descriptor: int, length: int, mapping: str) -> mmap.mmap:
    match mapping:
        case "shared":
            return mmap.mmap(descriptor, length, mmap.MAP_SHARED)
        case "private":
            return mmap.mmap(descriptor, length, mmap.MAP_PRIVATE)
        case "anonymous":
            return mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        case other:
            raise ValueError(other)


def _serve(descriptor: int, page_count: int, mapping: str) -> None:
    memory = _map(descriptor, page_count * PAGE_BYTES, mapping)
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    _reply(str(ctypes.addressof(ctypes.c_char.from_buffer(memory))))
    for line in sys.stdin:
        match line.split():
            case ["write", value, threads, *pages]:
                _write(memory, bytes([int(value)]) * 64, int(threads), [int(page) for page in pages])
                _reply("done")
            case ["read", *pages]:
                for page in pages:
                    memory[int(page) * PAGE_BYTES]
                _reply("done")
            case ["drop", page]:
                _punch_hole(descriptor, int(page))
                _reply("done")
            case ["wait-uninterruptibly"]:
                threading.Thread(target=_wait_uninterruptibly, daemon=True).start()
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


def _wait_uninterruptibly() -> None:
    """As a thread waits for a slow disk: here, as vfork(2) has it wait for its child, which pauses."""
    libc = ctypes.CDLL(None)
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    top = (ctypes.addressof(stack) + _STACK_BYTES) & ~0xF
    libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), top, _CLONE_VM | _CLONE_VFORK | signal.SIGCHLD, None)


def _reply(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
