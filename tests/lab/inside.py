"""In the lab: tells the outside what each test comes to, among pytest's own output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pytest

_RECORD = re.compile("\x1e([^\n]*)\n")
"""A JSON text sequence (RFC 7464)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a test came to: passed, failed, skipped or xfailed. `text` is the traceback, or the reason."""

    node: str
    outcome: str
    text: str = ""
    sections: tuple[tuple[str, str], ...] = ()


class Reporter:
    """A plugin of the pytest that runs in the lab."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._outcome: Outcome | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The last phase of a test that didn't just pass decides, and is told when the test is over."""
        if self._outcome is None or not report.passed:
            self._outcome = _outcome(report)
        if report.when == "teardown":
            self._config.get_terminal_writer().write(encode(self._outcome), flush=True)
            self._outcome = None


def _outcome(report: pytest.TestReport) -> Outcome:
    outcome: str = report.outcome
    text = report.longreprtext
    if report.skipped and hasattr(report, "wasxfail"):
        outcome, text = "xfailed", report.wasxfail
    elif isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    elif crash := getattr(report.longrepr, "reprcrash", None):
        # pytest's summary shows the first line of what it is given.
        text = f"in the lab: {crash.message.splitlines()[0]}\n\n{text}"
    return Outcome(report.nodeid, outcome, text, tuple(report.sections))


def encode(outcome: Outcome) -> str:
    """The text of an outcome, all ASCII."""
    return f"\x1e{json.dumps(asdict(outcome))}\n"


def decode(text: str) -> Iterator[Outcome]:
    """The outcomes in a part of pytest's output."""
    for match in _RECORD.finditer(text):
        fields: dict[str, Any] = json.loads(match[1])
        sections = tuple((name, said) for name, said in fields.pop("sections"))
        yield Outcome(**fields, sections=sections)


def without_outcomes(text: str) -> str:
    """What pytest itself says, and the beginning of an outcome that isn't whole."""
    return _RECORD.sub("", text)
