from __future__ import annotations

import pytest

from remuslike.bench.errors import ResultsError
from remuslike.bench.results import Cell, Header, Load, Variant, decode_untrusted, encode_line

HEADER = Header(environment={"cpu": "x"}, options={"repeat": 2})
VARIANT = Variant(
    guest="q35", workload="redis", parameters={"clients": 16, "fsync": True}, mode="epoch", epoch_ms=25
)
CELL = Cell(
    variant=VARIANT,
    round=1,
    at="2026-11-25T22:00:00+00:00",
    seconds=2.5,
    load=Load(unit="requests/s", rate=1e4, latencies_ms=(1.5, 2.5), series=((0.0, 9e3),)),
    checkpoints={"pause_ms": (4.0, 5.0), "commit_ms": (3.0, None)},
    cores={"qemu": 0.9},
    link_ms=0.04,
    lost=0,
)
FAILED = Cell(variant=VARIANT, round=2, at="2026-11-25T22:00:09+00:00", error="the guest died")
LINES = [encode_line(record) for record in (HEADER, CELL, FAILED)]


def test_what_was_written_is_read() -> None:
    results = decode_untrusted(LINES, "a.jsonl")
    assert results.header == HEADER
    assert results.cells == (CELL, FAILED)
    assert results.done() == {(VARIANT.key, 1)}


def test_a_reader_sees_what_was_measured() -> None:
    assert VARIANT.load == "redis clients=16 fsync=True"
    assert VARIANT.setting == "epoch 25 ms"
    assert Variant(guest="q35", workload="idle", mode="unprotected").setting == "unprotected"


def test_a_last_line_that_was_cut_short_is_left_out() -> None:
    assert decode_untrusted([*LINES[:2], LINES[2][:-20]], "a.jsonl").cells == (CELL,)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "a.jsonl: has no whole line"),
        (["{\n"], "line 1: is not JSON"),
        (['{"format": "other"}\n'], "line 1: format: expected 'remuslike-bench-run'"),
        (['{"format": "remuslike-bench-run", "version": 9}\n'], "version = 9: this program reads version 2"),
        ([LINES[0], "[]\n"], "line 2: the line: "),
        ([LINES[0], LINES[1].replace('"epoch"', '"remus"')], "line 2: variant.mode: "),
        ([LINES[0], LINES[1].replace("[4.0,5.0]", "[4.0]")], r"line 2: checkpoints: columns of \[1, 2\]"),
    ],
)
def test_what_is_no_results_is_refused_by_name(lines: list[str], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        decode_untrusted(lines, "a.jsonl")
