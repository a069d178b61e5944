"""The judge: sees only what can be seen from outside, and knows P1 to P7.

It shares no code with the engine and imports none of it. What it is told are facts of the model
world: outputs that left a host, what lies on a disk, which acknowledgement was sent, what the
witness recorded, which guest runs. Each check names the promise of DESIGN.md, section 1, it is for.

The idea behind P1: a *copy* is what a secondary has acknowledged. It counts while it could still be
activated, that is while the witness's generation is the one of its session, or its host holds the
token. As long as a copy counts, nothing newer than it may have left its primary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from .faults import ViolationError

OVERSHOOT_ITEMS = 24  # what a guest can emit between `prepare` and the end of its pause


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The true state of a guest that stands still. `frames`, `writes`: how many it has emitted."""

    incarnation: int
    frames: int
    writes: int
    answered: frozenset[int]
    pages: tuple[int, ...]
    blocks: tuple[int, ...]
    devices: object


@dataclass(frozen=True, slots=True)
class Copy:
    """What a secondary has acknowledged last."""

    host: str
    session: int
    generation: int
    epoch: int
    snapshot: Snapshot
    number: int  # how many acknowledgements there had been in this run, this one included


class Oracle:
    """One per run. Raises `ViolationError` at the first promise broken.

    `synchronous`: no guest runs between a checkpoint and its acknowledgement. `replays`: no frame of an
    acknowledged epoch is lost by a takeover. Both are what event-tap promises beyond P1 to P7.
    """

    def __init__(self, *, synchronous: bool = False, replays: bool = False) -> None:
        self._synchronous = synchronous
        self._replays = replays
        self._owed: dict[str, tuple[int, int]] = {}  # host -> the session and epoch its guest must wait for
        self._replayed: dict[str, tuple[int, int]] = {}  # host -> the first and last frame it sent again
        self._tokens = itertools.count(1)
        self.generation = 0
        self.holder = ""
        self.copies: dict[str, Copy] = {}
        self.acknowledgements = 0
        self.gone: set[str] = set()  # dead, finished or discarded: nothing may leave
        self.outlets: dict[str, set[str]] = {}  # host -> its buffers that are open
        self.running: set[str] = set()
        self.client_got: set[int] = set()
        self.progress: dict[str, int] = {}  # host -> frames that left it
        self._left: dict[tuple[str, str], tuple[int, int]] = {}  # (host, sort) -> incarnation, number
        self._captured: dict[tuple[int, int], Snapshot] = {}
        self._sent: dict[tuple[int, int], int] = {}
        self._durable: dict[int, list[int]] = {}  # session -> the disk that its journal leads to
        self._arrived: dict[tuple[int, int], set[int]] = {}
        self._session: dict[int, tuple[str, str, int]] = {}  # primary, secondary, generation
        self._last: dict[tuple[str, object], int] = {}
        self._unacknowledged: dict[int, set[int]] = {}
        self._incarnations: dict[int, tuple[int, Snapshot]] = {}

    def new_token(self) -> int:
        """A value that nobody has written before."""
        return next(self._tokens)

    # --- facts about the witness and the sessions -------------------------------------------------

    def token_moved(self, generation: int, holder: str) -> None:
        self.generation, self.holder = generation, holder

    def session_began(self, session: int, primary: str, secondary: str, generation: int) -> None:
        """The secondary will overwrite what it had: an older copy on it counts no more."""
        self.copies.pop(secondary, None)
        self._session[session] = (primary, secondary, generation)

    def counts(self, copy: Copy) -> bool:
        return copy.generation == self.generation or copy.host == self.holder

    # --- facts about epochs -----------------------------------------------------------------------

    def captured(
        self, host: str, session: int, epoch: int, snapshot: Snapshot, window: int, *, base: bool
    ) -> None:
        self._captured[session, epoch] = snapshot
        self._owed.pop(host, None)
        if not base:
            self._owed[host] = session, epoch
        self._in_order("captured", session, epoch)
        waiting = self._unacknowledged.setdefault(session, set())
        waiting.add(epoch)
        if len(waiting) > window:
            raise ViolationError("P6", f"{len(waiting)} epochs are unacknowledged, the window is {window}")

    def acknowledgement_received(self, session: int, epoch: int) -> None:
        self._unacknowledged.get(session, set()).discard(epoch)
        for host in [host for host, owed in self._owed.items() if owed == (session, epoch)]:
            del self._owed[host]

    def epoch_sent(self, session: int, epoch: int, parts: int) -> None:
        self._in_order("sent", session, epoch)
        self._sent[session, epoch] = parts

    def part_arrived(self, session: int, epoch: int, part: int) -> None:
        self._arrived.setdefault((session, epoch), set()).add(part)

    def staged(self, host: str, epochs: int, limit: int) -> None:
        if epochs > limit:
            raise ViolationError("P6", f"{host} stages {epochs} epochs, the limit is {limit}")

    def taken(self, session: int, epoch: int) -> None:
        """From now on the secondary may be activated with `epoch`: it acknowledges it, at once or soon."""
        primary, secondary, generation = self._session[session]
        self._in_order("acknowledged", session, epoch)
        parts = self._sent.get((session, epoch), 0)
        arrived = self._arrived.get((session, epoch), set())
        if not parts or len(arrived) != parts:
            raise ViolationError(
                "P2", f"{secondary} acknowledged epoch {epoch} with {len(arrived)} of {parts} parts"
            )
        self.acknowledgements += 1
        snapshot = self._captured[session, epoch]
        copy = Copy(secondary, session, generation, epoch, snapshot, self.acknowledgements)
        self.copies[secondary] = copy
        if not self.counts(copy):
            return  # it comes too late: the primary already goes on under a new generation
        for sort in ("frame", "write"):
            incarnation, number = self._left.get((primary, sort), (0, 0))
            self._may_have_left(copy, primary, sort, incarnation, number)

    def logged(self, session: int, epoch: int, blocks: dict[int, int]) -> None:
        """The secondary's journal holds `epoch`, whose disk is therefore safe from the end of both hosts."""
        self._in_order("logged", session, epoch)
        disk = self._durable.get(session)
        snapshot = self._captured[session, epoch]
        if disk is None:  # the base: what was synchronised before it is made durable with it
            disk = list(snapshot.blocks)
        for block, token in blocks.items():
            disk[block] = token
        self._durable[session] = disk
        if tuple(disk) != snapshot.blocks:
            raise ViolationError("P7", f"the journal of epoch {epoch} does not make that epoch's disk")

    def acknowledged_durably(self, session: int, epoch: int) -> None:
        if self._last.get(("logged", session), 0) < epoch:
            raise ViolationError("P7", f"epoch {epoch} was acknowledged before it was durable")

    def applied(self, session: int, epoch: int, pages: list[int], blocks: list[int] | None) -> None:
        """A standby has finished applying `epoch`: its memory and its disk, if it has one of its own, must be
        that epoch, exactly."""
        self._in_order("applied", session, epoch)
        secondary = self._session[session][1]
        copy = self.copies.get(secondary)
        if copy is None or copy.session != session or epoch > copy.epoch:
            raise ViolationError("P2", f"{secondary} applied epoch {epoch} without having acknowledged it")
        snapshot = self._captured[session, epoch]
        seen = snapshot.blocks if blocks is None else blocks
        self._same(secondary, f"epoch {epoch} as applied", snapshot, pages, seen)

    def activated(
        self, host: str, incarnation: int, pages: list[int], devices: object, blocks: list[int]
    ) -> None:
        """The standby's guest is about to run as `incarnation`: it must be the last acknowledged epoch."""
        copy = self.copies.get(host)
        if copy is None:
            raise ViolationError("P2", f"{host} was activated without having acknowledged any epoch")
        what = f"the state activated for epoch {copy.epoch}"
        self._same(host, what, copy.snapshot, pages, blocks)
        if devices != copy.snapshot.devices:
            raise ViolationError("P2", f"{what} on {host} has the device state of another epoch")
        lost = self.client_got - copy.snapshot.answered
        if lost:
            raise ViolationError("P7", f"{what} on {host} has forgotten the answered requests {sorted(lost)}")
        if self._replays:
            self._none_lost(host, copy)
        self._incarnations[incarnation] = (copy.snapshot.frames, copy.snapshot)
        self._left[host, "frame"] = (incarnation, copy.snapshot.frames)
        self._left[host, "write"] = (incarnation, copy.snapshot.writes)

    # --- facts about outputs ----------------------------------------------------------------------

    def left(self, host: str, sort: str, incarnation: int, number: int, reply_to: int) -> None:
        """A frame left `host`, or a write of its guest reached its disk."""
        if host in self.gone:
            raise ViolationError("P4", f"{sort} {number} left {host} after its end")
        before, last = self._left.get((host, sort), (incarnation, 0))
        if incarnation != before or number != last + 1:
            raise ViolationError("P5", f"{sort} {number} left {host} after {sort} {last}")
        self._left[host, sort] = (incarnation, number)
        for copy in self.copies.values():
            if copy.host != host and self.counts(copy):
                self._may_have_left(copy, host, sort, incarnation, number)
        if sort == "frame":
            self.progress[host] = self.progress.get(host, 0) + 1
            if reply_to:
                self.client_got.add(reply_to)

    def replayed(self, host: str, incarnation: int, number: int, reply_to: int) -> None:
        """A survivor sent a frame that its dead primary had held, before its own guest runs."""
        copy = self.copies.get(host)
        if self.holder != host or copy is None:
            raise ViolationError("P3", f"{host} sends frame {number} again, the witness names {self.holder}")
        if incarnation != copy.snapshot.incarnation or number > copy.snapshot.frames:
            raise ViolationError("P1", f"{host} sends frame {number} of an epoch that nobody acknowledged")
        first, last = self._replayed.get(host, (number, number - 1))
        if number != last + 1:
            raise ViolationError("P5", f"{host} sends frame {number} again after {last}")
        self._replayed[host] = first, number
        if reply_to:
            self.client_got.add(reply_to)

    def _none_lost(self, host: str, copy: Copy) -> None:
        """Each frame of what was acknowledged has left, or was sent again: a base's, too."""
        incarnation, left = self._left.get((self._session[copy.session][0], "frame"), (0, 0))
        assert incarnation == copy.snapshot.incarnation, "a primary's frames are its guest's"
        first, last = self._replayed.get(host, (left + 1, left))
        if first > left + 1 or max(last, left) != copy.snapshot.frames:
            raise ViolationError(
                "tap",
                f"frames up to {left} left, {host} sent {first} to {last} again, epoch {copy.epoch} has"
                f" {copy.snapshot.frames}",
            )

    def opened(self, host: str, buffer: str) -> None:
        self._owed.pop(host, None)
        if self.holder != host:
            raise ViolationError(
                "P3", f"{host} opens {buffer} although the witness names {self.holder or 'nobody'}"
            )
        for copy in self.copies.values():
            if copy.host != host and self.counts(copy):
                raise ViolationError("P3", f"{host} opens {buffer} although {copy.host} could be activated")
        self.outlets.setdefault(host, set()).add(buffer)
        self._one_active_side()

    def closed(self, host: str, buffer: str) -> None:
        self.outlets.setdefault(host, set()).discard(buffer)

    def discarded(self, host: str, buffer: str) -> None:
        self.closed(host, buffer)
        self.gone.add(host)

    def released(self, host: str, buffer: str, epoch: int) -> None:
        self._in_order("released", (host, buffer), epoch, gaps=True)

    def held(self, buffer: str, items: int, limit_items: int) -> None:
        if items > limit_items + OVERSHOOT_ITEMS:
            raise ViolationError("P6", f"{buffer} holds {items} outputs, its limit is {limit_items}")

    # --- facts about hosts ------------------------------------------------------------------------

    def guest_runs(self, host: str, runs: bool) -> None:
        if runs:
            if self._synchronous and host in self._owed:
                raise ViolationError("tap", f"the guest on {host} runs before {self._owed[host]} is safe")
            self.running.add(host)
            self._one_active_side()
        else:
            self.running.discard(host)

    def ended(self, host: str) -> None:
        """The host died or its daemon finished: its guest and its buffers are no more."""
        self.gone.add(host)
        self.running.discard(host)
        self.outlets.pop(host, None)

    def finished_in_order(self, host: str, last: Snapshot | None, blocks: list[int]) -> None:
        """A side that ran the guest says that it ended it cleanly: nothing it emitted may be missing."""
        if last is None:
            return
        for sort, emitted in (("frame", last.frames), ("write", last.writes)):
            number = self._left.get((host, sort), (0, 0))[1]
            if number != emitted:
                raise ViolationError(
                    "P6", f"{host} ended in order, but only {number} of {emitted} {sort}s left it"
                )
        if tuple(blocks) != last.blocks:
            raise ViolationError("P7", f"{host} ended in order with a disk that is not its guest's")

    def survivor(self, host: str, last: Snapshot, seen: list[int]) -> None:
        """The side that runs when all is over, its disk as its guest sees it."""
        if tuple(seen) != last.blocks:
            raise ViolationError("P7", f"the disk of {host} is not what its guest wrote")
        lost = self.client_got - last.answered
        if lost:
            raise ViolationError(
                "P7", f"the guest on {host} has forgotten the answered requests {sorted(lost)}"
            )

    # --- checks -----------------------------------------------------------------------------------

    def _may_have_left(self, copy: Copy, host: str, sort: str, incarnation: int, number: int) -> None:
        safe = copy.snapshot.frames if sort == "frame" else copy.snapshot.writes
        if incarnation == copy.snapshot.incarnation and number > safe:
            raise ViolationError(
                "P1",
                f"{sort} {number} left {host}, but {copy.host} could go on from epoch {copy.epoch}, "
                f"which ends with {sort} {safe}",
            )

    def _one_active_side(self) -> None:
        active = sorted(host for host in self.running if self.outlets.get(host))
        if len(active) > 1:
            raise ViolationError("P3", f"{' and '.join(active)} both run with open output")

    def _same(self, host: str, what: str, truth: Snapshot, pages: list[int], blocks: Sequence[int]) -> None:
        if tuple(pages) != truth.pages:
            wrong = [n for n, (seen, true) in enumerate(zip(pages, truth.pages, strict=True)) if seen != true]
            raise ViolationError("P2", f"{what} on {host} has the wrong memory in pages {wrong}")
        if tuple(blocks) != truth.blocks:
            wrong = [
                n for n, (seen, true) in enumerate(zip(blocks, truth.blocks, strict=True)) if seen != true
            ]
            raise ViolationError("P7", f"{what} on {host} has the wrong disk in blocks {wrong}")

    def _in_order(self, what: str, where: object, epoch: int, *, gaps: bool = False) -> None:
        last = self._last.get((what, where))
        if last is not None and (epoch <= last if gaps else epoch != last + 1):
            raise ViolationError("P5", f"epoch {epoch} was {what} after epoch {last}")
        self._last[what, where] = epoch
