"""The demo's end of the client: its reports and its history, also when they are broken."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from remuslike.demo.errors import LoadError
from remuslike.demo.load import LoadClient, client_program, load_history


class Pipe:
    """One end of a pipe, as Popen has it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor


class ModelProcess:
    """A process whose standard input and output are the test's."""

    def __init__(self) -> None:
        reads, self.output = os.pipe()
        self.input, writes = os.pipe()
        self.descriptors = {reads, self.output, self.input, writes}
        self.popen = type("Popen", (), {"stdout": Pipe(reads), "stdin": Pipe(writes)})()

    def say(self, report: object) -> None:
        os.write(self.output, json.dumps(report).encode() + b"\n")

    def end(self) -> None:
        self.descriptors.discard(self.output)
        os.close(self.output)

    def log_tail(self) -> str:
        return "the client's log"


@pytest.fixture
def process() -> Iterator[ModelProcess]:
    model = ModelProcess()
    yield model
    for descriptor in model.descriptors:
        os.close(descriptor)


async def test_progress_and_events_are_taken_in(process: ModelProcess) -> None:
    client = LoadClient(process)  # type: ignore[arg-type]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            process.say({"event": "progress", "at": 3.5, "sent": 9, "acknowledged": 7, "failed": 0})
            process.say({"event": "connected", "connections": 2})
            await client.wait_for("connected", "connecting", 5)
            await client.wait_for("connected", "connecting", 5)
            assert client.progress.acknowledged == 7
            client.tell("drain")
            assert os.read(process.input, 100) == b"drain\n"
            nursery.cancel_scope.cancel()


async def test_a_report_that_does_not_come(process: ModelProcess) -> None:
    with pytest.raises(LoadError, match=r"connecting: not done within 0\.01 s. the client's log"):
        await LoadClient(process).wait_for("connected", "connecting", 0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"garbage\n", "the client reports b'garbage'"),
        (b"[]\n", "the client reports"),
        (b"{}\n", "the client reports"),
        (b'{"event": "progress", "at": "x"}\n', "the client reports"),
        (b'{"event": "refused", "reason": "no agent"}\n', "the client can't go on: no agent"),
        (b"", "the client ended early. the client's log"),
    ],
)
async def test_other_reports_and_an_early_end_are_named(
    process: ModelProcess, line: bytes, complaint: str
) -> None:
    os.write(process.output, line)
    process.end()
    with pytest.raises(LoadError, match=complaint):
        await LoadClient(process).run()  # type: ignore[arg-type]


def test_a_client_that_is_gone_can_not_be_told(process: ModelProcess) -> None:
    os.close(process.input)
    process.descriptors.discard(process.input)
    with pytest.raises(LoadError, match="the client ended early"):
        LoadClient(process).tell("drain")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, "", "{}", '{"seed": 1, "connections": 5}'])
def test_a_history_that_is_none_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "history.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LoadError, match="the client's history"):
        load_history(path)


def test_the_client_is_a_program_of_this_interpreter(tmp_path: Path) -> None:
    program = client_program("rl-1-c", tmp_path / "log", seed=3, payload_bytes=64)
    assert program.arguments == (
        *(sys.executable, "-m", "remuslike.demo.client"),
        *("--seed", "3", "--payload-bytes", "64"),
    )
    assert program.pipes
