"""The primary's way to its secondary: look for it, ask the core for leave, shake hands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
import trio

from remuslike.config import LinkSettings, split_address
from remuslike.daemon.primary_session import PrimarySession
from remuslike.daemon.slot import FAREWELL_LIMIT_S, HEARTBEATS_PER_DETECTION, SessionSlot
from remuslike.engine import events as on
from remuslike.engine.effects import EndSession
from remuslike.engine.handshake import Hello, Refusal, check_agreement, parse_untrusted
from remuslike.errors import HandshakeError, PeerError
from transport import ConnectError, FrameType, Link, TransportError, connect

_log = structlog.get_logger(__name__)

# How soon after a look in vain a missing secondary is looked for again, for until it is there the guest is
# unprotected; and one that was there. How long each look and the handshake may take.
_LOOK_INTERVAL_S = 0.1
_CONNECT_INTERVAL_S = 0.5
_CONNECT_LIMIT_S = 2.0
_HANDSHAKE_LIMIT_S = 10.0


class Connector:
    """Looks for a secondary for as long as `run` runs; `slot` holds the session."""

    def __init__(
        self,
        settings: LinkSettings,
        hello: Hello,
        post: Callable[[Any], None],
        make_session: Callable[[Link], PrimarySession],
    ) -> None:
        self.slot: SessionSlot[PrimarySession] = SessionSlot(post)
        self.secondary_name: str | None = None
        self._settings = settings
        self._hello = hello
        self._post = post
        self._make_session = make_session
        self._greeting: trio.MemorySendChannel[int | None] | None = None

    async def run(self, address: str) -> None:
        """Look for the secondary there, again and again; complain once about each way it fails."""
        host, port = split_address(address)
        heartbeat_ms = self._settings.detect_ms / HEARTBEATS_PER_DETECTION
        complained = ""
        while True:
            missing = False
            try:
                stream = await connect(host, port, timeout_s=_CONNECT_LIMIT_S)
                await self._meet(Link(stream, heartbeat_ms=heartbeat_ms, clock=time.monotonic))
                complained = ""
            except (PeerError, TransportError) as error:
                if str(error) != complained:
                    _log.warning("link.no_session", error=str(error))
                complained = str(error)
                missing = isinstance(error, ConnectError)
            await trio.sleep(_LOOK_INTERVAL_S if missing else _CONNECT_INTERVAL_S)

    async def _meet(self, link: Link) -> None:
        try:
            generation = await self._ask_leave()
            if generation is None:
                return
            with trio.move_on_after(_HANDSHAKE_LIMIT_S) as limit:
                await self._shake_hands(link, generation)
            if limit.cancelled_caught:
                raise HandshakeError(f"the secondary did not answer within {_HANDSHAKE_LIMIT_S:.0f} s")
            await self.slot.serve(self._make_session(link), on.PeerReady(time.monotonic(), generation))
        finally:
            with trio.move_on_after(FAREWELL_LIMIT_S, shield=True):
                await link.aclose()

    async def _ask_leave(self) -> int | None:
        """The generation to greet under, or None if the core wants no session now."""
        self._greeting, answer = trio.open_memory_channel[int | None](1)
        try:
            self._post(on.PeerConnected(time.monotonic()))
            with trio.move_on_after(_HANDSHAKE_LIMIT_S):
                return await answer.receive()
            return None
        finally:
            self._greeting = None

    def greet(self, generation: int | None) -> None:
        """The core's answer to `PeerConnected`; ignored if nobody waits for it."""
        if self._greeting is not None and not self._greeting.statistics().current_buffer_used:
            self._greeting.send_nowait(generation)

    async def _shake_hands(self, link: Link, generation: int) -> None:
        ours = self._hello.model_copy(update={"generation": generation})
        await link.send(FrameType.HELLO, 0, [ours.encode()])
        answer = await link.receive()
        match answer.type:
            case FrameType.WELCOME:
                theirs = parse_untrusted(Hello, answer.payload)
                check_agreement(ours, theirs)
                self.secondary_name = theirs.name
                _log.info("session.accepted", secondary=theirs.name, generation=generation)
            case FrameType.REFUSE:
                reason = parse_untrusted(Refusal, answer.payload).reason
                raise HandshakeError(f"the secondary refused: {reason}")
            case _:
                raise HandshakeError(f"the secondary answered the hello with {answer.type.name}")

    def start_sync(self) -> None:
        """Begin to synchronise, and to send what epochs come."""
        session = self.slot.session
        assert session is not None
        self.slot.start(session.synchronise)
        self.slot.start(session.send_epochs)

    def end(self, effect: EndSession) -> None:
        """Close the session, or decline the one that is asked for."""
        self.greet(None)
        self.slot.end(effect)
