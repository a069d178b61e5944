"""A run of `bench run` without guests: what is recorded, what goes on, what is left."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from bench_fakes import LINK_MS, FakePlace, FakeWorkload
from rich.console import Console

from remuslike.bench import run as runner
from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError, MeasurementError
from remuslike.bench.options import RunOptions, refuse_others
from remuslike.bench.plan import pending, visits_of
from remuslike.bench.resultfile import ResultFile
from remuslike.bench.results import Cell, Header, Load, decode_untrusted
from remuslike.bench.run import Bench, Cast, header_of
from remuslike.bench.runview import RunView
from remuslike.bench.takeover import Takeover
from remuslike.demo.errors import DaemonError

VARIANTS = ({"n": 1}, {"n": 2}, {"n": 3})


def failing_at(number: int, error: Exception) -> FakeWorkload:
    return FakeWorkload("work", VARIANTS, lambda parameters: error if parameters["n"] == number else None)


async def kill(running: Any, options: RunOptions, seed: int) -> tuple[Load, Takeover]:
    with running.stage.measured():
        await trio.sleep(options.seconds)
    return Load(unit="x/s", rate=seed), Takeover({"decided": 100.0}, lost=seed - 1)


class Run:
    """One invocation, whose cells are in a file."""

    def __init__(self, path: Path, workload: FakeWorkload, place: FakePlace, **options: Any) -> None:
        self.options = RunOptions(
            json_path=path,
            selection={workload.name: workload.variants},
            modes=("unprotected", "epoch"),
            **{"repeat": 1, "seconds": 2, **options},
        )
        self.workload = workload
        self.place = place
        self.output = io.StringIO()
        self.failed = 0
        self.lost = 0

    async def play(self) -> None:
        header = Header(environment={}, options=self.options.recorded())
        with ResultFile(self.options, header) as file:
            view = RunView(Console(file=self.output, width=200))
            cast: Any = Cast(self.place, {self.workload.name: self.workload}, kill)
            bench = Bench(self.options, cast, file, view)
            left = pending(visits_of(self.options), file.found.done())
            try:
                await bench.run(left)
            finally:
                self.failed, self.lost = bench.failed, bench.lost

    @property
    def cells(self) -> tuple[Cell, ...]:
        with self.options.json_path.open(newline="\n") as lines:
            return decode_untrusted(lines, "f").cells


async def test_one_boot_serves_the_variants_of_a_workload(tmp_path: Path, autojump_clock: object) -> None:
    run = Run(tmp_path / "r", FakeWorkload("work", VARIANTS), FakePlace(), repeat=2)
    await run.play()
    assert [str(visit.setting) for visit in run.place.visits] == [
        *("unprotected", "epoch 25 ms"),
        *("epoch 25 ms", "unprotected"),
    ]
    assert [dict(cell.variant.parameters) for cell in run.cells] == [dict(each) for each in VARIANTS * 4]
    assert run.failed == 0


async def test_a_cell_has_all_that_was_seen_in_its_window(tmp_path: Path, autojump_clock: object) -> None:
    run = Run(tmp_path / "r", FakeWorkload("work"), FakePlace())
    await run.play()
    plain, protected = run.cells
    assert plain.checkpoints == {}
    # From the second that the guest settles on, for the two seconds of the load.
    assert protected.checkpoints["epoch"] == (1, 2, 3)
    assert protected.checkpoints["pause_ms"] == (4.0, 4.0, 4.0)
    for cell in run.cells:
        assert cell.load is not None
        assert (cell.load.rate, cell.seconds, cell.error) == (1.0, 2.0, None)
        assert (cell.cores, cell.memory_mib) == ({"qemu": 0.5}, {"qemu": 100.0})
        assert cell.link_ms == LINK_MS


async def test_a_guest_that_fails_takes_one_cell_with_it(tmp_path: Path, autojump_clock: object) -> None:
    run = Run(tmp_path / "r", failing_at(2, MeasurementError("it died")), FakePlace())
    await run.play()
    assert [cell.error for cell in run.cells] == [None, "it died", None] * 2
    assert run.failed == 2
    assert [len(visit.variants) for visit in run.place.visits] == [3, 1, 3, 1], "the rest has other guests"
    assert "it died" in run.output.getvalue()


async def test_a_guest_that_does_not_boot_takes_one_cell_with_it(
    tmp_path: Path, autojump_clock: object
) -> None:
    run = Run(
        tmp_path / "r", FakeWorkload("work", VARIANTS), FakePlace(fail={0: DaemonError("no such bridge")})
    )
    await run.play()
    assert [cell.error for cell in run.cells] == ["no such bridge", *[None] * 5]


async def test_a_cell_in_which_protection_was_lost_has_failed(tmp_path: Path, autojump_clock: object) -> None:
    run = Run(tmp_path / "r", FakeWorkload("work", VARIANTS), FakePlace(parted=frozenset({1})))
    await run.play()
    lost = "protection was lost while it was measured; the daemons' logs say why"
    assert [cell.error for cell in run.cells] == [*[None] * 3, lost, None, None]
    assert [str(visit.setting) for visit in run.place.visits] == ["unprotected", *["epoch 25 ms"] * 2]


async def test_what_failed_is_tried_again_by_the_next_run(tmp_path: Path, autojump_clock: object) -> None:
    await Run(tmp_path / "r", failing_at(2, MeasurementError("it died")), FakePlace()).play()
    again = Run(tmp_path / "r", FakeWorkload("work", VARIANTS), FakePlace())
    await again.play()
    assert [len(visit.variants) for visit in again.place.visits] == [1, 1]
    with again.options.json_path.open() as lines:
        assert len(decode_untrusted(lines, "f").done()) == 6


async def test_a_load_that_never_ends_is_given_up(tmp_path: Path, autojump_clock: object) -> None:
    class Endless(FakeWorkload):
        async def measure(self, *_arguments: object) -> Any:
            await trio.sleep_forever()

    run = Run(tmp_path / "r", Endless("work"), FakePlace())
    await run.play()
    assert [cell.error for cell in run.cells] == ["not done within 302 s"] * 2


async def test_an_interrupted_run_keeps_what_it_has_and_goes_on_from_there(
    tmp_path: Path, autojump_clock: object
) -> None:
    run = Run(tmp_path / "r", FakeWorkload("work", VARIANTS), FakePlace())
    with trio.move_on_after(10 + 1 + 2.6 + 1):  # a boot, its settling, a cell, and a half
        await run.play()
    assert run.place.standing == 0
    assert len(run.cells) == 1
    rest = Run(tmp_path / "r", FakeWorkload("work", VARIANTS), FakePlace())
    await rest.play()
    assert [(cell.variant.setting, dict(cell.variant.parameters)) for cell in rest.cells] == [
        (setting, dict(each)) for setting in ("unprotected", "epoch 25 ms") for each in VARIANTS
    ]


async def test_hosts_are_killed_where_they_are_protected(tmp_path: Path, autojump_clock: object) -> None:
    run = Run(tmp_path / "r", FakeWorkload("work"), FakePlace(), repeat=0, kills=2)
    await run.play()
    assert [(cell.variant.setting, cell.variant.load, cell.round, cell.lost) for cell in run.cells] == [
        ("epoch 25 ms", "takeover", 1, 0),
        ("epoch 25 ms", "takeover", 2, 1),
    ]
    assert run.cells[0].takeover_ms == {"decided": 100.0}
    assert (run.failed, run.lost) == (0, 1)


async def test_a_defect_is_no_cell(tmp_path: Path, autojump_clock: object) -> None:
    run = Run(tmp_path / "r", failing_at(2, ZeroDivisionError()), FakePlace())
    with pytest.raises(ExceptionGroup):
        await run.play()
    assert len(run.cells) == 1


async def test_a_result_file_that_can_not_be_written_ends_the_run(
    tmp_path: Path, autojump_clock: object
) -> None:
    def full(parameters: Any) -> Exception | None:
        """The disk, from the second cell on."""
        if parameters["n"] == 2:
            mine = [each for each in Path("/proc/self/fd").iterdir() if each.exists()]
            (number,) = (int(each.name) for each in mine if each.samefile(tmp_path / "r"))
            other = os.open("/dev/full", os.O_RDWR)
            os.dup2(other, number, inheritable=False)
            os.close(other)
        return None

    run = Run(tmp_path / "r", FakeWorkload("work", VARIANTS, full), FakePlace())
    with pytest.raises(BenchEnvironmentError, match="can't be written: No space left"):
        await run.play()
    assert len(run.cells) == 1
    assert len(run.place.visits) == 1
    assert run.place.standing == 0


def test_the_header_says_what_ran_the_guest_and_which_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "build_image", lambda progress: SimpleNamespace(digest="d1"))
    monkeypatch.setattr(runner, "probe_accelerator", lambda image: "tcg")
    options = RunOptions(json_path=Path("r"), selection={"idle": ({},)})
    cast = runner._cast(options, RunView(Console(file=io.StringIO())))
    header = header_of(options, cast)
    assert (header.environment["accelerator"], header.environment["image"]) == ("tcg", "d1")
    for name in ("accelerator", "image"):
        other = header.model_copy(update={"environment": {**header.environment, name: "another"}})
        with pytest.raises(BenchOptionError, match=f"was begun with {name} = 'another'"):
            refuse_others(other, header, options)
