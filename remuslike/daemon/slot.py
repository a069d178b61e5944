"""The place of the one session a daemon has: its tasks, and its end on purpose or by loss."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

import structlog
import trio

from diskbuf.errors import DiskbufError
from remuslike.engine import events as on
from remuslike.engine.effects import EndSession
from remuslike.engine.events import Farewell
from remuslike.engine.handshake import Goodbye
from remuslike.errors import PeerError, first_message
from transport import FrameType, Link, TransportError

_log = structlog.get_logger(__name__)

# A farewell is one small frame; a peer that doesn't take it and hang up within this is gone.
FAREWELL_LIMIT_S = 0.5

# Heartbeats a detection time: four may be lost or late before the fifth is missed.
HEARTBEATS_PER_DETECTION = 5


class Session(Protocol):
    """A session after the handshake; `run` ends with an error when the link does."""

    link: Link

    async def run(self) -> None: ...


_Session = TypeVar("_Session", bound=Session)


class SessionSlot(Generic[_Session]):
    """Holds at most one session, and tells the core through `post` how it ended."""

    def __init__(self, post: Callable[[Any], None]) -> None:
        self.session: _Session | None = None
        self.last_heard = 0.0
        self._post = post
        self._scope: trio.CancelScope | None = None
        self._nursery: trio.Nursery | None = None
        # `_leave` asks the task that says goodbye, which a session has from its start: when `end` is called
        # the session's nursery may just have closed.
        self._leave = trio.Event()
        self._farewell: tuple[Farewell, str] | None = None
        self._parted: trio.Event | None = None

    async def serve(self, session: _Session, ready: on.PeerReady) -> None:
        """Run the session to its end; `ready` is reported once its tasks run.

        Bytes that aren't our protocol, and a peer whose data don't fit, end the session, not the daemon.
        """
        self.session = session
        self._leave, self._farewell = trio.Event(), None
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(session.link.run)
                    self._nursery.start_soon(session.run)
                    self._nursery.start_soon(self._say_goodbye, session.link)
                    self._post(ready)
        except* (TransportError, PeerError, DiskbufError) as group:
            reason = first_message(group)
            if self._parted is None:
                _log.warning("session.ended", reason=reason)
            else:
                _log.info("session.ended", reason="both sides have parted")
            self.last_heard = session.link.last_heard
            self._post(on.LinkLost(time.monotonic(), reason))
        finally:
            self.session = self._scope = self._nursery = None
            if self._parted is not None:
                self._parted.set()

    def start(self, task: Callable[[], Awaitable[Any]]) -> None:
        """Run `task` until the session ends."""
        assert self._nursery is not None, "no session"
        self._nursery.start_soon(task)

    def heard(self) -> float:
        """When the peer, or the last one, was heard last (time.monotonic() seconds)."""
        if self.session is not None:
            self.last_heard = self.session.link.last_heard
        return self.last_heard

    def end(self, effect: EndSession) -> None:
        """Close the session, after a farewell if there is one to say."""
        if self.session is None or self._scope is None:
            return
        _log.info("session.ending", reason=effect.reason)
        self.heard()
        if effect.farewell is None:
            self._scope.cancel()
        else:
            self._parted = trio.Event()
            self._farewell = effect.farewell, effect.reason
            self._leave.set()

    async def _say_goodbye(self, link: Link) -> None:
        """When asked to, say it, and let the peer hang up: if we did with its heartbeats unread, the kernel
        would reset the connection and the farewell could be lost."""
        await self._leave.wait()
        assert self._farewell is not None
        farewell, reason = self._farewell
        goodbye = Goodbye(farewell=farewell.value, reason=reason[:4096])
        with trio.move_on_after(FAREWELL_LIMIT_S):
            await link.send(FrameType.GOODBYE, 0, [goodbye.encode()])
            await trio.sleep_forever()
        if self._scope is not None:
            self._scope.cancel()

    async def wait_parted(self) -> None:
        """Until a goodbye that is being said has been heard, or was given up."""
        if self._parted is not None:
            await self._parted.wait()
