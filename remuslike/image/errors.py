"""Errors of the guest image.

ImageError
├── EnvironmentFaultError     this machine lacks something
│   ├── ToolMissingError
│   ├── ToolFailedError
│   ├── NoSpaceError
│   └── CacheUnusableError
├── PackageError              the package archive
│   ├── PackageNotFoundError
│   ├── PackageDownloadError
│   └── PackageContentError
└── RequestError              the caller
    ├── CommandLineError
    └── DataDiskError
"""

from __future__ import annotations


class ImageError(Exception):
    """Base of all errors of this package; only its leaves are raised."""


class EnvironmentFaultError(ImageError):
    """The machine's fault: something that the build or the probe needs is not there or doesn't work."""


class ToolMissingError(EnvironmentFaultError):
    """The machine's fault: a program is not installed."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool} isn't installed; install it with: apt-get install {package}")
        self.tool = tool
        self.package = package


class ToolFailedError(EnvironmentFaultError):
    """The machine's fault: a program ended with an error. `output` is the end of what it said."""

    def __init__(self, tool: str, status: int, output: str) -> None:
        super().__init__(f"{tool} ended with status {status}: {output or 'it said nothing'}")
        self.tool = tool
        self.status = status
        self.output = output


class NoSpaceError(EnvironmentFaultError):
    """The machine's fault: the file system of the cache has too little room for a build."""

    def __init__(self, directory: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"{directory} has {free_bytes >> 20} MiB free and {needed_bytes >> 20} MiB are needed; "
            "make room or name another directory in REMUSLIKE_CACHE"
        )
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class CacheUnusableError(EnvironmentFaultError):
    """The machine's fault: the cache directory can't be read or written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the cache can't use {path}: {reason}; name another directory in REMUSLIKE_CACHE")
        self.path = path


class PackageError(ImageError):
    """The archive's fault: a package isn't what the recipe expects."""


class PackageNotFoundError(PackageError):
    """The archive's fault: no configured source has the package."""

    def __init__(self, package: str, needed_by: str) -> None:
        super().__init__(
            f"no package source of this machine has {package}, which {needed_by} needs; "
            "add Debian 12 (bookworm, main) to apt's sources and run: apt-get update"
        )
        self.package = package


class PackageDownloadError(PackageError):
    """The archive's or the network's fault: a package didn't arrive, or arrived with other bytes."""

    def __init__(self, package: str, reason: str) -> None:
        super().__init__(
            f"{package} can't be downloaded: {reason}; "
            "look at the network, or take today's version with: remuslike image build --refresh"
        )
        self.package = package


class PackageContentError(PackageError):
    """The archive's fault: a package lacks a file, or a file in it can't be understood."""


class RequestError(ImageError):
    """The caller's fault: an argument is out of range."""


class CommandLineError(RequestError):
    """The caller's fault: a value doesn't fit into the guest's kernel command line."""


class DataDiskError(RequestError):
    """The caller's fault: a data disk can't be made as asked."""
