"""Whose turn it is on a busy host: QEMU's main thread, while its guest stands still for us."""

from __future__ import annotations

import os

import structlog

log = structlog.get_logger()

# Our own event loop's. Threads that QEMU starts meanwhile don't inherit it.
_PRIORITY = 1
_REALTIME = os.SCHED_RR | os.SCHED_RESET_ON_FORK
# To take the flag away again needs CAP_SYS_NICE, which we may have had at the beginning only. Left alone, it
# does no more than to keep a negative nice value from threads that are started later.
_ORDINARY = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK


class Urgency:
    """Gives QEMU's main thread the lowest real-time priority while there is something to do in a pause.

    A pause is a few wake-ups of that thread. Where others want the processors, such as those who encode the
    epoch before, it may have to wait for a slice of theirs each time, 3 ms and more; and before it can answer
    `cont`, for the very guest that it has set going, if that was put on its processor.

    Only that thread: a virtual processor that was made urgent before it has stopped would keep this one from
    stopping it. And only then: what a running guest does has no more right to the host than other work, and
    one that is to stay paused needs nothing.
    """

    def __init__(self, pid: int) -> None:
        """Prerequisite: `pid` is our child's, and nobody has waited for it while this is used: else the
        number might be another's."""
        self._pid = pid
        self._raised = False
        self._refused = False

    def begin(self) -> None:
        """It is about to be asked for something. If somebody has given it a policy of its own, it keeps that.
        Idempotent."""
        if self._raised or self._refused:
            return
        try:
            if os.sched_getscheduler(self._pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_OTHER:
                os.sched_setscheduler(self._pid, _REALTIME, os.sched_param(_PRIORITY))
                self._raised = True
        except ProcessLookupError:
            pass  # its monitor tells
        except PermissionError as error:
            self._refused = True
            log.warning("pause.ordinary", error=str(error), advice="a busy host may make pauses longer")

    def end(self) -> None:
        """Its guest runs, or is to stay paused. Idempotent."""
        if self._raised:
            self._raised = False
            try:
                os.sched_setscheduler(self._pid, _ORDINARY, os.sched_param(0))
            except ProcessLookupError:
                pass  # its monitor tells
            except PermissionError as error:
                self._refused = True
                log.warning(
                    "pause.urgent", error=str(error), advice="QEMU stays real-time: give it its policy"
                )
