"""Every Witness against the suite, and the suite against no witness, which grants whatever is asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from fakes.witness import FakeWitness
from witness_suite import PROPERTIES, MakeWitness, Property

from remuslike.engine.ports import Token, Witness
from remuslike.witness import FileWitness, NoWitness


def make_file(directory: Path) -> MakeWitness:
    return partial(FileWitness, directory / "token")


def make_fake(_directory: Path) -> MakeWitness:
    witness = FakeWitness()
    return lambda: witness


@pytest.mark.parametrize("implementation", [make_file, make_fake], ids=["file", "fake"])
@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_witness(implementation: Callable[[Path], MakeWitness], check: Property, tmp_path: Path) -> None:
    trio.run(check, implementation(tmp_path))


def test_no_witness_grants_to_all_and_so_is_none() -> None:
    caught = set()
    for check in PROPERTIES:
        try:
            trio.run(check, NoWitness)
        except AssertionError:
            caught.add(check.__name__)
        except ValueError:
            caught.add(check.__name__)  # more than one winner
    assert {
        "another_generation_is_refused_with_the_token_as_it_stands",
        "asking_again_when_somebody_has_come_after_is_refused",
        "of_many_that_race_one_wins",
    } <= caught


ROUNDS = 150

# A side that asks for every generation in turn, and says which it was granted.
_RACER = """
import json, sys, trio
from pathlib import Path
from remuslike.witness import FileWitness

async def race(path, holder, rounds):
    witness = FileWitness(Path(path))
    sys.stdin.readline()
    answers = []
    for generation in range(rounds):
        granted, token = await witness.acquire(generation, holder)
        while token.generation < generation + 1:
            token = await witness.read()
        answers.append((generation, granted))
    print(json.dumps(answers))

trio.run(race, sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


def test_of_two_processes_that_race_one_wins_each_generation(tmp_path: Path) -> None:
    path = tmp_path / "token"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(path), holder, str(ROUNDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for holder in ("left", "right")
    ]
    try:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    winners = Counter(generation for answer in answers for generation, granted in answer if granted)
    assert winners == dict.fromkeys(range(ROUNDS), 1)
    token: Token = trio.run(FileWitness(path).read)
    assert token.generation == ROUNDS


def test_each_satisfies_the_port(tmp_path: Path) -> None:
    witnesses: list[Witness] = [FileWitness(tmp_path / "token"), FakeWitness(), NoWitness()]
    assert all(callable(witness.acquire) for witness in witnesses)
