"""A secondary that forgets: what its primary may not have written to the disk they share, it doesn't write
once more.

    python forgetful_daemon.py secondary --config FILE

For the test that the guest's disk gives it away.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from diskbuf import SealedWrites
from remuslike.config import load_settings
from remuslike.daemon import backup_session
from remuslike.daemon.backup import BackupDaemon
from remuslike.daemon.hooks import pass_step
from remuslike.daemon.retained import RetainedOutputs


class ForgottenOutputs(RetainedOutputs):
    """Kept in vain."""

    def writes(self) -> list[tuple[int, int, SealedWrites]]:
        return []


def main(role: str, _option: str, path: str) -> None:
    assert role == "secondary", f"no {role} has anything to forget"
    backup_session.RetainedOutputs = ForgottenOutputs  # type: ignore[misc]
    trio.run(BackupDaemon(load_settings(Path(path)), pass_step).run)


if __name__ == "__main__":
    main(*sys.argv[1:])
