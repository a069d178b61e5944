"""Starts the fake QEMU as a daemon starts the real one, and leaves nothing of it behind."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from fakes import fake_qemu
from remuslike.config import GuestSettings
from remuslike.engine.events import GuestEnd
from remuslike.guest.process import QemuProcess, start_qemu

MEMORY_MIB = 16


@dataclass(slots=True)
class Started:
    """The process, and how it ended so far."""

    process: QemuProcess
    ends: list[tuple[GuestEnd, str]] = field(default_factory=list)


def start_fake_qemu(
    directory: Path, wishes: str = "", *, incoming: socket.socket | None = None, qemu: str = ""
) -> Started:
    """Not yet negotiated with."""
    guest = GuestSettings(
        memory_mib=MEMORY_MIB,
        qemu=qemu or str(Path(fake_qemu.__file__)),
        extra_arguments=["-rtc", "base=utc"],
    )
    ends: list[tuple[GuestEnd, str]] = []
    before = os.environ.get("REMUSLIKE_FAKE_QEMU")
    os.environ["REMUSLIKE_FAKE_QEMU"] = wishes
    try:
        process = start_qemu(
            "node-a",
            guest,
            taps=[],
            disk_sockets=[],
            log_path=directory / "qemu.log",
            incoming=incoming.fileno() if incoming else None,
            on_end=lambda end, detail: ends.append((end, detail)),
        )
    finally:
        if before is None:
            del os.environ["REMUSLIKE_FAKE_QEMU"]
        else:
            os.environ["REMUSLIKE_FAKE_QEMU"] = before
    return Started(process, ends)


@asynccontextmanager
async def running_fake_qemu(
    directory: Path, wishes: str = "", *, incoming: socket.socket | None = None
) -> AsyncIterator[Started]:
    """Negotiated with, and watched."""
    started = start_fake_qemu(directory, wishes, incoming=incoming)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(started.process.run)
            yield started
            await started.process.destroy()
            nursery.cancel_scope.cancel()
    finally:
        await started.process.destroy()
        started.process.close()
