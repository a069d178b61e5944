"""`remuslike bench pause`: options, and what its samples come to. Nothing is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from remuslike.bench import pause
from remuslike.bench.errors import BenchOptionError, MeasurementError
from remuslike.bench.figures import conclude
from remuslike.bench.pause import (
    LARGE,
    MICROVM,
    Q35,
    PauseOptions,
    Subject,
    measures,
    parse_subject,
    to_samples,
)
from remuslike.cli.bench import bench
from remuslike.demo.messages import Sample as Checkpoint


def checkpoint(number: int, pause_ms: float = 4.0) -> Checkpoint:
    """The `number`th of a series at 40 a second."""
    return Checkpoint(
        epoch=number,
        at=number * 0.025,
        dirty_pages=500,
        pause_ms=pause_ms,
        stop_ms=0.5,
        seal_ms=0.1,
        scan_ms=0.4,
        copy_ms=0.3,
        devices_ms=2.5,
        resume_ms=0.5,
        gap_ms=0.4,
        raw_bytes=500 * 4096,
        wire_bytes=500 * 41,
        commit_ms=5.0,
    )


def series(pause_ms: float = 4.0) -> list[Checkpoint]:
    return [checkpoint(number, pause_ms) for number in range(41)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PauseOptions]:
    """Runs of the benchmark, which only note what they were asked for."""
    calls: list[PauseOptions] = []
    monkeypatch.setattr(pause, "run_pause_bench", lambda options, console: calls.append(options))
    return calls


def test_defaults_are_those_of_the_options(asked: list[PauseOptions]) -> None:
    assert CliRunner().invoke(bench, ["pause"]).exit_code == 0
    assert asked == [PauseOptions()]


def test_every_option_arrives(asked: list[PauseOptions]) -> None:
    line = "pause --seconds 7 --repeat 2 --pages 9 --epoch-ms 10 --guest microvm:512 --json out.json"
    CliRunner().invoke(bench, line.split())
    assert asked == [PauseOptions(7, 2, 9, 10.0, (Subject("microvm", 512),), Path("out.json"))]


@pytest.mark.parametrize("text", ["", "q35", "q35:", "pc:256", "q35:64", "q35:1G", "q35:-256"])
def test_a_guest_that_there_is_none_of_is_refused(text: str) -> None:
    with pytest.raises(BenchOptionError, match=r"--guest .*MACHINE:MIB"):
        parse_subject(text)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchOptionError, match=r"--pages 20000 .* q35, 256 MiB"):
        PauseOptions(pages=20_000).check()
    with pytest.raises(BenchOptionError, match="its directory doesn't exist"):
        PauseOptions(json_path=tmp_path / "missing" / "out.json").check()


def test_a_round_becomes_figures_with_their_limits() -> None:
    samples = [
        *to_samples(Q35, 1, series(4.0), [3.0, 3.2, 3.1]),
        *to_samples(MICROVM, 1, series(4.0), [2.0]),
        *to_samples(LARGE, 1, series(6.0), [3.0]),
    ]
    found = conclude(measures(PauseOptions()), samples, timely=True)
    figures = {(figure.measure, figure.setting): figure for figure in found}
    assert figures["pause", Q35.name].met is True
    assert figures["pause", MICROVM.name].met is False
    assert figures["memory", LARGE.name].ratio == 1.5
    assert figures["memory", LARGE.name].met is False
    assert figures[f"over_own {Q35.name}", "protected"].ratio == pytest.approx(4 / 3.1, rel=1e-3)
    assert figures["rate", Q35.name].median == pytest.approx(40)
    assert figures["wire", Q35.name].median == pytest.approx(41 / 4096, rel=1e-3)
    assert figures["devices", Q35.name].median == 2.5


def test_limits_are_for_what_they_were_set_for() -> None:
    assert not any(measure.wanted for measure in measures(PauseOptions(pages=1000)))


def test_too_few_checkpoints_are_no_figure() -> None:
    with pytest.raises(MeasurementError, match="3 checkpoints are too few"):
        to_samples(Q35, 1, series()[:3], [3.0])
