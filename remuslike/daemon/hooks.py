"""A test's way to end a daemon at a named step of an epoch (`engine.ports.PRIMARY_STEPS`, `BACKUP_STEPS`).

`REMUSLIKE_KILL_AT=release.begin@40` kills the process with SIGKILL as it passes that step of the first
epoch from 40 on: nothing is cleaned up, as when its host dies.
"""

from __future__ import annotations

import os
import re
import signal

from remuslike.engine.ports import BACKUP_STEPS, PRIMARY_STEPS, StepHook
from remuslike.errors import ConfigurationError

KILL_AT = "REMUSLIKE_KILL_AT"


def _pass(_step: str, _epoch: int) -> None:
    """The hook of every daemon outside tests."""


def hook_from_environment() -> StepHook:
    """The hook that `REMUSLIKE_KILL_AT` asks for; ConfigurationError if it names no step."""
    wish = os.environ.get(KILL_AT)
    if wish is None:
        return _pass
    match = re.fullmatch(r"([a-z.]+)@(\d+)", wish)
    if not match or match[1] not in {*PRIMARY_STEPS, *BACKUP_STEPS}:
        known = ", ".join([*PRIMARY_STEPS, *BACKUP_STEPS])
        raise ConfigurationError(f"{KILL_AT} = {wish!r}: must be STEP@EPOCH, with a step of {known}")
    fatal_step, first_epoch = match[1], int(match[2])

    def hook(step: str, epoch: int) -> None:
        if step == fatal_step and epoch >= first_epoch:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
