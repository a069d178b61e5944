"""Reading results files, and writing what was made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from remuslike.bench.errors import BenchEnvironmentError, ResultsError
from remuslike.bench.report.summary import Run
from remuslike.bench.results import Results, decode_untrusted


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in `paths`, each with at least one cell. Raises ResultsError."""
    runs: list[Run] = []
    names = {path.name for path in paths}
    for path in paths:
        # The file's own name is enough where it tells them apart.
        name = path.name if len(names) == len(paths) else str(path)
        results = _read(path)
        for other in runs:
            if _same_run(results, other.results):
                raise ResultsError(f"{path}: is the same run as {other.name}: its rounds would count twice")
        runs.append(Run(name, results))
    return runs


def _read(path: Path) -> Results:
    try:
        with path.open(encoding="utf-8") as lines:
            results = decode_untrusted(lines, str(path))
    except OSError as error:
        raise ResultsError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not results.cells:
        raise ResultsError(f"{path}: holds no cells: its run ended before the first; measure again")
    return results


def _same_run(one: Results, other: Results) -> bool:
    """Copies, or one run before and after it went on: a cell says to the moment when it was measured."""
    if one.header == other.header:
        return True
    cells = {(cell.variant.key, cell.round, cell.at) for cell in one.cells}
    return any((cell.variant.key, cell.round, cell.at) in cells for cell in other.cells)


def write_all(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Files by name into `directory`, which is made if need be. Raises BenchEnvironmentError."""
    name = "it"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise BenchEnvironmentError(
            f"--out {directory}: {name} can't be written: {error.strerror}; name another directory"
        ) from error
