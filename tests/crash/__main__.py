"""`python -m tests.crash [--seed N] [--runs M] [--mutation NAME]`."""

from __future__ import annotations

import argparse
import sys
import time

from diskbuf.journal import Journal

from .mutations import MUTATIONS
from .proof import prove


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash", description="Crash at every point of the histories of N to N + M - 1."
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--runs", type=int, default=1, metavar="M")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="run a broken journal")
    arguments = parser.parse_args()
    journal_class = MUTATIONS[arguments.mutation] if arguments.mutation else Journal
    failures = points = 0
    began = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        outcome = prove(seed, journal_class)
        points += outcome.points
        if outcome.problem is not None:
            failures += 1
            option = f" --mutation '{arguments.mutation}'" if arguments.mutation else ""
            sys.stdout.write(f"{outcome}{option}\n")
    seconds = time.perf_counter() - began
    sys.stdout.write(
        f"{arguments.runs} runs, {points} crashes, {failures} failures, {points / seconds:.0f} crashes/s\n"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
