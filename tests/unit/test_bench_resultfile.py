"""The file of a run that is begun, broken off, and gone on with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError, ResultsError
from remuslike.bench.options import RunOptions
from remuslike.bench.report.summary import Run, Summary
from remuslike.bench.report.tables import warnings
from remuslike.bench.resultfile import ResultFile
from remuslike.bench.results import Cell, Header, Variant, decode_untrusted

VARIANT = Variant(guest="q35", workload="idle", mode="unprotected")
CELLS = [
    Cell(variant=VARIANT, round=1, at="t1"),
    Cell(variant=VARIANT, round=2, at="t2", error="died:\u2028why"),
    Cell(variant=VARIANT, round=2, at="t3"),
]


def options_for(path: Path) -> RunOptions:
    return RunOptions(json_path=path, selection={"idle": ({},)})


def opened(path: Path) -> ResultFile:
    options = options_for(path)
    return ResultFile(options, Header(environment={"cpu": "x"}, options=options.recorded()))


def read(path: Path) -> tuple[Cell, ...]:
    with path.open(newline="\n") as lines:
        return decode_untrusted(lines, "f").cells


def test_cells_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with opened(path) as file:
        assert file.found.cells == ()
        for number, cell in enumerate(CELLS, 1):
            file.add(cell)
            assert read(path) == tuple(CELLS[:number])


def test_it_is_gone_on_with_and_failed_cells_count_as_not_done(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with opened(path) as file:
        file.add(CELLS[0])
        file.add(CELLS[1])
    with opened(path) as file:
        assert file.found.done() == {(VARIANT.key, 1)}
        file.add(CELLS[2])
    assert read(path) == tuple(CELLS)


@pytest.mark.parametrize("missing", [1, 20])
def test_a_line_that_was_cut_short_is_written_over(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "r.jsonl"
    with opened(path) as file:
        file.add(CELLS[0])
        file.add(CELLS[1])
    path.write_bytes(path.read_bytes()[:-missing])
    with opened(path) as file:
        assert file.found.cells == tuple(CELLS[:1])
        file.add(CELLS[2])
    assert read(path) == (CELLS[0], CELLS[2])


def test_two_runs_never_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with opened(path) as file:
        with pytest.raises(BenchOptionError, match="another run is writing to it"):
            opened(path)
        file.add(CELLS[0])
    with opened(path) as file:
        assert len(file.found.cells) == 1


def test_another_runs_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with opened(path) as file:
        file.add(CELLS[0])
    before = path.read_bytes()
    other = replace(options_for(path), seconds=7)
    with pytest.raises(BenchOptionError, match="--seconds"):
        ResultFile(other, Header(environment={"cpu": "x"}, options=other.recorded()))
    with pytest.raises(BenchOptionError, match="was begun with cpu = 'x', this is 'y'"):
        ResultFile(options_for(path), Header(environment={"cpu": "y"}, options=options_for(path).recorded()))
    assert path.read_bytes() == before


def test_what_is_no_result_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(ResultsError, match="is not JSON"):
        opened(path)
    path.write_text("no line's end")
    with pytest.raises(ResultsError, match="no whole line"):
        opened(path)
    assert path.read_text() == "no line's end"


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchEnvironmentError, match="can't be written: Is a directory"):
        opened(tmp_path)


def test_a_full_disk_is_named_once_and_ends_in_no_bare_error(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchEnvironmentError, match="No space left") as caught,
        opened(tmp_path / "r") as file,
    ):
        fill(file)
        file.add(CELLS[0])
    assert file.broken is caught.value


def test_a_disk_that_is_full_at_the_end_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchEnvironmentError, match="No space left"), opened(tmp_path / "r") as file:
        fill(file)
        file._file.write(b"unsaid")


def fill(file: ResultFile) -> None:
    """Its disk: what is written from now on fails."""
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, file._file.fileno(), inheritable=False)
    os.close(full)


def test_what_was_forced_is_in_the_file_and_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "r"
    with opened(path) as file:
        file.add(CELLS[0])
    options = replace(options_for(path), force=True)
    header = Header(environment={"cpu": "y"}, options=options.recorded())
    with ResultFile(options, header) as file:
        file.add(CELLS[2])
    assert [cell.forced for cell in read(path)] == [None, "cpu: 'y', not 'x'"]
    assert path.read_text().count("forced") == 1, "earlier programs read what was not"
    with path.open() as lines:
        summary = Summary([Run("r", decode_untrusted(lines, "r"))])
    assert warnings(summary) == ["r was gone on with by --force, in part with cpu: 'y', not 'x'"]
