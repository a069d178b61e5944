"""Errors of the kernel lab.

LabError
├── LabHostError              this machine lacks something
│   └── LabStartError
├── LabMachineError           the lab's kernel, or QEMU
│   ├── LabBootError
│   ├── LabEndedError
│   └── LabProtocolError
└── LabCommandError           your command
    ├── LabRequestError
    ├── CommandTimeoutError
    └── OutputLimitError

What the lab is made of comes through `remuslike.image`: that package's errors pass through.
"""

from __future__ import annotations

from collections.abc import Sequence

from remuslike.errors import RemusError


class LabError(RemusError):
    """Base of all errors of this package; only its leaves are raised."""


class LabHostError(LabError):
    """This host's fault: the lab can't be started on it."""


class LabStartError(LabHostError):
    """This host's fault: QEMU can't be started."""

    def __init__(self, program: str, reason: str) -> None:
        super().__init__(f"{program} can't be started: {reason}; install qemu-system-x86 and util-linux")


class LabMachineError(LabError):
    """The lab's own fault, or QEMU's: your command may not have run at all, or not to its end."""


class LabBootError(LabMachineError):
    """The lab's fault: its kernel or its first process didn't come up."""

    def __init__(self, reason: str, console: str) -> None:
        super().__init__(f"the lab doesn't boot: {reason}; the end of its console:\n{console}")


class LabEndedError(LabMachineError):
    """The lab's fault, or your command's if it broke the kernel: the lab is gone, and the command with it."""

    def __init__(self, reason: str, console: str) -> None:
        super().__init__(f"the lab is gone: {reason}; boot another; the end of its console:\n{console}")


class LabProtocolError(LabMachineError):
    """The lab's fault: bytes on its channel that the protocol (`remuslike.lab.wire`) doesn't have."""


class LabCommandError(LabError):
    """Your fault: the command that you gave to the lab. The lab is still there."""


class LabRequestError(LabCommandError):
    """Your fault: command, directory and environment together are longer than the lab takes."""


class CommandTimeoutError(LabCommandError):
    """Your command's fault: it had not ended in time, and was killed with all that it had started."""

    def __init__(self, arguments: Sequence[str], timeout_s: float, output: str) -> None:
        said = f"its last output:\n{output}" if output else "it had written nothing"
        super().__init__(
            f"{' '.join(arguments)} had not ended after timeout_s = {timeout_s:g} and was killed; {said}"
        )


class OutputLimitError(LabCommandError):
    """Your command's fault: it wrote more than is kept of one command, and was killed."""

    def __init__(self, arguments: Sequence[str], limit_bytes: int) -> None:
        super().__init__(
            f"{' '.join(arguments)} wrote more than {limit_bytes} bytes and was killed; take them as they"
            " come (Lab.start), or write them to a file in the lab"
        )
