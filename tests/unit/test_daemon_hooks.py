"""remuslike.daemon.hooks: a daemon dies at the step that a test names, and at no other."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from remuslike.daemon.hooks import KILL_AT, hook_from_environment
from remuslike.engine.ports import BACKUP_STEPS, PRIMARY_STEPS, SHARED_STEPS
from remuslike.errors import ConfigurationError

_DAEMON = """
import sys
from remuslike.daemon.hooks import hook_from_environment
hook = hook_from_environment()
for epoch in range(1, 5):
    for step in sys.argv[1:]:
        sys.stdout.write(f"{step}@{epoch}\\n")
        sys.stdout.flush()
        hook(step, epoch)
"""


def passed(wish: str, *steps: str) -> tuple[int, list[str]]:
    """The exit status of a process that passes `steps` of four epochs, and how far it came."""
    done = subprocess.run(
        [sys.executable, "-c", _DAEMON, *steps],
        env={KILL_AT: wish},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.split()


def test_without_a_wish_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KILL_AT, raising=False)
    hook = hook_from_environment()
    for step in (*PRIMARY_STEPS, *SHARED_STEPS, *BACKUP_STEPS):
        hook(step, 1)


def test_it_dies_at_the_step_and_cleans_nothing_up() -> None:
    status, steps = passed("send.half@3", "send.begin", "send.half", "send.end")
    assert status == -signal.SIGKILL
    assert steps[-1] == "send.half@3"
    assert len(steps) == 8


def test_a_step_that_the_epoch_did_not_pass_is_taken_in_a_later_one() -> None:
    status, steps = passed("apply.end@0", "apply.begin", "apply.end")
    assert (status, steps) == (-signal.SIGKILL, ["apply.begin@1", "apply.end@1"])


def test_a_step_may_be_meant_for_a_later_time() -> None:
    writes = ("release.write", "release.write", "release.write")
    status, steps = passed("release.write@2#3", "release.begin", *writes)
    assert status == -signal.SIGKILL
    assert steps[-4:] == ["release.begin@2", *("release.write@2" for _ in writes)]


def test_an_epoch_that_passes_it_less_often_is_survived() -> None:
    status, steps = passed("release.write@1#2", "release.write")
    assert status == 0
    assert len(steps) == 4


def test_other_steps_pass() -> None:
    status, steps = passed("apply.end@1", "send.begin")
    assert status == 0
    assert len(steps) == 4


@pytest.mark.parametrize("step", [*PRIMARY_STEPS, *SHARED_STEPS, *BACKUP_STEPS])
def test_every_named_step_can_be_wished(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KILL_AT, f"{step}@1")
    hook_from_environment()


@pytest.mark.parametrize(
    "wish",
    [
        "",
        "release.begin",
        "release.begin@",
        "release.begin@-1",
        "release.begin@1 ",
        "nonsense@1",
        "@1",
        "send.end@1#0",
    ],
)
def test_a_wish_that_names_no_step_is_refused_by_name(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KILL_AT, wish)
    with pytest.raises(ConfigurationError) as caught:
        hook_from_environment()
    assert f"{KILL_AT} = {wish!r}" in str(caught.value)
    assert "release.begin" in str(caught.value)
