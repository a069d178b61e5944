"""A test's way to end a daemon at a named step of an epoch (`engine.ports.PRIMARY_STEPS`, `SHARED_STEPS`,
`BACKUP_STEPS`).

`REMUSLIKE_KILL_AT=release.begin@40` kills the process with SIGKILL as it passes that step of the first
epoch from 40 on: nothing is cleaned up, as when its host dies. `release.write@40#2` waits for an epoch that
passes the step twice, and kills at the second time.
"""

from __future__ import annotations

import os
import re
import signal

from remuslike.engine.ports import BACKUP_STEPS, PRIMARY_STEPS, SHARED_STEPS, StepHook
from remuslike.errors import ConfigurationError

KILL_AT = "REMUSLIKE_KILL_AT"

_STEPS = (*PRIMARY_STEPS, *SHARED_STEPS, *BACKUP_STEPS)


def pass_step(_step: str, _epoch: int) -> None:
    """The hook of every daemon outside tests."""


def hook_from_environment() -> StepHook:
    """The hook that `REMUSLIKE_KILL_AT` asks for; ConfigurationError if it names no step."""
    wish = os.environ.get(KILL_AT)
    if wish is None:
        return pass_step
    match = re.fullmatch(r"([a-z.]+)@(\d+)(?:#([1-9]\d*))?", wish)
    if not match or match[1] not in _STEPS:
        raise ConfigurationError(
            f"{KILL_AT} = {wish!r}: must be STEP@EPOCH or STEP@EPOCH#TIME, with a step of {', '.join(_STEPS)}"
        )
    fatal_step, first_epoch, fatal_time = match[1], int(match[2]), int(match[3] or 1)
    passed_epoch = times = 0

    def hook(step: str, epoch: int) -> None:
        nonlocal passed_epoch, times
        if step != fatal_step or epoch < first_epoch:
            return
        times = times + 1 if epoch == passed_epoch else 1
        passed_epoch = epoch
        if times == fatal_time:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
