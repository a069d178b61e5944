"""Debian package records and the closure of their dependencies. Pure.

Records are the paragraphs that `apt-cache show` prints (deb-control(5), Debian policy 5.3 and 7.1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from remuslike.image.errors import PackageContentError, PackageNotFoundError

CLOSURE_LIMIT = 400
"""Packages in one closure. The recipe's has about 70: more means that an exclusion no longer bites."""

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One version of one package as the archive describes it."""

    name: str
    version: str
    sha256: str
    size_bytes: int
    depends: tuple[tuple[str, ...], ...] = ()
    """Each inner tuple is one dependency: names of which one is enough, the preferred first."""


Index = Callable[[Sequence[str]], Mapping[str, Package]]
"""Looks names up. A name that the archive doesn't have is missing from the answer."""


def parse_records(text: str) -> dict[str, Package]:
    """Packages by name out of `apt-cache show` output; of several versions the first, apt's candidate."""
    packages: dict[str, Package] = {}
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        fields = _fields(paragraph)
        if not fields:
            continue
        try:
            package = Package(
                name=fields["Package"],
                version=fields["Version"],
                sha256=fields["SHA256"].lower(),
                size_bytes=int(fields["Size"]),
                depends=parse_depends(f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"),
            )
        except KeyError as error:
            # A package that is installed but in no source any more has no SHA256: it can't be downloaded.
            if error.args[0] in {"SHA256", "Size"}:
                continue
            raise PackageContentError(f"a package record lacks {error.args[0]}: {paragraph[:80]!r}") from None
        except ValueError:
            raise PackageContentError(
                f"package {fields['Package']} has Size {fields['Size']!r}, which is no number"
            ) from None
        packages.setdefault(package.name, package)
    return packages


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line[:1].isspace():
            fields[name] = f"{fields.get(name, '')} {line.strip()}"
        elif ":" in line:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    return fields


def parse_depends(text: str) -> tuple[tuple[str, ...], ...]:
    """The names in a dependency field; versions and architectures are apt's business when it downloads."""
    dependencies = []
    for clause in text.split(","):
        alternatives = [match[0] for word in clause.split("|") if (match := _NAME.match(word.strip()))]
        if alternatives:
            dependencies.append(tuple(alternatives))
    return tuple(dependencies)


def closure(roots: Iterable[str], excluded: Collection[str], index: Index) -> tuple[Package, ...]:
    """All packages that `roots` need, with the roots, in the order of their names.

    A dependency is dropped when its preferred alternative is excluded, and otherwise met by the first
    alternative that the archive has. The index is asked once per level of the dependency graph.

    Raises PackageNotFoundError for a dependency that nothing meets.
    """
    found: dict[str, Package] = {}
    wanted: list[tuple[tuple[str, ...], str]] = [((name,), "the guest image") for name in roots]
    while wanted:
        names = sorted({name for alternatives, _ in wanted for name in alternatives} - found.keys())
        available = {**found, **index(names)} if names else found
        following: list[tuple[tuple[str, ...], str]] = []
        for alternatives, needed_by in wanted:
            chosen = next((available[name] for name in alternatives if name in available), None)
            if chosen is None:
                raise PackageNotFoundError(" or ".join(alternatives), needed_by)
            if chosen.name in found:
                continue
            found[chosen.name] = chosen
            following += [(names, chosen.name) for names in chosen.depends if names[0] not in excluded]
        if len(found) > CLOSURE_LIMIT:
            raise PackageContentError(
                f"the guest needs more than {CLOSURE_LIMIT} packages; exclude what serves only installation"
            )
        wanted = following
    return tuple(sorted(found.values()))
