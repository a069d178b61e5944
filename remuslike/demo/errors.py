"""Errors of the demo, and whose fault each is.

```
RemusError
└── DemoError                     never raised itself
    ├── DemoOptionError           yours: a value out of range
    ├── DemoEnvironmentError      this machine's: no root, a missing tool, a name that is taken
    ├── DaemonError               a daemon ended early, was silent too long, or answered with an error
    ├── GuestLostError            the guest did not outlive its host: exit status 1, as for lost writes
    └── LoadError                 the guest's service or the client in front of it
```

A verdict against the framework (an acknowledged write lost, a connection reset) is no error: it is
the demo's result, and its exit status.
"""

from __future__ import annotations

from remuslike.errors import RemusError


class DemoError(RemusError):
    """Root of the demo's errors. Raise a leaf."""


class DemoOptionError(DemoError):
    """Your fault: an option's value can't be used."""


class DemoEnvironmentError(DemoError):
    """This machine's fault: the demo needs something that isn't there, or a name that is taken."""


class DaemonError(DemoError):
    """A daemon's fault, or the time limit was too short for this machine. Shows the end of its log."""


class LoadError(DemoError):
    """The fault of the guest's service or of the client process: no load, or no answer to a request."""


class GuestLostError(DemoError):
    """The product's fault: the guest's host died and the guest did not go on. All it acknowledged is lost."""
