"""Outside the lab: has the tests marked `lab` run there, and reports each as its own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from lab.inside import Outcome, decode, without_outcomes
from remuslike.image import ImageError
from remuslike.lab.errors import LabError
from remuslike.lab.lab import Lab, Running

TIMEOUT_S = 1500
"""For all tests in the lab together. They should take four minutes, but the clock goes on while those outside
run beside them, until the first of theirs is asked for."""

OUTPUT_TAIL_CHARACTERS = 4000

TEMPORARY_ROOT = "/var/tmp"
"""Where pytest in the lab makes its temporary directories. It removes old ones by their numbers; under /tmp
they are of the runs outside, and what it removed in its overlay this run's own commands would miss."""

_NOT_FOR_THE_LAB = {"PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTHONDONTWRITEBYTECODE"}
"""The options are for the outside; and what Python compiles in the lab is for the next test there."""


class Remote:
    """The lab of this test run, booted when it is first needed, and the pytest that runs in it."""

    def __init__(self) -> None:
        self._lab: Lab | None = None
        self._failure: LabError | ImageError | None = None
        self._running: Running | None = None
        self._output = ""
        self._outcomes: dict[str, Outcome] = {}

    def lab(self) -> Lab:
        """The lab, idle: if tests run there, they run to their end first. Raises LabError."""
        if shutil.which("qemu-system-x86_64") is None:
            pytest.skip("qemu-system-x86_64 isn't installed")
        if self._failure is not None:
            raise self._failure
        try:
            if self._lab is None:
                self._lab = Lab.boot()
            while self._running is not None and self._read(self._running):
                pass
        except (LabError, ImageError) as error:
            self._failure = error
            raise
        return self._lab

    def begin(self, nodes: Sequence[str]) -> None:
        """Have `nodes` run while other tests do. Where that fails, `outcome` says so."""
        if shutil.which("qemu-system-x86_64") is not None:
            with suppress(LabError, ImageError):
                self._start(nodes)

    def outcome(self, node: str, nodes: Sequence[str]) -> Outcome:
        """What `node` came to; if none of `nodes` has run yet, all are. Raises LabError for the test in which
        the lab fails."""
        if node not in self._outcomes and self._failure is not None:
            first_line = str(self._failure).partition("\n")[0]
            return Outcome(node, "failed", f"in the lab: not run to its end; before it, {first_line}")
        running = self._running or self._start(nodes)
        try:
            while node not in self._outcomes and self._read(running):
                pass
        except (LabError, ImageError) as error:
            self._failure = error
            raise
        tail = self._output[-OUTPUT_TAIL_CHARACTERS:]
        text = f"in the lab: pytest ended with status {running.status} before this test:\n{tail}"
        return self._outcomes.get(node, Outcome(node, "failed", text))

    def close(self) -> None:
        """Ends the lab if there is one."""
        if self._lab is not None:
            self._lab.close()

    def _start(self, nodes: Sequence[str]) -> Running:
        environment = {name: text for name, text in os.environ.items() if name not in _NOT_FOR_THE_LAB}
        environment["PYTEST_DEBUG_TEMPROOT"] = TEMPORARY_ROOT
        arguments = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *nodes]
        self._running = self.lab().start(arguments, TIMEOUT_S, environment=environment)
        return self._running

    def _read(self, running: Running) -> bool:
        """Takes in the next part of the output; False when there is no more."""
        part = next(running, None)
        if part is None:
            return False
        self._output += part[1].decode(errors="replace")
        self._outcomes |= {outcome.node: outcome for outcome in decode(self._output)}
        self._output = without_outcomes(self._output)
        return True


class FailedInTheLab(Exception):  # noqa: N818 - the name is what the report shows
    """A test failed in the lab. Its argument is the traceback there."""


class LabItem(pytest.Item):
    """Stands for a test that runs in the lab."""

    def __init__(self, *, original: pytest.Item, remote: Remote, nodes: list[str], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._original = original
        self._remote = remote
        self._nodes = nodes

    def runtest(self) -> None:
        """Waits for what the test comes to in the lab, and comes to the same."""
        outcome = self._remote.outcome(self.nodeid, self._nodes)
        for name, text in outcome.sections:
            stream, _, phase = name.removeprefix("Captured ").rpartition(" ")
            self.add_report_section(phase, stream, text)
        match outcome.outcome:
            case "skipped":
                pytest.skip(f"in the lab: {outcome.text}")
            case "xfailed":
                pytest.xfail(f"in the lab: {outcome.text}")
            case "failed":
                raise FailedInTheLab(outcome.text)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *arguments: Any) -> Any:
        """The traceback in the lab, or why there is none."""
        if isinstance(excinfo.value, FailedInTheLab | LabError | ImageError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, *arguments)

    def reportinfo(self) -> Any:
        return self._original.reportinfo()


def replace_lab_items(items: list[pytest.Item], remote: Remote) -> list[str]:
    """Puts a LabItem in the place of each test marked `lab`; the names of those tests.

    They come last, and so do the tests that want an idle lab: what runs there runs beside all the others.
    """
    nodes = [item.nodeid for item in items if item.get_closest_marker("lab")]
    for place, item in enumerate(items):
        if item.get_closest_marker("lab"):
            items[place] = LabItem.from_parent(
                item.parent, name=item.name, original=item, remote=remote, nodes=nodes
            )
    items.sort(key=_waits_for_the_lab)  # which is stable
    return nodes


def _waits_for_the_lab(item: pytest.Item) -> bool:
    return isinstance(item, LabItem) or "lab" in getattr(item, "fixturenames", ())
