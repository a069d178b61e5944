"""The tree of expected errors of the framework, and whose fault each is.

```
RemusError                        never raised itself
├── UsageError                    yours: fix what you wrote
│   ├── ConfigurationError        a key or value of a configuration file
│   └── RequestError              a request on the control socket
├── HostError                     this host's: install, free or permit something
│   ├── PrivilegeError            not root
│   ├── MissingToolError          a program or kernel facility isn't there
│   ├── GuestError                QEMU failed, died or answered with an error
│   ├── ControlError              the control socket can't be made or reached
│   └── WitnessError              the witness gave no answer
└── PeerError                     the other side's
    ├── HandshakeError            it protects another guest, or speaks another protocol
    └── PayloadError              a frame of its session can't be understood
```

`netbuf`, `diskbuf`, `transport` and `remuslike.image` stand alone and have trees of their own, of
the same shape. `expected_errors()` gives the roots of all: the command line turns these into one
line and an exit status. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class RemusError(Exception):
    """Root of the framework's expected errors. Raise a leaf."""

    def __init__(self, message: str) -> None:
        assert type(self) is not RemusError, "raise a leaf of the tree"
        super().__init__(message)


class UsageError(RemusError):
    """Your fault: something you wrote can't be followed."""


class ConfigurationError(UsageError):
    """Your fault: a configuration file. The message names file, key and value."""


class RequestError(UsageError):
    """Your fault: a request on the control socket that can't be followed. Names the field."""


class HostError(RemusError):
    """This host's fault: it lacks something, or something on it failed."""


class PrivilegeError(HostError):
    """This host's fault: the process may not do what a daemon must."""


class MissingToolError(HostError):
    """This host's fault: a program or kernel facility is missing. The message says what to install."""


class GuestError(HostError):
    """This host's fault: QEMU could not be started, died, or answered with an error."""


class ControlError(HostError):
    """This host's fault: the control socket can't be made, or nobody answers on it."""


class WitnessError(HostError):
    """This host's or the witness's fault: no answer; nothing is known about the token."""


class PeerError(RemusError):
    """The peer's fault."""


class HandshakeError(PeerError):
    """The peer's fault, or a difference between the two configurations. Names both values."""


class PayloadError(PeerError):
    """The peer's fault: a whole, uncorrupted frame whose contents make no sense."""


def expected_errors() -> tuple[type[Exception], ...]:
    """The roots of every expected error in the product."""
    from diskbuf.errors import DiskbufError
    from netbuf.errors import NetbufError
    from remuslike.image.errors import ImageError
    from transport.errors import TransportError

    return (RemusError, NetbufError, DiskbufError, TransportError, ImageError)


def first_message(error: BaseException) -> str:
    """The words of an error, or of the first in a group, however deep it lies."""
    return first_message(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else str(error)
