"""What every Witness must do (`remuslike.engine.ports.Witness`; DESIGN.md, section 7): P3 rests on it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from remuslike.engine.ports import Token, Witness

MakeWitness = Callable[[], Witness]  # each call another client of the same new record
Property = Callable[[MakeWitness], Awaitable[None]]
PROPERTIES: list[Property] = []


def conformant(check: Property) -> Property:
    """Make `check` a part of the suite."""
    PROPERTIES.append(check)
    return check


@conformant
async def there_is_no_token_at_first(make: MakeWitness) -> None:
    assert await make().read() == Token(0, "")


@conformant
async def the_expected_generation_is_granted_and_seen_by_all(make: MakeWitness) -> None:
    ours, theirs = make(), make()
    assert await ours.acquire(0, "a") == (True, Token(1, "a"))
    assert await ours.read() == await theirs.read() == Token(1, "a")
    assert await theirs.acquire(1, "b") == (True, Token(2, "b"))
    assert await ours.read() == Token(2, "b")


@conformant
async def another_generation_is_refused_with_the_token_as_it_stands(make: MakeWitness) -> None:
    witness = make()
    await witness.acquire(0, "a")
    await witness.acquire(1, "b")
    for expected_generation in (0, 1, 3, 99):
        for holder in ("a", "c"):
            assert await witness.acquire(expected_generation, holder) == (False, Token(2, "b"))
    assert await witness.read() == Token(2, "b")


@conformant
async def asking_again_after_a_lost_answer_is_granted(make: MakeWitness) -> None:
    witness = make()
    for _ in range(3):
        assert await witness.acquire(0, "a") == (True, Token(1, "a"))
    assert await make().acquire(0, "a") == (True, Token(1, "a"))


@conformant
async def asking_again_when_somebody_has_come_after_is_refused(make: MakeWitness) -> None:
    witness = make()
    await witness.acquire(0, "a")
    await witness.acquire(1, "b")
    assert await witness.acquire(0, "a") == (False, Token(2, "b"))


@conformant
async def a_holder_may_follow_itself(make: MakeWitness) -> None:
    witness = make()
    for generation in range(5):
        assert await witness.acquire(generation, "a") == (True, Token(generation + 1, "a"))


@conformant
async def holders_are_any_words(make: MakeWitness) -> None:
    witness = make()
    for generation, holder in enumerate(("a-1", "ü", "with space", '"quoted"', "x" * 64)):
        assert await witness.acquire(generation, holder) == (True, Token(generation + 1, holder))
        assert await make().read() == Token(generation + 1, holder)


@conformant
async def of_many_that_race_one_wins(make: MakeWitness) -> None:
    for generation in range(20):
        answers: dict[str, tuple[bool, Token]] = {}

        async def race(holder: str, generation: int = generation, answers: dict = answers) -> None:  # type: ignore[type-arg]
            answers[holder] = await make().acquire(generation, holder)

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(race, f"side-{number}")
        (winner,) = [holder for holder, (granted, _) in answers.items() if granted]
        assert {token for _, token in answers.values()} == {Token(generation + 1, winner)}


@conformant
async def random_asking_follows_the_rule(make: MakeWitness) -> None:
    for seed in range(3):
        chance = random.Random(seed)
        witness = make()
        token = await witness.read()
        for step in range(40):
            expected = max(0, token.generation + chance.choice((-1, 0, 0, 1)))
            wanted = Token(expected + 1, chance.choice("abc"))
            granted = expected == token.generation or token == wanted
            token = wanted if granted else token
            answer = await witness.acquire(expected, wanted.holder)
            assert answer == (granted, token), f"seed={seed} step={step}"
