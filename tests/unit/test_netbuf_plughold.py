"""netbuf.plughold over a model of the kernel's plug: what the conformance suite doesn't ask."""

from __future__ import annotations

import contextlib

import pytest
import structlog.testing
import trio
import trio.testing
from fakes.wiring import fake_guest_tap
from unit.netbuf_fakes import FakePlug

from netbuf.errors import (
    AnnounceError,
    HoldBrokenError,
    HoldError,
    InterfaceVanishedError,
    KernelRefusedError,
    LimitError,
    ReleaseError,
    SealError,
)
from netbuf.ledger import Backend, HoldState, Pressure
from netbuf.plughold import PlugHold
from netbuf.sizing import reserve_bytes

FRAME_BYTES = 60


def numbered(first: int, count: int = 1) -> list[bytes]:
    return [str(number).encode().rjust(FRAME_BYTES, b".") for number in range(first, first + count)]


def make(plug: FakePlug, *, limit_bytes: int = 1 << 20) -> PlugHold:
    return PlugHold(fake_guest_tap(), "br0", limit_bytes, wire=lambda *_: plug)


async def test_a_seal_and_a_release_are_one_message_each_and_looks_until_all_has_left() -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 100))
    plug.asked.clear()
    hold.seal(1)
    assert plug.asked == ["buffer"]
    plug.asked.clear()
    await hold.release(1)
    assert plug.asked == ["release one", *["passage", "waiting"] * 2]
    hold.seal(2)
    plug.asked.clear()
    await hold.release(2)
    assert plug.asked == ["release one"]
    assert plug.received() == numbered(0, 100)


async def test_it_says_what_it_is_and_how_deep() -> None:
    hold = make(FakePlug())
    assert hold.depth == 1
    assert hold.statistics().backend is Backend.PLUG


async def test_a_second_seal_is_refused_before_the_kernel_hears_of_it() -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    hold.seal(1)
    plug.asked.clear()
    with pytest.raises(SealError, match="depth=1"):
        hold.seal(2)
    with pytest.raises(ReleaseError):
        await hold.release(2)
    assert plug.asked == []


async def test_the_kernel_gets_the_limit_and_the_reserve() -> None:
    limits: list[int] = []

    def wire(_guest: object, _bridge: str, limit_bytes: int) -> FakePlug:
        limits.append(limit_bytes)
        return FakePlug()

    PlugHold(fake_guest_tap(), "br0", 1000, wire=wire)
    assert limits == [1000 + reserve_bytes()]
    for limit_bytes in (0, 1 << 32):
        with pytest.raises(LimitError, match=f"limit_bytes={limit_bytes}"):
            PlugHold(fake_guest_tap(), "br0", limit_bytes, wire=wire)
    assert len(limits) == 1


async def test_what_waited_while_closed_is_of_the_first_epoch() -> None:
    plug = FakePlug()
    hold = make(plug)
    plug.send(*numbered(0, 3))
    assert hold.statistics().held_items == 0
    hold.hold(1)
    assert hold.statistics().held_items == 3
    hold.seal(1)
    assert plug.received() == []
    await hold.release(1)
    assert plug.received() == numbered(0, 3)


@pytest.mark.parametrize("behind", [[], ["passage"], ["passage", "waiting"]])
async def test_an_opening_that_the_kernel_refuses_half_way_lets_nothing_pass(behind: list[str]) -> None:
    """The plug may be open by then, while the ledger says that it holds."""
    plug = FakePlug(burst=1)
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 3))
    hold.prepare()
    plug.refuses = ["release all", *behind]
    with pytest.raises(KernelRefusedError):
        await hold.open()
    plug.received()
    plug.send(*numbered(3, 2))
    assert plug.received() == []
    assert hold.statistics().state is HoldState.DISCARDED


async def test_what_was_sent_while_open_leaves_before_holding_begins() -> None:
    plug = FakePlug(burst=1)
    hold = make(plug)
    await hold.open()
    plug._waiting.extend(numbered(0, 3))  # softirqs that have not run yet
    hold.hold(1)
    assert plug.received() == numbered(0, 3)
    plug.send(*numbered(3, 2))
    assert hold.statistics().held_items == 2
    assert plug.received() == []


async def test_a_plug_that_never_drains_is_refused_and_stays_open() -> None:
    plug = FakePlug(burst=0)
    hold = make(plug)
    await hold.open()
    plug._waiting.extend(numbered(0, 3))
    with pytest.raises(HoldError, match="3 frames sent before don't leave"):
        hold.hold(1)
    assert hold.statistics().state is HoldState.OPEN
    assert plug.asked[-3] == "release all"


async def test_the_first_output_is_told_of_by_the_gate_and_not_by_looking() -> None:
    plug = FakePlug()
    hold = make(plug)
    told: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.on_output(lambda epoch: told.append((epoch, len(plug.asked))))
        hold.hold(1)
        await trio.testing.wait_all_tasks_blocked()
        asked = len(plug.asked)
        plug.send(*numbered(0, 3))
        assert hold.open_items() == 3
        await trio.testing.wait_all_tasks_blocked()
        assert told == [(1, asked)]
        hold.close()


async def test_frames_carried_over_from_a_sealed_epoch_are_the_next_ones_first() -> None:
    plug = FakePlug()
    hold = make(plug)
    told: list[int] = []
    hold.on_output(told.append)
    hold.hold(1)
    plug.during_buffer = numbered(0, 2)
    hold.seal(1)
    await hold.release(1)
    assert told == [2]
    assert hold.open_items() == 2


async def test_pressure_is_told_by_looking_at_the_kernel(autojump_clock: trio.testing.MockClock) -> None:
    plug = FakePlug()
    hold = make(plug, limit_bytes=4 * FRAME_BYTES)
    levels: list[Pressure] = []
    hold.on_pressure(levels.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.hold(1)
        plug.send(*numbered(0, 2))
        await trio.sleep(0.05)
        assert levels == [Pressure.SOON]
        plug.send(*numbered(2, 2))
        await trio.sleep(0.05)
        assert levels == [Pressure.SOON, Pressure.FULL]
        asked = len(plug.asked)
        await trio.sleep(1)
        assert len(plug.asked) - asked <= 2 * 1 / 0.002 + 2
        hold.close()


async def test_frames_that_the_kernel_refused_are_counted_and_logged_once() -> None:
    plug = FakePlug(limit_bytes=3 * FRAME_BYTES)
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 5))
    with structlog.testing.capture_logs() as logs:
        hold.seal(1)
        assert hold.statistics().dropped_items == 2
        assert hold.statistics().dropped_items == 2
    assert [entry["items"] for entry in logs] == [2]
    await hold.release(1)
    assert plug.received() == numbered(0, 3)


async def test_frames_of_a_guest_that_is_not_paused_go_to_the_next_epoch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 3))
    plug.during_buffer = numbered(3, 2)
    hold.seal(1)
    await hold.release(1)
    assert plug.received() == numbered(0, 3)
    assert (hold.statistics().held_items, hold.statistics().released_items) == (2, 3)
    hold.seal(2)
    await hold.release(2)
    assert plug.received() == numbered(3, 2)
    assert hold.statistics().held_items == 0


@pytest.mark.parametrize("tamper", ["purge", "leak"])
async def test_a_queue_that_somebody_else_changes_is_cut(
    tamper: str, autojump_clock: trio.testing.MockClock
) -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 4))
    hold.prepare()
    getattr(plug, tamper)(1)
    with pytest.raises(HoldBrokenError, match="rl0g is cut"):
        await hold.run()
    assert hold.statistics().state is HoldState.DISCARDED
    plug.received()
    plug.send(*numbered(9))
    assert plug.received() == []
    with pytest.raises(SealError):
        hold.seal(1)


async def test_a_seal_of_a_changed_queue_seals_nothing_and_cuts() -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    plug.broken = True
    with pytest.raises(HoldBrokenError, match="no plug of ours"):
        hold.seal(1)
    assert hold.statistics().state is HoldState.DISCARDED


async def test_a_release_that_never_ends_cuts(autojump_clock: trio.testing.MockClock) -> None:
    plug = FakePlug(burst=0)
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 2))
    with pytest.raises(HoldBrokenError, match="released frames of rl0g don't leave"):
        await hold.open()
    assert hold.statistics().state is HoldState.DISCARDED


async def test_a_guest_tap_that_is_gone_ends_run_by_name(autojump_clock: trio.testing.MockClock) -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    plug.lose_tap()
    with pytest.raises(InterfaceVanishedError, match="guest tap 'rl0g' is gone"):
        await hold.run()
    assert hold.statistics().state is HoldState.DISCARDED


async def test_an_announcement_passes_a_hold_that_was_open(autojump_clock: trio.testing.MockClock) -> None:
    plug = FakePlug()
    hold = make(plug)
    with pytest.raises(AnnounceError, match="not yet opened"):
        hold.announce(numbered(0))
    await hold.open()
    hold.hold(1)
    hold.announce(numbered(0, 2))
    assert plug.received() == numbered(0, 2)
    with pytest.raises(AnnounceError, match="a frame of 3 bytes"):
        hold.announce([b"abc"])


async def test_close_is_idempotent_and_ends_run(autojump_clock: trio.testing.MockClock) -> None:
    plug = FakePlug()
    hold = make(plug)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.hold(1)
        plug.send(*numbered(0, 2))
        hold.close()
        hold.close()
    assert plug.closed
    assert hold.statistics().dropped_items == 2


async def test_cancelling_run_stops_an_open_hold_and_running_it_again_resumes() -> None:
    plug = FakePlug()
    hold = make(plug)
    await hold.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        plug.send(*numbered(0))
        assert plug.received() == numbered(0)
        nursery.cancel_scope.cancel()
    plug.send(*numbered(1))
    assert plug.received() == []
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        assert plug.received() == numbered(1)
        hold.close()


async def test_an_opening_that_outlives_run_lets_out_what_is_held_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plug = FakePlug(burst=1)
    hold = make(plug)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.hold(1)
        plug.send(*numbered(0, 30))
        nursery.start_soon(hold.open)
        while "release all" not in plug.asked:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert hold.statistics().state is HoldState.OPEN
    plug.send(*numbered(30))
    plug.passage()
    assert plug.received() == numbered(0, 30)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        assert plug.received() == numbered(30)
        hold.close()


async def test_a_break_that_statistics_meets_is_raised_by_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plug = FakePlug()
    hold = make(plug)
    hold.hold(1)
    with pytest.RaisesGroup(pytest.RaisesExc(HoldBrokenError, match="no plug of ours")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold.run)
            await trio.testing.wait_all_tasks_blocked()
            plug.broken = True
            assert hold.statistics().state is HoldState.DISCARDED


async def test_a_plug_that_cannot_be_closed_is_cut() -> None:
    plug = FakePlug()
    hold = make(plug)
    await hold.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        plug.send(*numbered(0))
        plug.received()
        plug.broken = True
        nursery.cancel_scope.cancel()
    plug.send(*numbered(1))
    assert plug.received() == []
    assert hold.statistics().state is HoldState.DISCARDED


# --- the gate ---------------------------------------------------------------------------------------

SETTLED_S = 0.5
"""Longer than the hold waits before it believes that nothing is left in the plug, or looks again."""


async def test_while_open_the_kernel_passes_frames_around_the_plug(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plug = FakePlug()
    hold = make(plug)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.hold(1)
        plug.send(*numbered(0, 3))
        await hold.open()
        plug.send(*numbered(3))
        assert not plug.gate.is_open  # that frame may still be on its way from the plug to the LAN
        await trio.sleep(SETTLED_S)
        assert plug.gate.is_open
        plug.send(*numbered(4, 2))
        assert plug.passage().left_items == 4
        assert hold.statistics().released_items == 6
        assert hold.statistics().released_bytes == 6 * FRAME_BYTES
        plug.send(*numbered(6))
        hold.hold(2)
        assert hold.statistics().released_items == 7
        plug.send(*numbered(7))
        assert hold.statistics().held_items == 1
        assert plug.received() == numbered(0, 7)
        hold.close()


@pytest.mark.parametrize("burst", [1, 64])
async def test_no_frame_overtakes_those_that_leave_slowly(
    burst: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Frames come all the time, and leave in bursts; when they pause for a moment the gate opens."""
    plug = FakePlug(burst=burst)
    hold = make(plug)
    hold.hold(1)
    plug.send(*numbered(0, 40))
    sent = 40
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        nursery.start_soon(hold.open)
        for gap_ms in (0, 0.1, 0.3, 0.9, 0, 0.5, 7, 0.2, 30, 0.1, 900, 0.1):
            await trio.sleep(gap_ms / 1e3)
            plug.send(*numbered(sent, 3))
            sent += 3
        assert plug.gate.passed_items
        assert plug.received() == numbered(0, sent)
        hold.close()


async def test_a_guest_that_never_pauses_keeps_going_through_the_plug(
    autojump_clock: trio.testing.MockClock,
) -> None:
    plug = FakePlug()
    hold = make(plug)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        for sent in range(500):
            plug.send(*numbered(sent))
            await trio.sleep(0.000_9)
        assert (plug.gate.passed_items, plug.received()) == (0, numbered(0, 500))
        hold.close()


async def test_what_the_plug_refused_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    plug = FakePlug(limit_bytes=3 * FRAME_BYTES)
    hold = make(plug)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.hold(1)
        plug.send(*numbered(0, 5))
        await hold.open()
        await trio.sleep(SETTLED_S)
        assert plug.gate.is_open
        assert hold.statistics().dropped_items == 2
        hold.close()


async def test_a_frame_that_comes_as_the_gate_opens_goes_first(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    plug = FakePlug()
    hold = make(plug)
    pass_after = plug.gate.pass_after

    def too_late(kept_items: int) -> None:
        monkeypatch.undo()
        plug.send(*numbered(0))
        pass_after(kept_items)
        plug.send(*numbered(1))

    monkeypatch.setattr(plug.gate, "pass_after", too_late)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        await trio.sleep(SETTLED_S)
        assert plug.gate.kept_items == 2  # the second is no more let around the plug than the first
        assert plug.gate.is_open
        plug.send(*numbered(2))
        assert plug.received() == numbered(0, 3)
        hold.close()


@pytest.mark.parametrize("end", ["discard", "cancel", "close", "broken"])
async def test_nothing_passes_after_the_end_of_being_open(
    end: str, autojump_clock: trio.testing.MockClock
) -> None:
    plug = FakePlug()
    hold = make(plug)
    with contextlib.ExitStack() as stack:
        if end == "broken":
            stack.enter_context(pytest.RaisesGroup(HoldBrokenError))
        async with trio.open_nursery() as nursery:
            await nursery.start(hold.run)
            await hold.open()
            await trio.sleep(SETTLED_S)
            plug.send(*numbered(0))
            match end:
                case "discard":
                    hold.discard()
                case "close":
                    hold.close()
                case "broken":
                    plug.broken = True
                    await trio.sleep(SETTLED_S)
            if end != "cancel":
                assert not plug.gate.is_open
            nursery.cancel_scope.cancel()
    plug.send(*numbered(1))
    assert plug.received() == numbered(0)
    assert hold.statistics().released_items == 1
