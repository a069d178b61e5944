"""Fixed ranges of seeds: the engine keeps its promises, and the checker can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from remuslike.engine import effects as do

from .mutations import MUTATIONS
from .options import Kind, draw
from .simulation import Outcome, simulate
from .world import World

SEEDS = range(1000)
MUTANTS_SEEDS = range(6000)  # the rarest, a synchronisation during a release, shows in 1 of 4,000


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [simulate(seed) for seed in SEEDS]


def test_every_promise_is_kept(outcomes: list[Outcome]) -> None:
    broken = [str(outcome) for outcome in outcomes if outcome.problem is not None]
    assert not broken, "\n".join(broken)


def test_the_seeds_try_everything_that_an_engine_can_do(outcomes: list[Outcome]) -> None:
    """A simulation that never gets to a takeover or a drained stall proves nothing about them."""
    performed = sum((outcome.performed for outcome in outcomes), Counter())
    effects = {*do.PrimaryEffect.__args__, *do.BackupEffect.__args__}
    seldom = {effect.__name__ for effect in effects if performed[effect.__name__] < 20}
    assert not seldom, f"performed less than 20 times in {len(SEEDS)} runs: {seldom}"
    drawn = {fault.kind for seed in SEEDS for fault in draw(World(seed).random).faults}
    assert drawn == set(Kind)


def test_a_seed_is_a_history() -> None:
    assert simulate(7, tracing=True).trace == simulate(7, tracing=True).trace


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_variant_is_caught(name: str, record_property: Callable[[str, object], None]) -> None:
    mutation = MUTATIONS[name]
    for seed in MUTANTS_SEEDS:
        outcome = simulate(seed, mutation.parts)
        if outcome.problem is not None and outcome.promise in mutation.promises:
            record_property("caught_after_seeds", seed + 1)
            return
    pytest.fail(f"'{name}' survived {len(MUTANTS_SEEDS)} seeds")
