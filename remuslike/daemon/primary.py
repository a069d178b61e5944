"""The primary daemon: starts a guest, and protects it."""

from __future__ import annotations

import time

import structlog
import trio

from remuslike.config import Settings
from remuslike.daemon.control import serve_control
from remuslike.daemon.host import Host, introduce, make_witness, open_host
from remuslike.daemon.protector import Protector
from remuslike.engine import events as on
from remuslike.engine.effects import Finish
from remuslike.engine.events import GuestEnd
from remuslike.engine.ports import StepHook
from remuslike.errors import GuestError
from remuslike.guest.process import QemuProcess, start_qemu
from remuslike.guest.running import QemuGuest

_log = structlog.get_logger(__name__)


class PrimaryDaemon:
    """One primary, from its configuration to the reason it ended."""

    def __init__(self, settings: Settings, hook: StepHook) -> None:
        self._settings = settings
        self._hook = hook
        self._witness = make_witness(settings)
        self._protector: Protector | None = None

    @property
    def running(self) -> bool:
        """Whether it is set up, so that `request_stop` can be followed."""
        return self._protector is not None

    def request_stop(self) -> None:
        """As the operator asks (SIGTERM)."""
        assert self._protector is not None
        self._protector.post(on.StopRequested(time.monotonic()))

    async def run(self) -> Finish:
        """Set up, protect, and clean up; expected errors of set-up propagate."""
        async with (
            open_host(self._settings, self._hook, owns_shared=True) as host,
            trio.open_nursery() as nursery,
        ):
            process = await self._start_guest(host, nursery)
            guest = QemuGuest(process, captures_in_use=self._settings.epoch.window)
            try:
                await guest.attach()
                return await self._protect(host, process, guest, nursery)
            finally:
                host.outputs.discard()
                await guest.destroy()
                guest.close()
                process.close()
                nursery.cancel_scope.cancel()

    async def _start_guest(self, host: Host, nursery: trio.Nursery) -> QemuProcess:
        process = start_qemu(
            self._settings.name,
            self._settings.guest,
            taps=host.tap_descriptors,
            disk_sockets=host.disk_sockets,
            log_path=host.qemu_log,
            incoming=None,
            on_end=self._guest_ended,
        )
        await nursery.start(process.run)
        _log.info("guest.started", pid=process.pid, qemu=process.version)
        return process

    async def _protect(
        self, host: Host, process: QemuProcess, guest: QemuGuest, nursery: trio.Nursery
    ) -> Finish:
        hello = await introduce(self._settings, host, process.version)
        token = await self._witness.read()
        address = self._settings.link.address
        protector = Protector(self._settings, guest, host.outputs, hello, self._witness, self._hook, address)
        await nursery.start(serve_control, self._settings.control_path, protector.answer)
        self._protector = protector
        return await protector.run(on.Started(time.monotonic(), token.generation, token.holder))

    def _guest_ended(self, end: GuestEnd, detail: str) -> None:
        if self._protector is None:
            raise GuestError(f"the guest ended before it was protected: {detail}")
        self._protector.guest_ended(end, detail)
