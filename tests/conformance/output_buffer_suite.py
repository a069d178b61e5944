"""What every OutputBuffer must do: DESIGN.md, section 4, a property for each of its sentences.

A property knows a buffer only through a `Subject`: the guest in front of it, which emits numbers, and the
outside behind it, which shows what has left. It opens the subjects that it needs, and fails by an
assertion.

Outputs of a guest with several devices keep their order on each device only. So a subject has `lanes`, and
number n travels on lane n % lanes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, Protocol

import pytest
import trio

from remuslike.engine.ports import OutputBuffer


class Buffer(OutputBuffer, Protocol):
    """The contract in full: the engine's port, and what only the drivers ask.

    Statistics have `state`, `open_epoch` and `sealed_epochs` as well; states and levels are named by strings.
    """

    @property
    def pressure(self) -> Any: ...
    def on_pressure(self, callback: Callable[[Any], None]) -> None: ...
    def on_output(self, callback: Callable[[int], None]) -> None: ...
    def open_items(self) -> int: ...
    def statistics(self) -> Any: ...


Kinds = tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True)
class Errors:
    """The subject's own errors for a refused call; `outside` is what a release meets when the outside
    doesn't take its outputs, empty if the test can't bring that about."""

    hold: Kinds
    seal: Kinds
    release: Kinds
    open: Kinds
    outside: Kinds = ()


class Subject(Protocol):
    """One buffer between a guest and the outside."""

    @property
    def buffer(self) -> Buffer: ...
    @property
    def errors(self) -> Errors: ...
    @property
    def lanes(self) -> int: ...
    @property
    def item_bytes(self) -> int:
        """What one number counts for against the limit."""
        ...

    @property
    def lane_limit_bytes(self) -> int:
        """At which a lane is full."""
        ...

    @property
    def waits_at_limit(self) -> bool:
        """Whether what comes at the limit is not held until a seal or `prepare` admits it."""
        ...

    async def emit(self, numbers: Iterable[int]) -> None:
        """The guest emits them. Returns when the buffer has dealt with all that it deals with for now."""

    async def settle(self) -> None:
        """Returns when the buffer does nothing by itself any more."""

    def outside(self) -> list[list[int]]:
        """What has left so far, in order, for each lane."""

    def leave_room(self, count: int | None) -> None:
        """Make the outside take `count` more and then fail; None: any number."""


class OpenSubject(Protocol):
    """Makes a closed buffer. `limit_items`: how many make a lane full. `depth`: what the property would like;
    what it gets is what the buffer states, 1 at least."""

    def __call__(
        self, *, depth: int = 2, limit_items: int = 1 << 14
    ) -> AbstractAsyncContextManager[Subject]: ...


Property = Callable[[OpenSubject], Awaitable[None]]
PROPERTIES: list[Property] = []
FAILURE_PROPERTIES: list[Property] = []


def conformant(check: Property) -> Property:
    """Make `check` a part of the suite."""
    PROPERTIES.append(check)
    return check


def conformant_in_failure(check: Property) -> Property:
    """Make `check` a part of the suite for subjects whose outside can be made to fail and to recover."""
    FAILURE_PROPERTIES.append(check)
    return check


# --- what properties are made of ------------------------------------------------------------------


def by_lane(numbers: Iterable[int], lanes: int) -> list[list[int]]:
    chosen = list(numbers)
    return [[number for number in chosen if number % lanes == lane] for lane in range(lanes)]


def assert_left(subject: Subject, numbers: Iterable[int]) -> None:
    """These and no others have left, in this order."""
    assert subject.outside() == by_lane(numbers, subject.lanes)


def assert_left_so_far(subject: Subject, numbers: Iterable[int]) -> int:
    """These have left up to some number, in order, and nothing else; how many have."""
    for found, whole in zip(subject.outside(), by_lane(numbers, subject.lanes), strict=True):
        assert found == whole[: len(found)]
    return sum(map(len, subject.outside()))


@contextmanager
def refused(subject: Subject, kinds: Kinds) -> Iterator[None]:
    """The call raises one of `kinds`, alone or in a group, and has changed nothing."""
    before, left = subject.buffer.statistics(), subject.outside()
    raised = False
    try:
        yield
    except* kinds:
        raised = True
    assert raised, f"the call was not refused with {[kind.__name__ for kind in kinds]}"
    assert subject.buffer.statistics() == before
    assert subject.outside() == left


async def sealed_epochs(subject: Subject, sizes: Sequence[int], first: int = 1) -> list[list[int]]:
    """Hold, and seal an epoch of each size, from epoch `first` on, as many as the buffer is deep; the numbers
    of each."""
    subject.buffer.hold(first)
    chosen = sizes[: subject.buffer.depth]
    return [await sealed_epoch(subject, first + place, size) for place, size in enumerate(chosen)]


async def sealed_epoch(subject: Subject, epoch: int, size: int) -> list[int]:
    """Seal an epoch with `size` numbers of its own; the numbers."""
    numbers = [epoch * 1000 + place for place in range(size)]
    await subject.emit(numbers)
    subject.buffer.prepare()
    subject.buffer.seal(epoch)
    return numbers


def joined(epochs: Iterable[Iterable[int]]) -> list[int]:
    return [number for epoch in epochs for number in epoch]


# --- states ---------------------------------------------------------------------------------------


@conformant
async def closed_lets_nothing_out(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        buffer = subject.buffer
        await subject.emit(range(5))
        buffer.prepare()
        await subject.settle()
        assert_left(subject, [])
        figures = buffer.statistics()
        assert (figures.state, figures.open_epoch, figures.sealed_epochs) == ("closed", None, ())
        assert figures.held_items == figures.released_items == 0
        with refused(subject, subject.errors.seal):
            buffer.seal(1)
        with refused(subject, subject.errors.release):
            await buffer.release(1)


@conformant
async def open_passes_outputs_at_once(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        await subject.buffer.open()
        for count in range(1, 4):
            await subject.emit(range(count * 100, count * 100 + count))
            expected = [n * 100 + k for n in range(1, count + 1) for k in range(n)]
            assert_left(subject, expected)
        figures = subject.buffer.statistics()
        assert (figures.state, figures.held_items, figures.released_items) == ("open", 0, 6)
        assert figures.released_bytes == 6 * subject.item_bytes


@conformant
async def open_again_changes_nothing(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        await subject.buffer.open()
        await subject.emit(range(3))
        before = subject.buffer.statistics()
        await subject.buffer.open()
        assert subject.buffer.statistics() == before
        await subject.emit(range(3, 6))
        assert_left(subject, range(6))


@conformant
async def open_refuses_seal_and_release(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        await subject.buffer.open()
        with refused(subject, subject.errors.seal):
            subject.buffer.seal(1)
        with refused(subject, subject.errors.release):
            await subject.buffer.release(1)
        await subject.emit(range(2))
        assert_left(subject, range(2))


@conformant
async def holding_refuses_to_hold_again(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        subject.buffer.hold(1)
        await subject.emit(range(2))
        for epoch in (1, 2):
            with refused(subject, subject.errors.hold):
                subject.buffer.hold(epoch)


@conformant
async def the_first_epoch_has_any_number(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        numbers = await sealed_epochs(subject, [3], first=41)
        assert subject.buffer.statistics().open_epoch == 42
        assert subject.buffer.statistics().sealed_epochs == (41,)
        await subject.buffer.release(41)
        assert_left(subject, joined(numbers))


# --- nothing early (P1) ---------------------------------------------------------------------------


@conformant
async def nothing_leaves_before_its_release(open_subject: OpenSubject) -> None:
    async with open_subject(depth=3) as subject:
        buffer = subject.buffer
        buffer.hold(1)
        emitted = 0
        for epoch in range(1, buffer.depth + 1):
            await subject.emit(range(emitted, emitted + 10))
            emitted += 10
            assert_left(subject, [])
            buffer.prepare()
            await subject.settle()
            assert_left(subject, [])
            buffer.seal(epoch)
            await subject.settle()
            assert_left(subject, [])
        await subject.emit(range(emitted, emitted + 10))
        assert_left(subject, [])
        assert buffer.statistics().held_items == emitted + 10


@conformant
async def release_lets_out_its_epoch_and_no_more(open_subject: OpenSubject) -> None:
    async with open_subject(depth=3) as subject:
        epochs = await sealed_epochs(subject, [7, 0, 5])
        await subject.emit(range(9000, 9004))
        for released in range(1, len(epochs) + 1):
            await subject.buffer.release(released)
            await subject.settle()
            assert_left(subject, joined(epochs[:released]))
            left = tuple(range(released + 1, len(epochs) + 1))
            assert subject.buffer.statistics().sealed_epochs == left
        assert subject.buffer.statistics().held_items == 4


@conformant
async def epochs_are_sealed_while_others_leave(open_subject: OpenSubject) -> None:
    async with open_subject(depth=3) as subject:
        first = (await sealed_epochs(subject, [200]))[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subject.buffer.release, 1)
            await trio.lowlevel.checkpoint()
            second = list(range(2000, 2020))
            await subject.emit(second)
            if subject.buffer.depth > 1:
                subject.buffer.seal(2)
                await subject.emit(range(9000, 9003))
        assert_left(subject, first)
        if subject.buffer.depth == 1:
            subject.buffer.seal(2)
        await subject.buffer.release(2)
        assert_left(subject, first + second)


# --- seal (P5, P6) --------------------------------------------------------------------------------


@conformant
async def only_the_open_epoch_is_sealed(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        subject.buffer.hold(5)
        await subject.emit(range(3))
        for epoch in (4, 6, 0, -5):
            with refused(subject, subject.errors.seal):
                subject.buffer.seal(epoch)
        subject.buffer.seal(5)
        with refused(subject, subject.errors.seal):
            subject.buffer.seal(5)
        await subject.buffer.release(5)
        assert_left(subject, range(3))


@conformant
async def no_more_than_depth_epochs_are_sealed(open_subject: OpenSubject) -> None:
    for wanted in (1, 2, 4):
        async with open_subject(depth=wanted) as subject:
            depth = subject.buffer.depth
            assert 1 <= depth <= wanted
            epochs = await sealed_epochs(subject, [3] * depth)
            await subject.emit(range(9000, 9003))
            with refused(subject, subject.errors.seal):
                subject.buffer.seal(depth + 1)
            await subject.buffer.release(1)
            assert_left(subject, epochs[0])
            subject.buffer.seal(depth + 1)
            for epoch in range(2, depth + 2):
                await subject.buffer.release(epoch)
            assert_left(subject, [*joined(epochs), *range(9000, 9003)])


@conformant
async def an_epoch_may_be_empty(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        count = len(await sealed_epochs(subject, [0, 0]))
        for epoch in range(1, count + 1):
            await subject.buffer.release(epoch)
        assert_left(subject, [])
        assert subject.buffer.statistics().open_epoch == count + 1


# --- release (P1, P5) -----------------------------------------------------------------------------


@conformant
async def only_the_oldest_sealed_epoch_is_released(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        epochs = await sealed_epochs(subject, [4, 4])
        await subject.emit(range(9000, 9002))
        for epoch in (0, 2, 3, 4):
            with refused(subject, subject.errors.release):
                await subject.buffer.release(epoch)
        for epoch in range(1, len(epochs) + 1):
            await subject.buffer.release(epoch)
            with refused(subject, subject.errors.release):
                await subject.buffer.release(epoch)
        assert_left(subject, joined(epochs))
        with refused(subject, subject.errors.release):
            await subject.buffer.release(len(epochs) + 1)


@conformant
async def a_cancelled_release_leaves_the_rest_held(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        numbers = joined(await sealed_epochs(subject, [200]))
        with trio.CancelScope() as scope:
            scope.cancel()
            await subject.buffer.release(1)
        left = assert_left_so_far(subject, numbers)
        assert subject.buffer.statistics().held_items == len(numbers) - left
        if scope.cancelled_caught:
            await subject.buffer.release(1)
        assert_left(subject, numbers)


@conformant
async def a_release_cancelled_half_way_leaves_the_rest_held(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        numbers = joined(await sealed_epochs(subject, [400]))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(subject.buffer.release, 1)
                while subject.buffer.statistics().released_items == 0:
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        left = assert_left_so_far(subject, numbers)
        assert subject.buffer.statistics().held_items == len(numbers) - left
        await subject.settle()
        assert assert_left_so_far(subject, numbers) == left
        await subject.buffer.open()
        assert_left(subject, numbers)


@conformant_in_failure
async def a_failed_release_leaves_the_rest_held(open_subject: OpenSubject) -> None:
    for room in (0, 3):
        async with open_subject() as subject:
            first, *others = await sealed_epochs(subject, [8 * subject.lanes] * 2)
            numbers = first + joined(others)
            subject.leave_room(room)
            with _fails(subject.errors.outside):
                await subject.buffer.release(1)
            left = assert_left_so_far(subject, first)
            assert left <= len(first) - 8 + room
            figures = subject.buffer.statistics()
            assert figures.state == "holding"
            assert len(numbers) - left <= figures.held_items <= len(numbers)
            subject.leave_room(None)
            await subject.settle()
            assert assert_left_so_far(subject, first) == left
            await subject.buffer.open()
            assert_left(subject, numbers)


@contextmanager
def _fails(kinds: Kinds) -> Iterator[None]:
    """The call raises one of `kinds`, alone or in a group."""
    raised = False
    try:
        yield
    except* kinds:
        raised = True
    assert raised, f"no {[kind.__name__ for kind in kinds]} was raised"


# --- open -----------------------------------------------------------------------------------------


@conformant
async def open_lets_out_all_that_is_held_in_order(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        epochs = await sealed_epochs(subject, [100, 3])
        await subject.emit(range(9000, 9080))
        await subject.buffer.open()
        expected = [*joined(epochs), *range(9000, 9080)]
        assert_left(subject, expected)
        figures = subject.buffer.statistics()
        assert (figures.state, figures.open_epoch, figures.sealed_epochs) == ("open", None, ())
        assert (figures.held_items, figures.held_bytes) == (0, 0)
        await subject.emit(range(9080, 9090))
        assert_left(subject, [*expected, *range(9080, 9090)])


@conformant
async def open_keeps_what_comes_meanwhile_behind(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        expected = joined(await sealed_epochs(subject, [300]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subject.buffer.open)
            for start in range(5000, 5050, 10):
                await subject.emit(range(start, start + 10))
        await subject.settle()
        assert_left(subject, [*expected, *range(5000, 5050)])


@conformant
async def a_cancelled_open_leaves_the_rest_held(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        numbers = joined(await sealed_epochs(subject, [200, 100]))
        with trio.CancelScope() as scope:
            scope.cancel()
            await subject.buffer.open()
        left = assert_left_so_far(subject, numbers)
        await subject.settle()
        assert assert_left_so_far(subject, numbers) == left
        figures = subject.buffer.statistics()
        assert figures.state == ("holding" if scope.cancelled_caught else "open")
        assert figures.held_items == len(numbers) - left
        await subject.buffer.open()
        assert_left(subject, numbers)


@conformant_in_failure
async def a_failed_open_leaves_the_rest_held(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        numbers = joined(await sealed_epochs(subject, [6 * subject.lanes] * 2))
        await subject.emit(range(9000, 9003))
        numbers += range(9000, 9003)
        subject.leave_room(8)
        with _fails(subject.errors.outside):
            await subject.buffer.open()
        assert subject.lanes > 1 or subject.buffer.statistics().state == "holding"
        left = assert_left_so_far(subject, numbers)
        subject.leave_room(None)
        await subject.settle()
        assert assert_left_so_far(subject, numbers) == left
        await subject.buffer.open()
        assert_left(subject, numbers)


@conformant
async def hold_after_open_holds_again(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        buffer = subject.buffer
        expected = joined(await sealed_epochs(subject, [3, 3]))
        await buffer.open()
        await subject.emit(range(5000, 5003))
        expected += range(5000, 5003)
        assert_left(subject, expected)
        buffer.hold(9)
        assert buffer.statistics().open_epoch == 9
        await subject.emit(range(6000, 6003))
        assert_left(subject, expected)
        buffer.seal(9)
        await buffer.release(9)
        assert_left(subject, [*expected, *range(6000, 6003)])


# --- discard (P4) ---------------------------------------------------------------------------------


@conformant
async def discard_drops_all_that_is_held_for_ever(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        buffer = subject.buffer
        first, *others = await sealed_epochs(subject, [4, 4])
        await subject.emit(range(9000, 9002))
        await buffer.release(1)
        buffer.discard()
        figures = buffer.statistics()
        assert (figures.state, figures.open_epoch, figures.sealed_epochs) == ("discarded", None, ())
        assert (figures.held_items, figures.held_bytes, figures.dropped_items) == (
            0,
            0,
            len(joined(others)) + 2,
        )
        await subject.emit(range(9100, 9110))
        buffer.prepare()
        await subject.settle()
        assert_left(subject, first)
        await _assert_discarded(subject)


@conformant
async def discard_is_final_in_every_state(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        subject.buffer.discard()
        await _assert_discarded(subject)
    async with open_subject() as subject:
        await subject.buffer.open()
        await subject.emit(range(3))
        subject.buffer.discard()
        await subject.emit(range(3, 6))
        assert_left(subject, range(3))
        await _assert_discarded(subject)


async def _assert_discarded(subject: Subject) -> None:
    buffer = subject.buffer
    left = subject.outside()
    buffer.discard()
    with refused(subject, subject.errors.hold):
        buffer.hold(100)
    with refused(subject, subject.errors.seal):
        buffer.seal(2)
    with refused(subject, subject.errors.release):
        await buffer.release(2)
    with refused(subject, subject.errors.open):
        await buffer.open()
    await subject.settle()
    assert buffer.statistics().state == "discarded"
    assert subject.outside() == left


@conformant
async def discard_stops_what_is_leaving(open_subject: OpenSubject) -> None:
    for leave in ("release", "open"):
        async with open_subject() as subject:
            buffer = subject.buffer
            numbers = joined(await sealed_epochs(subject, [300]))
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(*((buffer.release, 1) if leave == "release" else (buffer.open,)))
                    await trio.lowlevel.checkpoint()
                    buffer.discard()
                    await trio.lowlevel.checkpoint()
            except* (*subject.errors.release, *subject.errors.open):
                pass
            assert_left_so_far(subject, numbers)
            await _assert_discarded(subject)


# --- the limit (P6) -------------------------------------------------------------------------------


@conformant
async def pressure_tells_how_near_the_limit_is(open_subject: OpenSubject) -> None:
    async with open_subject(limit_items=8) as subject:
        buffer = subject.buffer
        told: list[str] = []
        buffer.on_pressure(lambda level: told.append(level.value))
        buffer.hold(1)
        for held in range(1, 9):
            await subject.emit([held * subject.lanes])
            expected = "full" if held >= 8 else "soon" if held >= 4 else "none"
            assert buffer.pressure.value == expected, f"{held} of 8 items held"
        assert told == ["soon", "full"]
        assert buffer.statistics().held_bytes == subject.lane_limit_bytes
        buffer.seal(1)
        await buffer.release(1)
        await subject.settle()
        assert buffer.pressure.value == "none"
        assert told == ["soon", "full"]
        await subject.emit(held * subject.lanes for held in range(100, 104))
        assert told == ["soon", "full", "soon"]
        buffer.discard()
        assert buffer.pressure.value == "none"


@conformant
async def what_comes_at_the_limit_waits_and_is_not_lost(open_subject: OpenSubject) -> None:
    async with open_subject(limit_items=4) as subject:
        buffer = subject.buffer
        buffer.hold(1)
        numbers = [place * subject.lanes for place in range(12)]
        await subject.emit(numbers)
        assert buffer.statistics().held_items == (4 if subject.waits_at_limit else 12)
        assert buffer.statistics().dropped_items == 0
        epoch = 1
        for _ in range(4):
            buffer.seal(epoch)
            await buffer.release(epoch)
            await subject.settle()
            epoch += 1
        assert_left(subject, numbers)
        assert buffer.statistics().dropped_items == 0


@conformant
async def prepare_admits_what_waits_at_the_limit(open_subject: OpenSubject) -> None:
    async with open_subject(limit_items=4) as subject:
        buffer = subject.buffer
        buffer.hold(1)
        numbers = [place * subject.lanes for place in range(12)]
        await subject.emit(numbers)
        buffer.prepare()
        await subject.settle()
        assert buffer.statistics().held_items == len(numbers)
        assert_left(subject, [])
        buffer.seal(1)
        await buffer.release(1)
        assert_left(subject, numbers)


@conformant
async def open_lets_out_what_waits_at_the_limit(open_subject: OpenSubject) -> None:
    async with open_subject(limit_items=4) as subject:
        subject.buffer.hold(1)
        numbers = [place * subject.lanes for place in range(12)]
        await subject.emit(numbers)
        await subject.buffer.open()
        await subject.settle()
        assert_left(subject, numbers)


# --- the first output -----------------------------------------------------------------------------


@conformant
async def the_first_output_of_an_epoch_is_told_once(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        buffer = subject.buffer
        told: list[int] = []
        buffer.on_output(told.append)
        buffer.hold(7)
        await subject.settle()
        assert told == []
        for epoch in range(7, 10):
            for place in range(3):
                await subject.emit([epoch * 100 + place * subject.lanes])
                await subject.settle()
                assert told == list(range(7, epoch + 1)), f"output {place} of epoch {epoch}"
            buffer.prepare()
            buffer.seal(epoch)
            await buffer.release(epoch)
            await subject.settle()
        buffer.seal(10)
        await buffer.release(10)
        await subject.emit([1100, 1101])
        await subject.settle()
        assert told == [7, 8, 9, 11]


@conformant
async def no_output_is_told_of_but_what_is_held(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        buffer = subject.buffer
        told: list[int] = []
        await buffer.open()
        buffer.on_output(told.append)
        await subject.emit(range(3))
        await subject.settle()
        assert (told, buffer.open_items()) == ([], 0)
        buffer.hold(4)
        await subject.settle()
        assert (told, buffer.open_items()) == ([], 0)
        await subject.emit([3])
        await subject.settle()
        assert (told, buffer.open_items()) == ([4], 1)
        await buffer.open()
        await subject.emit([4])
        await subject.settle()
        assert (told, buffer.open_items()) == ([4], 0)
        buffer.hold(5)
        await subject.emit([5])
        await subject.settle()
        assert told == [4, 5]
        buffer.discard()
        await subject.emit([6])
        await subject.settle()
        assert (told, buffer.open_items()) == ([4, 5], 0)


@conformant
async def outputs_of_the_open_epoch_are_counted(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        buffer = subject.buffer
        assert buffer.open_items() == 0
        buffer.hold(1)
        for epoch in range(1, 4):
            for count in range(3):
                assert buffer.open_items() == count
                await subject.emit([epoch * 1000 + count * subject.lanes])
            buffer.prepare()
            assert buffer.open_items() == 3
            buffer.seal(epoch)
            assert buffer.open_items() == 0
            assert buffer.statistics().held_items == 3
            await buffer.release(epoch)


# --- statistics -----------------------------------------------------------------------------------


@conformant
async def statistics_are_a_frozen_snapshot(open_subject: OpenSubject) -> None:
    async with open_subject() as subject:
        subject.buffer.hold(1)
        await subject.emit(range(2))
        before = subject.buffer.statistics()
        await subject.emit(range(2, 4))
        assert before.held_items == 2
        with pytest.raises(FrozenInstanceError):
            before.held_items = 0
        assert subject.buffer.statistics().limit_bytes == subject.lanes * subject.lane_limit_bytes


async def random_walks_lose_nothing(open_subject: OpenSubject, count: int) -> None:
    """`count` walks, each of its own seed."""
    for seed in range(count):
        async with open_subject(depth=3) as subject:
            await _walk(subject, seed, steps=120)


async def _walk(subject: Subject, seed: int, steps: int) -> None:
    """Call at random what is allowed, and compare each time with a model of a few lines."""
    chance = random.Random(seed)
    buffer = subject.buffer
    left: list[int] = []
    held: deque[list[int]] = deque()  # of the sealed epochs, and last of the open one
    state, epoch, next_number, peak_bytes = "closed", chance.randrange(1, 1000), 0, 0
    for step in range(steps):
        sealed = max(0, len(held) - 1)
        choice = chance.choice(["emit", "emit", "emit", "seal", "release", "release", "prepare", "rare"])
        if choice == "emit" and state != "closed":
            numbers = range(next_number, next_number + chance.randrange(1, 20))
            next_number = numbers.stop
            await subject.emit(numbers)
            (held[-1] if state == "holding" else left).extend(numbers)
        elif choice == "seal" and state == "holding" and sealed < buffer.depth:
            buffer.seal(epoch)
            epoch += 1
            held.append([])
        elif choice == "release" and sealed:
            await buffer.release(epoch - sealed)
            left += held.popleft()
        elif choice == "prepare":
            buffer.prepare()
        elif choice == "rare" and state != "holding":
            buffer.hold(epoch)
            state = "holding"
            held.append([])
        elif choice == "rare" and chance.random() < 0.3:
            await buffer.open()
            left += joined(held)
            held.clear()
            state, epoch = "open", epoch + 1
        where = f"seed={seed} step={step} ({choice})"
        assert subject.outside() == by_lane(left, subject.lanes), where
        figures = buffer.statistics()
        held_items = sum(map(len, held))
        peak_bytes = max(peak_bytes, held_items * subject.item_bytes)
        assert (figures.held_items, figures.released_items) == (held_items, len(left)), where
        assert figures.held_bytes == held_items * subject.item_bytes, where
        assert figures.released_bytes == len(left) * subject.item_bytes, where
        assert figures.dropped_items == 0, where
        assert figures.state == state, where
        assert figures.open_epoch == (epoch if state == "holding" else None), where
        assert figures.sealed_epochs == tuple(range(epoch - max(0, len(held) - 1), epoch)), where
        assert figures.peak_bytes == peak_bytes or (subject.lanes > 1 and figures.peak_bytes >= peak_bytes), (
            where
        )


async def many_epochs(open_subject: OpenSubject, count: int) -> None:
    """`count` epochs, two in flight if it can: every number leaves once, in order, and not too early."""
    async with open_subject(depth=2) as subject:
        buffer = subject.buffer
        buffer.hold(1)
        for epoch in range(1, count + 1):
            await subject.emit(range((epoch - 1) * subject.lanes, epoch * subject.lanes))
            buffer.prepare()
            buffer.seal(epoch)
            released = epoch + 1 - min(2, buffer.depth)
            if released > 0:
                await buffer.release(released)
            if epoch % 500 == 0:
                assert_left(subject, range(released * subject.lanes))
        if released < count:
            await buffer.release(count)
        assert_left(subject, range(count * subject.lanes))
        figures = buffer.statistics()
        assert (figures.held_items, figures.dropped_items) == (0, 0)
        assert figures.released_items == count * subject.lanes
        assert figures.peak_bytes <= 3 * subject.lanes * subject.item_bytes
