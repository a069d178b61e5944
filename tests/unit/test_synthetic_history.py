"""remuslike.synthetic.history: what can't be true of what clients were told."""

from __future__ import annotations

import pytest

from remuslike.synthetic.history import History, Numbered, judge, judge_numbers
from remuslike.synthetic.service import Operation, Reply, Status


def reply(sequence: int, counter: int, status: Status = Status.OK) -> Reply:
    return Reply(Operation.COUNT, status, 7, sequence, sequence, counter)


def told(*counters: int) -> History:
    """A client that found 10 counted of 20, and was then told these counters."""
    history = History(7)
    history.begin(reply(20, 10))
    for counter in counters:
        history.answer(reply(history.next(), counter))
    return history


def test_what_rises_together_is_clean() -> None:
    history = told(11, 12, 13)
    history.compare(reply(23, 13))
    assert (history.findings, history.acknowledged, history.next()) == ([], 3, 24)


@pytest.mark.parametrize(
    ("counters", "finding"),
    [
        ((11, 11), "client 7: 1 lost: "),
        ((11, 9), "client 7: 3 lost: "),
        ((11, 13), "client 7: 1 counted twice"),
    ],
)
def test_a_counter_that_is_behind_or_ahead_is_found_once(counters: tuple[int, ...], finding: str) -> None:
    history = told(*counters)
    history.answer(reply(history.next(), counters[-1] + 1))
    (found,) = history.findings
    assert found.startswith(finding)


@pytest.mark.parametrize(("sequence", "what"), [(21, "1 lost"), (23, "1 counted twice")])
def test_what_is_read_back_must_be_the_last_that_was_told(sequence: int, what: str) -> None:
    history = told(11, 12)
    history.compare(reply(sequence, sequence - 10))
    assert what in history.findings[0]


def test_a_refused_request_is_a_finding() -> None:
    history = told()
    history.answer(reply(21, 11, Status.DISK_ERROR))
    assert history.findings == ["client 7: 21 was answered DISK_ERROR"]
    assert history.acknowledged == 0


def test_a_verdict_is_of_all() -> None:
    verdict = judge([told(11, 12), told(13)], [1.0, 2.0], [0.5, 0.1, 0.2])
    assert (verdict.acknowledged, len(verdict.findings), verdict.clean) == (3, 1, False)
    assert verdict.longest_ms == pytest.approx(300)
    assert judge([told(11)], [], []).clean


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], Numbered(0, 0, 0, 0)),
        ([5, 6, 7], Numbered(3, 0, 0, 0)),
        ([5, 8, 9], Numbered(3, 0, 0, 2)),
        ([5, 6, 7, 6, 7, 8], Numbered(6, 2, 0, 0)),
        ([5, 5], Numbered(2, 1, 0, 0)),
        ([5, 8, 6, 7, 9], Numbered(5, 0, 2, 0)),
        ([5, 8, 6, 6], Numbered(4, 1, 1, 1)),
        ([6, 5, 7], Numbered(3, 0, 1, 0)),
    ],
)
def test_frames_come_once_and_in_order(numbers: list[int], expected: Numbered) -> None:
    assert judge_numbers(numbers) == expected


def test_what_frames_may_not_do_is_said() -> None:
    again, late = judge_numbers([5, 8, 6, 6]).findings()
    assert (again, late) == ("1 frames came again", "1 frames came after a later one")
    assert judge_numbers([5, 8]).findings() == []
