"""Errors of the benchmarks, and whose fault each is.

```
RemusError
└── BenchError                    never raised itself
    ├── BenchOptionError          yours: a value that can't be used (also a UsageError: exit status 2)
    ├── ResultsError              yours: a file that holds no results this program reads (status 2, too)
    ├── BenchEnvironmentError     this machine's: no root, a missing tool or kernel facility
    └── MeasurementError          a part of the measurement failed or was silent too long; it has no figures
```

A figure that is worse than what is wanted of it is no error: it is the benchmark's result.
"""

from __future__ import annotations

from remuslike.errors import RemusError, UsageError


class BenchError(RemusError):
    """Root of the benchmarks' errors. Raise a leaf."""


class BenchOptionError(BenchError, UsageError):
    """Your fault: an option's value can't be used."""


class ResultsError(BenchError, UsageError):
    """The fault of whoever named the file: it holds no results, damaged ones, or those of another version."""


class BenchEnvironmentError(BenchError):
    """This machine's fault: the benchmark needs something that isn't there."""


class MeasurementError(BenchError):
    """The fault of a tool that measures, or of this machine: no figure came of it."""
