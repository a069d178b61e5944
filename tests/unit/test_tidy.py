"""The manner of the source, enforced: sizes, banned words, purity, layers, docstrings.

What a rule forbids is listed by name in the failure; a rule is mended in the source, not here.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("remuslike", "netbuf", "diskbuf", "transport")

MODULE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70

# What a program that isn't finished, or is being debugged, contains.
BANNED_WORDS = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError|breakpoint)\b")

# Modules that decide and do nothing else (DESIGN.md, section 2); a name that ends in "/" is a whole package.
PURE = (
    "remuslike/engine/",
    "remuslike/bench/figures.py",
    "remuslike/bench/options.py",
    "remuslike/bench/plain.py",
    "remuslike/bench/plan.py",
    "remuslike/bench/report/compare.py",
    "remuslike/bench/report/intervals.py",
    "remuslike/bench/report/measures.py",
    "remuslike/bench/report/summary.py",
    "remuslike/bench/report/tables.py",
    "remuslike/bench/results.py",
    "remuslike/daemon/payloads.py",
    "remuslike/guest/command.py",
    "remuslike/guest/qmp_wire.py",
    "remuslike/guest/refusals.py",
    "remuslike/lab/wire.py",
    "remuslike/synthetic/command.py",
    "remuslike/synthetic/frames.py",
    "remuslike/synthetic/history.py",
    "remuslike/synthetic/monitor.py",
    "remuslike/synthetic/program.py",
    "remuslike/synthetic/ram.py",
    "remuslike/synthetic/rates.py",
    "remuslike/synthetic/registers.py",
    "remuslike/synthetic/service.py",
    "remuslike/synthetic/storage.py",
    "remuslike/synthetic/walk.py",
    "transport/frames.py",
    "transport/pages.py",
    "diskbuf/chunks.py",
    "diskbuf/contract.py",
    "diskbuf/extents.py",
    "diskbuf/journalformat.py",
    "diskbuf/negotiation.py",
    "diskbuf/overlay.py",
    "diskbuf/sealed.py",
    "diskbuf/sizes.py",
    "diskbuf/wire.py",
    "netbuf/firstoutput.py",
    "netbuf/gatemeter.py",
    "netbuf/gatewire.py",
    "netbuf/ledger.py",
    "netbuf/plugmeter.py",
    "netbuf/plugwire.py",
    "netbuf/sizing.py",
)
IMPURE_IMPORTS = {"trio", "socket", "time", "random"}

# Of the framework, the engine knows itself and the errors.
ENGINE_IMPORTS = {"remuslike.engine", "remuslike.errors"}


def modules() -> list[Path]:
    """All modules of the product, relative to the repository."""
    return sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@cache
def text_of(path: Path) -> str:
    return (ROOT / path).read_text("utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), str(path))


def is_pure(path: Path) -> bool:
    return any(
        path.as_posix().startswith(place) if place.endswith("/") else path.as_posix() == place
        for place in PURE
    )


def imported(path: Path) -> Iterator[str]:
    """The dotted names of all that a module imports, wherever it does."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield absolute(path, node)


def names_imported(path: Path) -> Iterator[str]:
    """As `imported`, and what is taken from packages: `from remuslike import demo` is remuslike.demo, too."""
    yield from imported(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{absolute(path, node)}.{alias.name}" for alias in node.names)


def absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        assert node.module is not None
        return node.module
    package = path.parent.parts[: len(path.parent.parts) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_there_is_something_to_check() -> None:
    packages = {path.parts[0] for path in modules()}
    assert packages == set(PACKAGES)


@pytest.mark.parametrize("place", PURE)
def test_every_pure_place_exists(place: str) -> None:
    assert (ROOT / place).exists(), f"{place} has moved: say where its purity is checked now"


def test_modules_are_short() -> None:
    long = {str(path): len(text_of(path).splitlines()) for path in modules()}
    assert {path: lines for path, lines in long.items() if lines > MODULE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    long = {}
    for path in modules():
        for function in functions(path):
            assert function.end_lineno is not None
            lines = function.end_lineno - function.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                long[f"{path}:{function.lineno} {function.name}"] = lines
    assert long == {}


def test_nothing_is_left_to_do() -> None:
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in modules()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if BANNED_WORDS.search(line)
    ]
    assert found == []


def test_nothing_is_printed() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_pure_modules_import_nothing_impure() -> None:
    found = [
        f"{path} imports {name}"
        for path in modules()
        if is_pure(path)
        for name in imported(path)
        if name.partition(".")[0] in IMPURE_IMPORTS
    ]
    assert found == []


def test_buffers_and_transport_know_neither_the_framework_nor_each_other() -> None:
    found = [
        f"{path} imports {name}"
        for path in modules()
        if path.parts[0] != "remuslike"
        for name in imported(path)
        if name.partition(".")[0] in PACKAGES and name.partition(".")[0] != path.parts[0]
    ]
    assert found == []


def test_the_engine_imports_no_adapter() -> None:
    found = [
        f"{path} imports {name}"
        for path in modules()
        if path.parts[:2] == ("remuslike", "engine")
        for name in imported(path)
        if name.partition(".")[0] in PACKAGES
        and not any(name == allowed or name.startswith(allowed + ".") for allowed in ENGINE_IMPORTS)
    ]
    assert found == []


@pytest.mark.parametrize("package", ["cli/daemons.py", "daemon", "engine", "guest", "witness"])
def test_the_framework_needs_no_demo(package: str) -> None:
    place = Path("remuslike", package)
    inside = [path for path in modules() if path.is_relative_to(place)]
    assert inside, f"{place} has moved: say where this is checked now"
    found = [
        f"{path} imports {name}"
        for path in inside
        for name in names_imported(path)
        if f"{name}.".startswith("remuslike.demo.")
    ]
    assert found == []


def test_the_oracle_of_the_simulation_shares_no_code_with_what_it_judges() -> None:
    """Nor does what it imports of the simulation: DESIGN.md, section 10."""
    judged, pending = [], [Path("tests/sim/oracle.py")]
    seen = set(pending)
    while pending:
        path = pending.pop()
        judged += [
            f"{path} imports {name}" for name in names_imported(path) if name.partition(".")[0] in PACKAGES
        ]
        own = {
            module
            for module in sorted(path.relative_to(ROOT) for path in (ROOT / "tests/sim").glob("*.py"))
            if any(name.split(".")[-1] == module.stem for name in names_imported(path))
        }
        pending += own - seen
        seen |= own
    assert judged == []


def test_what_is_public_has_a_docstring() -> None:
    """Modules, and their classes and functions; methods where the name and the port don't say it all."""
    bare = []
    for path in modules():
        tree = tree_of(path)
        if tree.body and not ast.get_docstring(tree):
            bare.append(str(path))
        bare += [
            f"{path}:{node.lineno} {node.name}"
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert bare == []


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by base name, where a directory is no package."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
