"""`python -m tests.sim [--seed N] [--runs M] [--mutation NAME] [--trace]`."""

from __future__ import annotations

import argparse
import sys
import time

from .mutations import MUTATIONS
from .simulation import Parts, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description="Simulate seeds N to N + M - 1.")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--runs", type=int, default=1, metavar="M")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="run a broken variant")
    parser.add_argument("--trace", action="store_true", help="write down every event of the first failure")
    arguments = parser.parse_args()
    parts = MUTATIONS[arguments.mutation].parts if arguments.mutation else Parts()
    failures = 0
    began = time.perf_counter()
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        outcome = simulate(seed, parts, tracing=arguments.trace)
        if arguments.trace and (outcome.problem is not None or arguments.runs == 1):
            sys.stdout.write("\n".join(outcome.trace) + "\n")
        if outcome.problem is not None:
            failures += 1
            option = f" --mutation '{arguments.mutation}'" if arguments.mutation else ""
            sys.stdout.write(f"{outcome.promise:9} {outcome}{option}\n")
            if arguments.trace:
                break
    seconds = time.perf_counter() - began
    sys.stdout.write(f"{arguments.runs} runs, {failures} failures, {arguments.runs / seconds:.0f} runs/s\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
