"""Processes that can't outlive their starter, and namespaces emptied at once. Needs root."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from pyroute2 import netns

from remuslike.demo.errors import DaemonError, DemoEnvironmentError
from remuslike.demo.processes import Process, Program, Victims, end_processes_in, processes_in
from remuslike.demo.topology import NAMESPACE_DIRECTORY

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]


@pytest.fixture
def namespace() -> Iterator[Path]:
    name = f"rl-test-{os.getpid()}"
    netns.create(name)
    try:
        yield NAMESPACE_DIRECTORY / name
        end_processes_in(NAMESPACE_DIRECTORY / name)
    finally:
        netns.remove(name)


def program(namespace: Path, tmp_path: Path, *arguments: str, pipes: bool = False) -> Program:
    return Program("the program", namespace.name, arguments, tmp_path / "log", pipes=pipes)


# Says in which network it is, forks a child, and stays.
STAYS = "import os, sys, time; child = os.fork(); print('up', flush=True) if child else None; time.sleep(60)"


async def wait_up(process: Process) -> None:
    assert process.popen.stdout is not None
    async with trio.lowlevel.FdStream(os.dup(process.popen.stdout.fileno())) as stream:
        assert (await stream.receive_some(10)).startswith(b"up")


async def test_a_program_runs_in_its_namespace_and_ends_with_its_context(
    namespace: Path, tmp_path: Path
) -> None:
    with Process(program(namespace, tmp_path, sys.executable, "-c", STAYS, pipes=True)) as process:
        await wait_up(process)
        assert process.status() is None
        process.check_alive()
        assert process.popen.pid in processes_in(namespace)
        assert len(processes_in(namespace)) == 2
    assert process.status() == -signal.SIGKILL
    end_processes_in(namespace)
    assert processes_in(namespace) == []


async def test_a_host_dies_at_once_with_all_its_processes(namespace: Path, tmp_path: Path) -> None:
    with Process(program(namespace, tmp_path, sys.executable, "-c", STAYS, pipes=True)) as process:
        await wait_up(process)
        victims = Victims(namespace)
        assert victims.count == 2
        victims.kill()
        victims.close()
        victims.close()
        with trio.fail_after(10):
            assert await process.wait() == -signal.SIGKILL
            assert await process.wait() == -signal.SIGKILL


async def test_a_programs_children_die_with_the_process_that_started_it(
    namespace: Path, tmp_path: Path
) -> None:
    """The parent-death signal: a starter that is killed cleans nothing up by itself."""
    starter = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from remuslike.demo.processes import Process, Program\n"
        "name, log = sys.argv[1:]\n"
        "stays = ('sh', '-c', 'echo up; exec sleep 60')\n"
        "process = Process(Program('p', name, stays, Path(log), pipes=True))\n"
        "assert process.popen.stdout.readline() == b'up\\n'\n"
        "print(process.popen.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    outer = program(
        namespace,
        tmp_path,
        sys.executable,
        "-c",
        starter,
        namespace.name,
        str(tmp_path / "inner"),
        pipes=True,
    )
    with Process(outer) as process:
        assert process.popen.stdout is not None
        async with trio.lowlevel.FdStream(os.dup(process.popen.stdout.fileno())) as stream:
            inner = int(await stream.receive_some(20))
        descriptor = os.pidfd_open(inner)
        try:
            process.popen.kill()
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)


async def test_an_early_end_is_told_with_the_end_of_the_log(namespace: Path, tmp_path: Path) -> None:
    script = "for number in $(seq 100); do echo line $number; done; echo why >&2; exit 3"
    with Process(program(namespace, tmp_path, "sh", "-c", script)) as process:
        with trio.fail_after(10):
            assert await process.wait() == 3
        with pytest.raises(DaemonError, match="the program ended early with status 3") as caught:
            process.check_alive()
        assert "line 100\nwhy" in str(caught.value)
        assert "line 10\n" not in str(caught.value)


async def test_a_program_that_logged_nothing(namespace: Path, tmp_path: Path) -> None:
    with Process(program(namespace, tmp_path, "true")) as process:
        with trio.fail_after(10):
            await process.wait()
        assert process.log_tail() == "It logged nothing."
    (tmp_path / "log").unlink()
    assert process.log_tail().startswith("Its log can't be read")


def test_a_missing_starter_is_named(namespace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DemoEnvironmentError, match="the program can't be started"):
        Process(program(namespace, tmp_path, "true"))


def test_a_namespace_that_is_gone_has_no_processes(tmp_path: Path) -> None:
    assert processes_in(tmp_path / "gone") == []
