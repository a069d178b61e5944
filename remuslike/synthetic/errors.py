"""Errors of the synthetic guest and its client, and whose fault each is.

```
RemusError
└── SyntheticError                never raised itself
    ├── RatesError                yours: a word of guest.append (also a UsageError)
    ├── SyntheticCommandError     yours: a command line that isn't one a daemon writes (also a UsageError)
    ├── SyntheticDiskError        this host's: the disk's NBD server is gone, or can't be spoken with
    ├── DeviceStateError          the other side's: device state that is damaged, or another guest's
    └── NoAnswerError             the guest's: a client was not answered in time
```
"""

from __future__ import annotations

from remuslike.errors import RemusError, UsageError


class SyntheticError(RemusError):
    """Root of the synthetic guest's errors. Raise a leaf."""


class RatesError(SyntheticError, UsageError):
    """Your fault: a value that can't be used. Names key and value."""


class SyntheticCommandError(SyntheticError, UsageError):
    """Your fault: the command line lacks something, or has it in another form than a daemon gives it."""


class SyntheticDiskError(SyntheticError):
    """This host's fault: the disk can't be used."""


class DeviceStateError(SyntheticError):
    """The other side's fault: what came as device state is none of this guest's."""


class NoAnswerError(SyntheticError):
    """The guest's fault, or its host's: it did not answer."""
