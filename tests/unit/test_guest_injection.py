"""remuslike.guest.injection, on a small process that maps memory as QEMU does."""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes import without_userfaultfd
from fakes.writing_process import WritingProcess

from remuslike.errors import MissingToolError
from remuslike.guest.injection import Mapping, inject_write_protection, read_mappings

USERFAULTFD = "anon_inode:[userfaultfd]"

root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to trace another process"),
]


@pytest.fixture
def process() -> Iterator[WritingProcess]:
    with WritingProcess(16) as made:
        yield made


def our_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@contextmanager
def one_real_time_processor(pid: int) -> Iterator[None]:
    """We and process `pid` share one processor, and it gets that only while we wait."""
    before = os.sched_getaffinity(0)
    processor = {min(before)}
    os.sched_setaffinity(pid, processor)
    os.sched_setaffinity(0, processor)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before)


def test_mappings_of_our_own() -> None:
    with mmap.mmap(-1, 8192) as memory:
        mappings = read_mappings(os.getpid())
        assert memory[0] == 0
    assert all(mapping.start < mapping.end for mapping in mappings)
    assert mappings == sorted(mappings, key=lambda mapping: mapping.start)
    assert any(mapping.name == "[vdso]" for mapping in mappings)
    executable = Path("/proc/self/exe").resolve()
    inodes = {mapping.inode for mapping in mappings if mapping.name == str(executable)}
    assert inodes == {executable.stat().st_ino}


def test_mapping_names_may_contain_spaces(tmp_path: Path) -> None:
    path = tmp_path / "two words"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        found = [mapping for mapping in read_mappings(os.getpid()) if mapping.name == str(path)]
    assert [(m.end - m.start, m.inode) for m in found] == [(4096, path.stat().st_ino)]
    assert isinstance(found[0], Mapping)


class TestInjection:
    pytestmark = root

    def test_the_process_has_a_userfaultfd_and_goes_on(self, process: WritingProcess) -> None:
        before = process.open_files()
        ours = our_descriptors()
        number = inject_write_protection(process.pid, process.start, process.length)
        assert process.open_files() == {**before, number: USERFAULTFD}
        assert our_descriptors() == ours
        process.write(range(16), 7, threads=3)
        assert (process.pages[:, 0] == 7).all()

    def test_a_process_in_the_middle_of_its_work_goes_on(self) -> None:
        with WritingProcess(4096) as process:
            process.begin_write([*range(4096)] * 5, 9, threads=4)
            inject_write_protection(process.pid, process.start, process.length)
            process.finish()
            assert (process.pages[:, 0] == 9).all()

    def test_a_handled_signal_disturbs_nothing(self, process: WritingProcess) -> None:
        process.send_signal(signal.SIGUSR1)
        assert process.signals_seen() == 1
        inject_write_protection(process.pid, process.start, process.length)
        assert process.signals_seen() == 1

    def test_a_pending_signal_is_delivered_and_the_injection_succeeds(self, process: WritingProcess) -> None:
        """On one processor, which we keep until we wait for the stop, the signal is pending then."""
        with one_real_time_processor(process.pid):
            process.send_signal(signal.SIGUSR1)
            number = inject_write_protection(process.pid, process.start, process.length)
        assert process.signals_seen() == 1
        assert process.open_files()[number] == USERFAULTFD

    def test_a_pending_signal_is_delivered_even_if_the_injection_fails(self, process: WritingProcess) -> None:
        with one_real_time_processor(process.pid):
            process.send_signal(signal.SIGUSR1)
            with pytest.raises(MissingToolError):
                inject_write_protection(process.pid, 4096, 4096)
        assert process.signals_seen() == 1

    def test_signals_beside_many_injections_are_all_delivered(self, process: WritingProcess) -> None:
        """Whichever comes first. Every injection but the first is refused: the region is registered."""
        inject_write_protection(process.pid, process.start, process.length)
        files = process.open_files()
        for count in range(1, 21):
            process.send_signal(signal.SIGUSR1)
            with pytest.raises(MissingToolError, match="Device or resource busy"):
                inject_write_protection(process.pid, process.start, process.length)
            assert process.signals_seen() == count
        assert process.open_files() == files

    def test_a_range_that_is_not_mapped_is_refused_and_leaves_nothing(self, process: WritingProcess) -> None:
        before, ours = process.open_files(), our_descriptors()
        with pytest.raises(MissingToolError, match=f"process {process.pid} can't be given"):
            inject_write_protection(process.pid, 4096, 4096)
        assert process.open_files() == before
        assert our_descriptors() == ours
        process.write([1], 3)

    def test_a_range_not_of_whole_pages_is_refused(self, process: WritingProcess) -> None:
        with pytest.raises(MissingToolError, match="Invalid argument"):
            inject_write_protection(process.pid, process.start + 1, process.length)
        process.write([1], 3)

    def test_a_process_that_has_ended(self, process: WritingProcess) -> None:
        ours = our_descriptors()
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # still a zombie, as before its reaping
        with pytest.raises(MissingToolError, match=f"process {process.pid} can't be given"):
            inject_write_protection(process.pid, process.start, process.length)
        assert our_descriptors() == ours

    def test_a_process_that_never_was(self) -> None:
        with pytest.raises(MissingToolError, match="No such process"):
            inject_write_protection(1 << 22, 0, 4096)

    @pytest.mark.parametrize("action", without_userfaultfd.ACTIONS)
    def test_a_sandboxed_process_is_named(self, action: str) -> None:
        sandbox = [sys.executable, without_userfaultfd.__file__, action]
        with WritingProcess(16, command_in_front=sandbox) as process:
            ours = our_descriptors()
            with pytest.raises(MissingToolError, match="seccomp filter"):
                inject_write_protection(process.pid, process.start, process.length)
            assert our_descriptors() == ours
            if action == "refuse":
                process.write([1], 3)
                assert USERFAULTFD not in process.open_files().values()
