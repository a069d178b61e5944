"""Package records and the closure of dependencies, over archives made up here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from remuslike.image.errors import PackageContentError, PackageNotFoundError
from remuslike.image.packages import CLOSURE_LIMIT, Package, closure, parse_depends, parse_records

RECORDS = """\
Package: redis-server
Source: redis
Version: 5:7.0.15-1
Pre-Depends: init-system-helpers (>= 1.54~)
Depends: lsb-base (>= 3.2-14), redis-tools (= 5:7.0.15-1),
 libc6 (>= 2.34)
Description: Persistent key-value database
 with a continuation: line
SHA256: AB12
Size: 73908

Package: libc6
Version: 2.36-9
Size: 10
SHA256: cd34

Package: libc6
Version: 2.36-8
Size: 11
SHA256: ef56
"""


def package(name: str, *depends: tuple[str, ...]) -> Package:
    return Package(name, "1", f"digest of {name}", 1, depends)


def index_of(*packages: Package) -> Callable[[Sequence[str]], Mapping[str, Package]]:
    known = {package.name: package for package in packages}
    return lambda names: {name: known[name] for name in names if name in known}


def names(packages: Sequence[Package]) -> list[str]:
    return [package.name for package in packages]


def test_records_are_read_with_their_dependencies() -> None:
    records = parse_records(RECORDS)
    assert records["redis-server"] == Package(
        name="redis-server",
        version="5:7.0.15-1",
        sha256="ab12",
        size_bytes=73908,
        depends=(("init-system-helpers",), ("lsb-base",), ("redis-tools",), ("libc6",)),
    )


def test_the_first_of_several_versions_is_the_candidate() -> None:
    assert parse_records(RECORDS)["libc6"].version == "2.36-9"


def test_a_package_that_cannot_be_downloaded_is_not_in_the_archive() -> None:
    assert parse_records("Package: local\nVersion: 1\nStatus: install ok installed\n") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Package: broken\nSHA256: aa\nSize: 1\n", "lacks Version"),
        ("Package: broken\nVersion: 1\nSHA256: aa\nSize: many\n", "Size 'many'"),
    ],
)
def test_a_record_that_makes_no_sense_is_named(text: str, message: str) -> None:
    with pytest.raises(PackageContentError, match=message):
        parse_records(text)


def test_no_records_at_all() -> None:
    assert parse_records("\n") == {}


def test_alternatives_architectures_and_versions_in_dependencies() -> None:
    assert parse_depends("debconf (>= 0.5) | debconf-2.0, libc6:any (>= 2), , libstdc++6 [amd64]") == (
        ("debconf", "debconf-2.0"),
        ("libc6",),
        ("libstdc++6",),
    )


def test_the_closure_has_everything_once_in_order_of_names() -> None:
    index = index_of(
        package("redis", ("tools",), ("libc",)),
        package("tools", ("libc",), ("libz",)),
        package("libz", ("libc",)),
        package("libc", ("libgcc",)),
        package("libgcc", ("libc",)),
        package("unrelated"),
    )
    assert names(closure(["redis"], (), index)) == ["libc", "libgcc", "libz", "redis", "tools"]


def test_what_an_excluded_package_needs_is_not_fetched_either() -> None:
    index = index_of(package("fio", ("python",), ("libc",)), package("python", ("perl",)), package("libc"))
    assert names(closure(["fio"], {"python"}, index)) == ["fio", "libc"]


def test_the_first_alternative_that_exists_is_taken() -> None:
    index = index_of(package("program", ("virtual", "real", "other")), package("real"), package("other"))
    assert names(closure(["program"], (), index)) == ["program", "real"]


def test_an_alternative_is_no_way_around_an_exclusion() -> None:
    index = index_of(package("program", ("debconf", "cdebconf")), package("debconf"), package("cdebconf"))
    assert names(closure(["program"], {"debconf"}, index)) == ["program"]


def test_a_missing_dependency_is_named_with_who_needs_it() -> None:
    with pytest.raises(PackageNotFoundError, match="libgone or libnone, which program needs"):
        closure(["program"], (), index_of(package("program", ("libgone", "libnone"))))


def test_a_missing_root_is_named() -> None:
    with pytest.raises(PackageNotFoundError, match="no package source of this machine has redis"):
        closure(["redis"], (), index_of())


def test_a_closure_without_end_is_refused() -> None:
    def endless(names: Sequence[str]) -> Mapping[str, Package]:
        return {name: package(name, (f"{name}x",)) for name in names}

    with pytest.raises(PackageContentError, match=str(CLOSURE_LIMIT)):
        closure(["a"], (), endless)
