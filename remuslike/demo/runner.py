"""Runs the demo as often as asked, with everything around a run: checks, image, signals, reports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from remuslike.demo.errors import DemoEnvironmentError, GuestLostError
from remuslike.demo.interruption import Interrupted, run_interruptibly
from remuslike.demo.observer import Observer
from remuslike.demo.options import DemoOptions
from remuslike.demo.plan import DATA_DEVICE, GUEST_ADDRESS, PREFIX_LENGTH_LAN, Directories, GuestFiles
from remuslike.demo.report import Result, Summary
from remuslike.demo.scenario import Scenario
from remuslike.demo.view import View
from remuslike.errors import expected_errors
from remuslike.image import build_image, host_tsc_khz, kernel_command_line, probe_accelerator

STATUS_KEPT, STATUS_BROKEN, STATUS_ERROR = 0, 1, 2

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "redis-check-aof": "redis-tools",
}


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the demo as often as asked, report on `console` and in `options.json_path`.

    Returns the exit status: 0 when every promise was kept; 1 when something acknowledged was lost, a
    connection was reset, or a check of the survivor's disk failed; 2 when it couldn't be played to
    its end; 128 plus the signal's number when it was interrupted. Whatever it is, no process, no
    namespace and (without `keep`) no file of the demo is left.
    """
    try:
        options.check()
        _check_environment()
        view = View(console)
        view.say(f"seed {options.seed}: the same --seed gives the same values and moment of the kill")
        guest = _guest(options, view)
        results: list[Result] = []
        for number in range(options.runs):
            if options.runs > 1:
                view.say(f"run {number + 1} of {options.runs}, seed {options.seed + number}")
            results.append(_run_once(options, options.seed + number, guest, view))
            view.result(results[-1])
            if options.json_path is not None:
                _write_json(options.json_path, results, options.runs)
        if options.runs > 1:
            view.summary(Summary(tuple(results)))
    except Interrupted as interruption:
        console.print("interrupted; everything of the demo is gone")
        return 128 + interruption.number
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except GuestLostError as error:
        console.print(Text(f"LOST: {error}", style="bold red"), soft_wrap=True)
        return STATUS_BROKEN
    except expected_errors() as error:
        console.print(Text(f"error: {error}", style="bold red"), soft_wrap=True)
        return STATUS_ERROR
    return STATUS_BROKEN if any(result.problems for result in results) else STATUS_KEPT


def _check_environment() -> None:
    if os.geteuid() != 0:
        raise DemoEnvironmentError("the demo makes network namespaces and needs root; run it with sudo")
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise DemoEnvironmentError(f"{tool} isn't installed; install it with: apt-get install {package}")


def _guest(options: DemoOptions, view: View) -> GuestFiles:
    with view.stage("guest image"):
        image = build_image(progress=view.say)
        accelerator = options.accelerator or probe_accelerator(image)
    view.say(f"machine {options.machine} with {accelerator}")
    append = kernel_command_line(
        addresses=[f"{GUEST_ADDRESS}/{PREFIX_LENGTH_LAN}"],
        data_disk=DATA_DEVICE,
        service="redis",
        tsc_khz=host_tsc_khz(),
    )
    return GuestFiles(image.kernel, image.initrd, image.root, append, accelerator)


def _run_once(options: DemoOptions, seed: int, guest: GuestFiles, view: View) -> Result:
    with _work_directory(options.keep, view) as root:
        scenario = Scenario(options, seed, guest, Directories(root), view, Observer())
        return run_interruptibly(scenario.run)


@contextmanager
def _work_directory(keep: bool, view: View) -> Iterator[Path]:
    if keep:
        path = Path(tempfile.mkdtemp(prefix="remuslike-kept-"))
        try:
            yield path
        finally:
            view.say(f"logs, disks and histories are kept in {path}")
    else:
        with tempfile.TemporaryDirectory(prefix="remuslike-demo-") as name:
            yield Path(name)


def _write_json(path: Path, results: list[Result], runs: int) -> None:
    document = results[0].document() if runs == 1 else Summary(tuple(results)).document()
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise DemoEnvironmentError(f"--json {path}: can't be written: {error.strerror}") from error
