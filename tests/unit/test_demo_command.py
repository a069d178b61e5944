"""`remuslike demo`: options, and refusals before anything is started."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_demo_report import SEEN

from remuslike.demo import interruption, runner
from remuslike.demo.command import demo_command
from remuslike.demo.errors import DemoEnvironmentError
from remuslike.demo.options import DEFAULTS, DemoOptions
from remuslike.demo.report import Check, Examination, Observation, conclude


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[DemoOptions]:
    """Runs of the demo, which only note what they were asked for."""
    calls: list[DemoOptions] = []

    def note(options: DemoOptions, console: Console) -> int:
        calls.append(options)
        return 1

    monkeypatch.setattr(runner, "run_demo", note)
    return calls


def test_defaults_are_those_of_the_options(asked: list[DemoOptions]) -> None:
    assert CliRunner().invoke(demo_command, ["--seed", "0"]).exit_code == 1
    assert asked == [DEFAULTS]


def test_a_seed_is_drawn_when_none_is_given(asked: list[DemoOptions]) -> None:
    for _ in range(3):
        CliRunner().invoke(demo_command, [])
    assert len({options.seed for options in asked}) > 1
    asked[0].check()


def test_every_option_arrives(asked: list[DemoOptions]) -> None:
    line = (
        "--epoch-ms 12.5 --duration-s 4 --seed 7 --json out.json --keep --runs 3 --machine microvm --vcpus 2"
    )
    line += (
        " --memory-mib 512 --detect-ms 80 --connections 4 --pipeline 2 --payload-bytes 99 --accelerator tcg"
    )
    CliRunner().invoke(demo_command, line.split())
    (options,) = asked
    assert (options.epoch_ms, options.duration_s, options.seed, options.runs) == (12.5, 4, 7, 3)
    assert (options.machine, options.vcpus, options.memory_mib, options.accelerator) == (
        "microvm",
        2,
        512,
        "tcg",
    )
    assert (options.connections, options.pipeline, options.payload_bytes) == (4, 2, 99)
    assert (options.detect_ms, options.keep, str(options.json_path)) == (80, True, "out.json")


@pytest.mark.parametrize("line", ["--machine pc", "--accelerator xen", "--vcpus x", "--unknown", "extra"])
def test_a_command_line_that_is_none_is_refused(asked: list[DemoOptions], line: str) -> None:
    assert CliRunner().invoke(demo_command, line.split()).exit_code == 2
    assert asked == []


def said_by(options: DemoOptions) -> tuple[int, str]:
    output = io.StringIO()
    return runner.run_demo(options, Console(file=output)), output.getvalue()


def test_a_value_out_of_range_is_one_line() -> None:
    status, said = said_by(replace(DEFAULTS, vcpus=0))
    assert status == runner.STATUS_ERROR
    assert said == "error: --vcpus 0 is out of range; give 1 to 255\n"


def test_without_root_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert said_by(DEFAULTS)[1].startswith("error: the demo makes network namespaces and needs root")


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "debugfs" else f"/usr/bin/{tool}")
    assert "debugfs isn't installed; install it with: apt-get install e2fsprogs" in said_by(DEFAULTS)[1]


def test_an_expected_error_comes_out_of_its_groups_and_a_defect_does_not() -> None:
    error = DemoEnvironmentError("why")
    nested = BaseExceptionGroup("", [ExceptionGroup("", [error])])
    assert interruption.cause(nested) is error
    mixed = BaseExceptionGroup("", [error, ZeroDivisionError()])
    assert interruption.cause(mixed) is mixed


# --- the exit status of a run ---------------------------------------------------------------------


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A host on which a demo could run, without one being run."""
    monkeypatch.setattr(runner, "_check_environment", lambda: None)
    monkeypatch.setattr(runner, "_guest", lambda _options, _view: None)
    return monkeypatch


def concluding(prepared: pytest.MonkeyPatch, *seen: Observation) -> None:
    """Runs that were seen to go like this."""
    results = iter([conclude(each) for each in seen])
    prepared.setattr(runner, "_run_once", lambda *_arguments: next(results))


def test_a_run_that_kept_its_promises_is_status_0(prepared: pytest.MonkeyPatch) -> None:
    concluding(prepared, SEEN)
    assert said_by(DEFAULTS)[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": ("connection reset",)},
        {"read_back_complete": False},
        {"examination": Examination(Check(False, "errors"), Check(True, ""), ())},
    ],
)
def test_a_run_with_a_problem_is_status_1(prepared: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    concluding(prepared, replace(SEEN, **changes))
    status, said = said_by(DEFAULTS)
    assert status == 1
    for problem in conclude(replace(SEEN, **changes)).problems:
        assert problem.split()[0] in said


@pytest.mark.parametrize("broken", range(3))
def test_one_run_with_a_problem_is_enough(prepared: pytest.MonkeyPatch, broken: int) -> None:
    runs = [SEEN] * 3
    runs[broken] = replace(SEEN, read_back_complete=False)
    concluding(prepared, *runs)
    assert said_by(replace(DEFAULTS, runs=3))[0] == 1


def test_a_run_that_could_not_be_played_is_status_2(prepared: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise DemoEnvironmentError("no room")

    prepared.setattr(runner, "_run_once", fail)
    assert said_by(DEFAULTS)[0] == 2


def test_an_interrupted_run_is_128_and_the_signals_number(prepared: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise runner.Interrupted(15)

    prepared.setattr(runner, "_run_once", interrupt)
    assert said_by(DEFAULTS)[0] == 143
