"""The secondary's door: accept a primary, check that it protects the same guest, or refuse it by name."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import trio

from remuslike.config import LinkSettings, split_address
from remuslike.daemon.backup_session import BackupSession
from remuslike.daemon.slot import FAREWELL_LIMIT_S, HEARTBEATS_PER_DETECTION, SessionSlot
from remuslike.engine import events as on
from remuslike.engine.handshake import Hello, Refusal, check_agreement, parse_untrusted
from remuslike.errors import HandshakeError, PeerError
from transport import FrameType, Link, LinkClosed, TransportError, listen

_log = structlog.get_logger(__name__)

# A primary says hello at once; whoever connects and stays silent is none.
_HANDSHAKE_LIMIT_S = 5.0
# Connections that may be at their hello at the same time; one is what there should be.
_STRANGERS_MAX = 8


class Listener:
    """Listens for as long as `run` runs; `slot` holds the session."""

    def __init__(
        self,
        settings: LinkSettings,
        hello: Hello,
        post: Callable[[Any], None],
        make_session: Callable[[Link], BackupSession],
        refusal: Callable[[Hello], Awaitable[str | None]],
    ) -> None:
        """`refusal(hello)`: why that primary is not welcome now, or None."""
        self.slot: SessionSlot[BackupSession] = SessionSlot(post)
        self._settings = settings
        self._hello = hello
        self._make_session = make_session
        self._refusal = refusal
        self._strangers = trio.CapacityLimiter(_STRANGERS_MAX)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept primaries; ListenError if the address can't be listened on."""
        listeners = await listen(*split_address(self._settings.address))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._meet, listeners)
            task_status.started()

    async def _meet(self, stream: trio.SocketStream) -> None:
        heartbeat_ms = self._settings.detect_ms / HEARTBEATS_PER_DETECTION
        link = Link(stream, heartbeat_ms=heartbeat_ms, clock=time.monotonic)
        try:
            async with self._strangers:
                with trio.move_on_after(_HANDSHAKE_LIMIT_S) as limit:
                    theirs = await self._hear_hello(link)
                if limit.cancelled_caught:
                    raise HandshakeError(f"no hello came within {_HANDSHAKE_LIMIT_S:.0f} s")
                check_agreement(self._hello, theirs)
                self._check_place()
                if reason := await self._refusal(theirs):
                    raise HandshakeError(f"{self._hello.name!r} {reason}")
                self._check_place()  # another may have come meanwhile
            await self._serve(link, theirs)
        except LinkClosed:
            _log.info("link.no_hello", advice="whoever connected hung up again; a primary may not be ready")
        except (PeerError, TransportError) as error:
            _log.warning("link.refused", error=str(error))
            await self._refuse(link, str(error))
        finally:
            with trio.move_on_after(FAREWELL_LIMIT_S, shield=True):
                await link.aclose()

    async def _hear_hello(self, link: Link) -> Hello:
        frame = await link.receive()
        if frame.type is not FrameType.HELLO:
            raise HandshakeError(f"the peer began with {frame.type.name}, expected HELLO")
        return parse_untrusted(Hello, frame.payload)

    def _check_place(self) -> None:
        if self.slot.session is not None:
            raise HandshakeError(f"{self._hello.name!r} already has a primary")

    async def _serve(self, link: Link, theirs: Hello) -> None:
        session = self._make_session(link)
        # The place is taken from here on, so that a second primary is refused while the first is welcomed.
        self.slot.session = session
        try:
            ours = self._hello.model_copy(update={"generation": theirs.generation})
            await link.send(FrameType.WELCOME, 0, [ours.encode()])
            _log.info("session.accepted", primary=theirs.name, generation=theirs.generation)
            await self.slot.serve(session, on.PeerReady(time.monotonic(), theirs.generation))
        finally:
            self.slot.session = None

    async def _refuse(self, link: Link, reason: str) -> None:
        try:
            with trio.move_on_after(FAREWELL_LIMIT_S):
                await link.send(FrameType.REFUSE, 0, [Refusal(reason=reason[:4096]).encode()])
        except TransportError as error:
            _log.debug("link.refusal_unsaid", error=str(error))
