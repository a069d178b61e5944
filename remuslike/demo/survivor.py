"""Examines the survivor's data disk with tools that know nothing of this project, without mounting it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import trio

from remuslike.demo.aof import AofError, check_commands, incremental_files, parse_commands
from remuslike.demo.errors import DemoEnvironmentError
from remuslike.demo.report import Check, Examination
from remuslike.demo.workload import ConnectionHistory

TOOL_LIMIT_S = 120
AOF_DIRECTORY = "appendonlydir"  # redis 7's appenddirname; /data is the root of the disk
MANIFEST = "appendonly.aof.manifest"
OUTPUT_TAIL_CHARACTERS = 600


async def examine(
    disk: Path, directory: Path, histories: Mapping[int, ConnectionHistory], *, seed: int, payload_bytes: int
) -> Examination:
    """Check the ext4 file system on `disk`, take the append-only file out of it into the existing
    `directory`, and check that as well. Raises DemoEnvironmentError when a tool can't be run."""
    filesystem = await _run("e2fsck", "-f", "-n", str(disk))
    dump = await _run("debugfs", "-R", f"rdump /{AOF_DIRECTORY} {directory}", str(disk))
    folder = directory / AOF_DIRECTORY
    if not (folder / MANIFEST).is_file():
        return Examination(filesystem, Check(False, dump.output), ())
    append_only_file = await _run("redis-check-aof", str(folder / MANIFEST))
    try:
        files = incremental_files((folder / MANIFEST).read_text("utf-8"))
        data = b"".join((folder / name).read_bytes() for name in files)
        findings = check_commands(parse_commands(data), histories, seed=seed, payload_bytes=payload_bytes)
    except (AofError, OSError, UnicodeDecodeError) as error:
        return Examination(filesystem, Check(False, str(error)), ())
    return Examination(filesystem, append_only_file, tuple(findings))


async def _run(*command: str) -> Check:
    try:
        with trio.fail_after(TOOL_LIMIT_S):
            done = await trio.run_process(
                command, stdin=b"", capture_stdout=True, check=False, stderr=subprocess.STDOUT
            )
    except OSError as error:
        raise DemoEnvironmentError(f"{command[0]} can't be run: {error}") from error
    except trio.TooSlowError as error:
        raise DemoEnvironmentError(f"{command[0]} isn't done after {TOOL_LIMIT_S} s") from error
    output = done.stdout.decode("utf-8", "replace").strip()
    return Check(done.returncode == 0, output[-OUTPUT_TAIL_CHARACTERS:])
