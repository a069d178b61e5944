"""How tests get into the lab and their outcomes out of it."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest

from lab.inside import Outcome, Reporter, decode, encode, without_outcomes
from lab.remote import FailedInTheLab, LabItem, Remote, replace_lab_items
from remuslike.lab.errors import LabEndedError

NODE = "tests/lab/test_a.py::test_b[é]"
PASSED, FAILED = (
    Outcome(NODE, "passed"),
    Outcome("a::b", "failed", "E  assert\n\x1e", (("Captured stdout", "x"),)),
)


def test_outcomes_survive_among_other_output() -> None:
    text = f"..{encode(PASSED)}F {encode(FAILED)} done {encode(PASSED)[:9]}"
    assert encode(FAILED).isascii()
    assert list(decode(text)) == [PASSED, FAILED]
    assert without_outcomes(text) == f"..F  done {encode(PASSED)[:9]}"


def report(when: str, outcome: str, longrepr: Any = None) -> pytest.TestReport:
    return pytest.TestReport(NODE, ("test_a.py", 1, "test_b"), {}, outcome, longrepr, when)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([("setup", "passed"), ("call", "passed"), ("teardown", "passed")], PASSED),
        (
            [("setup", "passed"), ("call", "failed", "assert 1"), ("teardown", "passed")],
            Outcome(NODE, "failed", "assert 1"),
        ),
        (
            [("setup", "passed"), ("call", "passed"), ("teardown", "failed", "left")],
            Outcome(NODE, "failed", "left"),
        ),
        (
            [("setup", "skipped", ("a.py", 3, "Skipped: no")), ("teardown", "passed")],
            Outcome(NODE, "skipped", "no"),
        ),
    ],
    ids=["passed", "failed", "left something", "skipped"],
)
def test_the_worst_phase_of_a_test_is_told_when_it_is_over(phases: list[Any], expected: Outcome) -> None:
    written = StringIO()
    writer = SimpleNamespace(write=lambda text, flush: written.write(text))
    reporter = Reporter(SimpleNamespace(get_terminal_writer=lambda: writer))  # type: ignore[arg-type]
    for phase in phases:
        assert written.getvalue() == ""
        reporter.pytest_runtest_logreport(report(*phase))
    assert list(decode(written.getvalue())) == [expected]


class FakeRemote(Remote):
    """A lab in which every test comes to the same."""

    def __init__(self, outcome: Outcome | Exception) -> None:
        super().__init__()
        self.asked: list[list[str]] = []
        self._same = outcome

    def outcome(self, node: str, nodes: Any) -> Outcome:
        self.asked.append([node, *nodes])
        if isinstance(self._same, Exception):
            raise self._same
        return self._same


def lab_item(request: pytest.FixtureRequest, remote: Remote) -> pytest.Item:
    item = pytest.Function.from_parent(request.node.parent, name="test_inside", callobj=lambda: None)
    item.add_marker(pytest.mark.lab)
    items: list[pytest.Item] = [request.node, item]
    replace_lab_items(items, remote)
    assert items[0] is request.node
    return items[1]


def test_an_item_has_the_name_of_the_test_and_comes_to_the_same(request: pytest.FixtureRequest) -> None:
    remote = FakeRemote(PASSED)
    item = lab_item(request, remote)
    item.runtest()
    node = f"{request.node.parent.nodeid}::test_inside"
    assert isinstance(item, LabItem)
    assert remote.asked == [[node, node]]


def test_tests_outside_come_first_while_the_lab_runs_its_own(request: pytest.FixtureRequest) -> None:
    def named(name: str) -> pytest.Item:
        return pytest.Function.from_parent(request.node.parent, name=name, callobj=lambda: None)

    inside, outside, last = named("inside"), named("outside"), named("last")
    for item in (inside, last):
        item.add_marker(pytest.mark.lab)
    items = [inside, outside, last]
    nodes = replace_lab_items(items, FakeRemote(PASSED))
    assert [item.name for item in items] == ["outside", "inside", "last"]
    assert nodes == [inside.nodeid, last.nodeid]


def test_a_failure_in_the_lab_is_shown_with_what_was_captured(request: pytest.FixtureRequest) -> None:
    sections = (("Captured stdout setup", "begun"),)
    item = lab_item(request, FakeRemote(Outcome(NODE, "failed", "E  the traceback", sections)))
    with pytest.raises(FailedInTheLab) as caught:
        item.runtest()
    assert item.repr_failure(caught) == "E  the traceback"
    assert ("setup", "stdout", "begun") in item._report_sections


def test_a_skip_in_the_lab_is_a_skip(request: pytest.FixtureRequest) -> None:
    item = lab_item(request, FakeRemote(Outcome(NODE, "skipped", "no tool")))
    with pytest.raises(pytest.skip.Exception, match="in the lab: no tool"):
        item.runtest()


def test_a_known_failure_in_the_lab_is_one(request: pytest.FixtureRequest) -> None:
    item = lab_item(request, FakeRemote(Outcome(NODE, "xfailed", "not yet")))
    with pytest.raises(pytest.xfail.Exception, match="in the lab: not yet"):
        item.runtest()


def test_a_lab_that_fails_is_one_message(request: pytest.FixtureRequest) -> None:
    item = lab_item(request, FakeRemote(LabEndedError("its machine has ended", "    Oops")))
    with pytest.raises(LabEndedError) as caught:
        item.runtest()
    assert str(item.repr_failure(caught)).endswith("console:\n    Oops")
