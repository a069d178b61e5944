"""`remuslike primary`, `remuslike secondary`, `remuslike status`."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import click
import structlog
import trio

from remuslike.cli.logs import configure_logs
from remuslike.config import MODES, Mode, Settings, load_settings
from remuslike.daemon.backup import BackupDaemon
from remuslike.daemon.hooks import hook_from_environment
from remuslike.daemon.primary import PrimaryDaemon
from remuslike.engine.effects import ExitStatus, Finish
from remuslike.errors import ConfigurationError, ControlError, MissingToolError, PrivilegeError

_log = structlog.get_logger(__name__)

# The interpreter hands the GIL over after this long: its default of 5 ms would be a whole pause.
_SWITCH_INTERVAL_S = 0.0005
# Real-time, the lowest of it, as cluster daemons do: a loop that waits for a busy host's scheduler delays
# the guest's resume, and its heartbeats, until the peer takes it for dead.
_REALTIME_PRIORITY = 1
_STATUS_LIMIT_S = 5.0

_CONFIG = click.option(
    "--config",
    "config_path",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The node's TOML file.",
)


_MODE = click.option("--mode", type=click.Choice(MODES), help="In place of the file's epoch.mode.")


@click.command()
@_CONFIG
@_MODE
def primary(config_path: Path, mode: Mode | None) -> None:
    """Run a guest, and protect it with a secondary."""
    _run(_settings(config_path, mode), PrimaryDaemon)


@click.command()
@_CONFIG
@_MODE
def secondary(config_path: Path, mode: Mode | None) -> None:
    """Stand by for a primary, and take its guest over when it dies."""
    _run(_settings(config_path, mode), BackupDaemon)


@click.command()
@_CONFIG
def status(config_path: Path) -> None:
    """Print what the daemon with this configuration file is doing, as JSON."""
    path = load_settings(config_path).control_path
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_STATUS_LIMIT_S)
            client.connect(str(path))
            client.sendall(b'{"command": "statistics"}\n')
            with client.makefile() as lines:
                answer = lines.readline().rstrip()
    except OSError as error:
        message = f"control socket '{path}': nobody answers: {error}; does the daemon run?"
        raise ControlError(message) from error
    if not answer:
        raise ControlError(f"control socket '{path}': hung up without an answer; ask again")
    click.echo(answer)


def _settings(config_path: Path, mode: Mode | None) -> Settings:
    settings = load_settings(config_path)
    if mode is None:
        return settings
    return settings.model_copy(update={"epoch": settings.epoch.model_copy(update={"mode": mode})})


def _run(settings: Settings, daemon_class: type[PrimaryDaemon] | type[BackupDaemon]) -> None:
    configure_logs(settings.log)
    _check_platform()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _prioritise()
    daemon = daemon_class(settings, hook_from_environment())
    final = trio.run(_run_until_signal, daemon)
    _log.info("finished", status=int(final.status), message=final.message)
    sys.exit(int(final.status))


async def _run_until_signal(daemon: PrimaryDaemon | BackupDaemon) -> Finish:
    final = Finish(ExitStatus.CLEAN, "stopped as asked, before it was set up")
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signals, daemon, nursery.cancel_scope)
        final = await daemon.run()
        nursery.cancel_scope.cancel()
    return final


async def _stop_on_signals(
    daemon: PrimaryDaemon | BackupDaemon,
    setting_up: trio.CancelScope,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            _log.info("stop.requested", signal=signal.Signals(number).name)
            if daemon.running:
                daemon.request_stop()
            else:
                setting_up.cancel()


def _prioritise() -> None:
    """Put the event loop's thread before ordinary ones; neither QEMU nor our worker threads inherit it."""
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(_REALTIME_PRIORITY))
    except OSError as error:
        _log.warning("priority.ordinary", error=str(error), advice="a busy host may delay heartbeats")


def _check_platform() -> None:
    if not __debug__:
        raise ConfigurationError("python -O removes the assertions that guard the promises; run without it")
    if os.geteuid() != 0:
        raise PrivilegeError("making taps and tracing QEMU need root: run the daemon as root")
    if os.uname().machine != "x86_64":
        raise MissingToolError(f"machine {os.uname().machine!r}: only x86_64 is supported")
