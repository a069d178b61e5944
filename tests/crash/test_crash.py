"""Fixed ranges of seeds: a journal leaves its store at an epoch boundary, and the proof can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from .mutations import MUTATIONS
from .proof import Outcome, prove

SEEDS = range(60)


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [prove(seed) for seed in SEEDS]


def test_every_crash_leaves_an_epoch_boundary(
    outcomes: list[Outcome], record_property: Callable[[str, object], None]
) -> None:
    broken = [str(outcome) for outcome in outcomes if outcome.problem is not None]
    assert not broken, "\n".join(broken)
    points = sum(outcome.points for outcome in outcomes)
    record_property("crashes", points)
    assert points > 10_000


def test_the_seeds_try_everything_that_can_happen_to_a_journal(outcomes: list[Outcome]) -> None:
    performed = sum((outcome.performed for outcome in outcomes), Counter())
    expected = {
        "committed", "logged", "retired", "quiesced", "passed through", "killed", "recovered", "grown",
        "failed to log", "failed to apply", "failed to retire", "repeated",
        "retired amid writes", "committed amid a sync",
    }  # fmt: skip
    assert {name for name in expected if performed[name] < 5} == set()


def test_a_seed_is_a_history() -> None:
    assert prove(7) == prove(7)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_journal_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    for seed in SEEDS:
        if prove(seed, MUTATIONS[name]).problem is not None:
            record_property("caught_after_seeds", seed + 1)
            return
    pytest.fail(f"'{name}' survived {len(SEEDS)} seeds")
