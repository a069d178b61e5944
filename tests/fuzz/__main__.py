"""`python -m tests.fuzz --seconds N [--seed M] [--target NAME]`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fakes.certificate import make_certificate

from .served import Served, contexts
from .targets import PURE, SERVED, against, pure, run

_EXAMPLES = 200
"""Examples of one seed: some seconds at most, so that a failure is soon found again."""

_TLS_EVERY = 4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz diskbuf's NBD server.")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="N", help="how long (default: 60)")
    parser.add_argument("--seed", type=int, default=0, metavar="M", help="the first seed (default: 0)")
    parser.add_argument("--target", choices=[*PURE, *SERVED], help="this one only")
    arguments = parser.parse_args()
    logging.getLogger("diskbuf").setLevel(logging.CRITICAL)  # it warns of every bad client
    names = [arguments.target] if arguments.target else [*PURE, *SERVED]
    deadline = time.monotonic() + arguments.seconds
    seed = arguments.seed
    batches = 0
    while time.monotonic() < deadline:
        for name in names:
            try:
                _fuzz(name, seed)
            except BaseException:
                sys.stdout.write(f"again: python -m tests.fuzz --seconds 1 --seed {seed} --target {name}\n")
                raise
            batches += 1
        seed += 1
    tried = f"{batches * _EXAMPLES} examples of {', '.join(names)}"
    sys.stdout.write(f"{tried}; seeds {arguments.seed} to {seed - 1}: no failure\n")
    return 0


def _fuzz(name: str, seed: int) -> None:
    """One seed's examples of a target, with a server of their own if they need one; of every fourth seed's it
    is one over TLS."""
    with ExitStack() as stack:
        targets = pure()
        if name in SERVED:
            directory = stack.enter_context(TemporaryDirectory(prefix="fuzz-"))
            tls = None if seed % _TLS_EVERY else contexts(*make_certificate(Path(directory)))
            targets = against(stack.enter_context(Served(tls)))
        run(targets[name], _EXAMPLES, seed)


if __name__ == "__main__":
    sys.exit(main())
