"""Looks Debian packages up and downloads them through apt, which verifies the archive's signatures.

Nothing of the system is changed and no root is needed: package lists that this module fetches are its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remuslike.image.errors import PackageDownloadError, ToolFailedError
from remuslike.image.packages import Package, parse_records
from remuslike.image.tools import run

_NOT_FOUND_STATUS = 100


@dataclass(frozen=True, slots=True)
class Archive:
    """apt's package sources. `lists` is a folder for lists of our own; without it the system's are used."""

    lists: Path | None = None

    def show(self, names: Sequence[str]) -> Mapping[str, Package]:
        """The candidate versions of `names`; names that no source has are missing from the answer."""
        output = run(
            ["apt-cache", *self._options(), "show", "--no-all-versions", *names],
            accepted=frozenset({0, _NOT_FOUND_STATUS}),
        )
        return parse_records(output)

    def update(self) -> None:
        """Fetches the package lists of all sources into `lists`.

        Raises PackageDownloadError when no list arrives. A source that fails beside others that work is not
        an error here: what it alone has is reported as not found.
        """
        assert self.lists is not None
        # apt keeps yesterday's lists when it can't fetch today's, and then nothing would tell the two apart.
        shutil.rmtree(self.lists, ignore_errors=True)
        (self.lists / "partial").mkdir(parents=True)
        try:
            run(["apt-get", *self._options(), "-o", "APT::Update::Error-Mode=any", "-qq", "update"])
        except ToolFailedError as error:
            if not any(self.lists.glob("*_Packages*")):
                raise PackageDownloadError("the package list", error.output) from None

    def download(self, packages: Iterable[Package], directory: Path) -> None:
        """Puts each package into `directory` as SHA256.deb; those that are there are not fetched again.

        Raises PackageDownloadError when one can't be fetched or isn't what the list says.
        """
        missing = [package for package in packages if not deb_path(directory, package).exists()]
        if not missing:
            return
        by_digest = {package.sha256: package for package in missing}
        with tempfile.TemporaryDirectory(prefix="incoming-", dir=directory) as incoming:
            try:
                run(
                    [
                        "apt-get",
                        *self._options(),
                        "-qq",
                        "download",
                        *(f"{package.name}={package.version}" for package in missing),
                    ],
                    directory=Path(incoming),
                )
            except ToolFailedError as error:
                raise PackageDownloadError(_names(missing), error.output) from None
            for path in Path(incoming).glob("*.deb"):
                with path.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                if package := by_digest.pop(digest, None):
                    path.rename(deb_path(directory, package))
        if by_digest:
            raise PackageDownloadError(_names(by_digest.values()), "other bytes arrived than the list names")

    def _options(self) -> list[str]:
        # What is installed on this machine has no say in what the guest gets.
        options = ["-o", "Dir::State::status=/dev/null"]
        if self.lists is not None:
            options += ["-o", f"Dir::State::lists={self.lists}"]
        if os.geteuid() == 0:
            # apt's own user can't write into a cache that belongs to root.
            options += ["-o", "APT::Sandbox::User=root"]
        return options


def deb_path(directory: Path, package: Package) -> Path:
    """Where `download` puts a package."""
    return directory / f"{package.sha256}.deb"


def _names(packages: Iterable[Package]) -> str:
    names = [package.name for package in packages]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
