"""What a run says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from remuslike.bench.options import RunOptions
from remuslike.bench.plan import Outlook, visits_of
from remuslike.bench.results import Cell, Load, Variant
from remuslike.bench.runview import RunView, described, duration

VARIANT = Variant(guest="q35", workload="redis", parameters={"clients": 1}, mode="epoch", epoch_ms=25)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (1500, "25 min"), (7320, "2 h 02 min")]
)
def test_a_time_is_as_exact_as_it_can_be_known(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ({"error": "died\nlog"}, "failed: died"),
        ({"error": ""}, "failed: for no given reason"),
        ({"load": Load(unit="requests/s", rate=1234.5)}, "1,234 requests/s"),
        ({"load": Load(unit="Gbit/s", rate=0.5, latencies_ms=(1, 2, 9))}, "0.5 Gbit/s, median 2 ms"),
        ({"checkpoints": {"pause_ms": (4.0, 5.0)}}, "1 checkpoints/s, pause 4.50 ms"),
        ({"takeover_ms": {"first_reply": 210.5}, "lost": 0}, "210 ms after the kill, 0 acknowledged writes"),
    ],
)
def test_a_cell_in_a_few_words(cell: dict[str, object], text: str) -> None:
    assert text in described(Cell(variant=VARIANT, round=1, at="t", **{"seconds": 2.0, **cell}))


def test_a_run_says_how_much_is_left() -> None:
    output = io.StringIO()
    options = RunOptions(json_path=Path("r"), selection={"idle": ({},)}, modes=("unprotected",), repeat=3)
    view = RunView(Console(file=output, width=40))
    with view:
        view.begin(visits_of(options), Outlook(5), earlier=2)
        view.cell(Cell(variant=VARIANT, round=1, at="t", load=Load(unit="x/s", rate=2)), remaining_s=300)
        view.interrupted(Path("r"))
    assert output.getvalue().splitlines() == [
        "2 cells were measured before",
        "3 cells with 3 boots, about 57 s",
        "1/3, 5 min left: round 1: redis clients=1, epoch 25 ms: 2 x/s",
        "interrupted; 1 cells more are in r: the same command goes on from there",
    ]
