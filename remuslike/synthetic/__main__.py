"""The synthetic guest's program, in the place of QEMU's: `guest.qemu` names it."""

from __future__ import annotations

import os
import sys

from remuslike.errors import UsageError
from remuslike.synthetic.command import parse_command
from remuslike.synthetic.errors import SyntheticError


def main() -> None:
    """Status 0 after `quit`, 1 if something failed, 2 if a word of `guest.append` can't be followed."""
    # Before numpy is imported: its linear algebra starts threads for which there is no work here.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        command = parse_command(sys.argv[1:])
        from remuslike.synthetic.machine import Machine

        Machine(command).run()
    except UsageError as error:
        _complain(error, 2)
    except SyntheticError as error:
        _complain(error, 1)


def _complain(error: Exception, status: int) -> None:
    sys.stderr.write(f"remuslike-synthetic-guest: {error}\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
