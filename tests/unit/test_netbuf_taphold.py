"""netbuf.taphold over socket pairs, which keep frames apart as TAPs do: the contract without a network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from fakes.wiring import FakeWiring, fake_guest_tap

from netbuf.errors import (
    AnnounceError,
    HoldError,
    InterfaceVanishedError,
    OpenError,
    ReleaseError,
    SealError,
)
from netbuf.ledger import HoldState, Pressure
from netbuf.redirect import Undelivered
from netbuf.tap import VNET_HEADER_BYTES
from netbuf.taphold import TURN_FRAMES, TapHold

FRAME_BYTES = 100


def numbered(first: int, count: int = 1) -> list[bytes]:
    return [str(number).encode().rjust(FRAME_BYTES, b".") for number in range(first, first + count)]


@pytest.fixture
def wiring() -> Iterator[FakeWiring]:
    made = FakeWiring()
    yield made
    made.close_ends()


def make(wiring: FakeWiring, *, limit_bytes: int = 1 << 20, depth: int = 2) -> TapHold:
    return TapHold(fake_guest_tap(), "br0", limit_bytes, depth, wire=lambda *_: wiring)


async def wait_until_held(hold: TapHold, items: int) -> None:
    with trio.fail_after(5):
        while hold.statistics().held_items < items:
            await trio.lowlevel.checkpoint()


async def test_closed_lets_nothing_out_and_keeps_the_outlet_down(wiring: FakeWiring) -> None:
    hold = make(wiring)
    wiring.send(*numbered(0, 3))
    hold.prepare()
    assert hold.statistics().state is HoldState.CLOSED
    assert wiring.received() == []
    assert not wiring.outlet_up


async def test_a_seal_takes_all_that_was_sent_and_only_release_lets_it_out(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0, 3))
    hold.seal(1)
    wiring.send(*numbered(3))
    hold.seal(2)
    assert wiring.received() == []
    assert hold.statistics().sealed_epochs == (1, 2)
    await hold.release(1)
    assert wiring.received() == numbered(0, 3)
    await hold.release(2)
    assert wiring.received() == numbered(3)
    figures = hold.statistics()
    assert (figures.released_items, figures.released_bytes) == (4, 4 * FRAME_BYTES)
    assert (figures.held_items, figures.dropped_items) == (0, 0)


async def test_depth_exceeded_changes_nothing(wiring: FakeWiring) -> None:
    hold = make(wiring, depth=1)
    hold.hold(1)
    hold.seal(1)
    wiring.send(*numbered(0))
    before = hold.statistics()
    with pytest.raises(SealError, match="depth=1"):
        hold.seal(2)
    assert hold.statistics() == before
    await hold.release(1)
    hold.seal(2)
    assert hold.statistics().held_items == 1


async def test_release_out_of_order_lets_nothing_out(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    for epoch in (1, 2):
        wiring.send(*numbered(epoch))
        hold.seal(epoch)
    for epoch in (2, 3):
        with pytest.raises(ReleaseError):
            await hold.release(epoch)
    assert wiring.received() == []


async def test_run_keeps_while_holding_and_passes_while_open(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        wiring.send(*numbered(0, 200))
        await wait_until_held(hold, 200)
        assert wiring.received() == []
        await hold.open()
        assert wiring.received() == numbered(0, 200)
        wiring.send(*numbered(200, 5))
        with trio.fail_after(5):
            while hold.statistics().released_items < 205:
                await trio.lowlevel.checkpoint()
        assert wiring.received() == numbered(200, 5)
        hold.close()


# --- the gate ---------------------------------------------------------------------------------------


async def test_while_open_the_kernel_passes_and_all_is_counted(wiring: FakeWiring) -> None:
    hold = make(wiring)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        assert not wiring.gate.is_open
        await hold.open()
        wiring.send(*numbered(0, 3))
        assert wiring.received() == numbered(0, 3)  # nobody else has had a turn
        figures = hold.statistics()
        assert (figures.released_items, figures.released_bytes) == (3, 3 * FRAME_BYTES)
        wiring.send(*numbered(3))
        hold.hold(1)
        assert hold.statistics().released_items == 4
        wiring.send(*numbered(4, 2))
        hold.seal(1)
        assert hold.statistics().held_items == 2
        wiring.received()
        await hold.release(1)
        assert wiring.received() == numbered(4, 2)
        assert hold.statistics().released_bytes == 6 * FRAME_BYTES
        hold.close()


async def test_no_frame_overtakes_however_the_guest_sends_while_the_hold_opens(wiring: FakeWiring) -> None:
    """Some come at each turn of the event loop, so that some are in the ring at every step of the opening."""
    hold = make(wiring)
    hold.hold(1)
    sent = 2 * TURN_FRAMES
    wiring.send(*numbered(0, sent))
    hold.seal(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        nursery.start_soon(hold.open)
        for burst in itertools.cycle((1, 3, 2)):
            wiring.send(*numbered(sent, burst))
            sent += burst
            if wiring.gate.passed_items:
                break
            assert sent < 10_000, "it never catches up"
            await trio.lowlevel.checkpoint()
        assert wiring.received() == numbered(0, sent)
        hold.close()


async def test_a_frame_between_gate_and_ring_keeps_the_gate_shut(wiring: FakeWiring) -> None:
    hold = make(wiring)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        assert not wiring.gate.lets_pass(FRAME_BYTES)
        await hold.open()
        await trio.testing.wait_all_tasks_blocked()
        assert not wiring.gate.is_open
        wiring.guest.send(*numbered(0))
        with trio.fail_after(5):
            while not wiring.gate.is_open:
                await trio.lowlevel.checkpoint()
        assert wiring.received() == numbered(0)
        hold.close()


async def test_a_frame_that_comes_while_it_asks_keeps_the_gate_shut(
    wiring: FakeWiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = make(wiring)
    pass_after = wiring.gate.pass_after

    def too_late(kept_items: int) -> None:
        monkeypatch.undo()
        wiring.send(*numbered(0))
        pass_after(kept_items)
        wiring.send(*numbered(1))

    monkeypatch.setattr(wiring.gate, "pass_after", too_late)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        assert wiring.received() == []
        await trio.testing.wait_all_tasks_blocked()
        assert wiring.gate.is_open
        wiring.send(*numbered(2))
        assert wiring.received() == numbered(0, 3)
        hold.close()


async def test_what_the_ring_had_no_room_for_is_not_waited_for(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        wiring.lose(5)
        await hold.open()
        assert wiring.gate.is_open
        hold.hold(2)
        wiring.lose(2)
        await hold.open()
        assert wiring.gate.is_open
        assert hold.statistics().dropped_items == 7
        hold.close()


@pytest.mark.parametrize("end", ["hold", "discard", "cancel", "close"])
async def test_nothing_passes_after_the_end_of_being_open(wiring: FakeWiring, end: str) -> None:
    hold = make(wiring)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        wiring.send(*numbered(0))
        match end:
            case "hold":
                hold.hold(1)
            case "discard":
                hold.discard()
            case "close":
                hold.close()
        if end != "cancel":
            assert not wiring.gate.is_open
        nursery.cancel_scope.cancel()
    assert not wiring.gate.is_open
    assert wiring.received() == numbered(0)
    assert hold.statistics().released_items == 1


async def test_run_again_opens_the_gate_again(wiring: FakeWiring) -> None:
    hold = make(wiring)
    await hold.open()
    wiring.send(*numbered(0))
    assert not wiring.gate.is_open  # nobody runs
    for round_ in range(2):
        async with trio.open_nursery() as nursery:
            await nursery.start(hold.run)
            await trio.testing.wait_all_tasks_blocked()
            assert wiring.gate.is_open
            wiring.send(*numbered(2 * round_ + 1))
            nursery.cancel_scope.cancel()
        wiring.send(*numbered(2 * round_ + 2))
    assert wiring.received() == numbered(0, 4)


async def test_a_refused_hold_leaves_the_gate_open(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    hold.seal(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        with pytest.raises(HoldError):
            hold.hold(1)
        assert wiring.gate.is_open
        hold.close()


async def test_what_passed_and_came_nowhere_is_dropped_and_not_released(wiring: FakeWiring) -> None:
    hold = make(wiring)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        await hold.open()
        wiring.send(*numbered(0, 4))
        wiring.lost = Undelivered(passed_items=1)
        figures = hold.statistics()
        assert (figures.released_items, figures.released_bytes) == (3, 3 * FRAME_BYTES)
        assert figures.dropped_items == 1
        hold.close()


async def test_an_outlet_that_vanishes_while_the_kernel_uses_it_ends_run(
    wiring: FakeWiring, autojump_clock: trio.testing.MockClock
) -> None:
    hold = make(wiring)
    await hold.open()
    wiring.outlet_is_gone = True
    with trio.fail_after(2), pytest.raises(InterfaceVanishedError, match="outlet of rl0g"):
        await hold.run()
    assert not wiring.gate.is_open


async def test_hold_after_open_lets_the_older_frames_pass(wiring: FakeWiring) -> None:
    hold = make(wiring)
    await hold.open()
    wiring.send(*numbered(0, 2))
    hold.hold(1)
    wiring.send(*numbered(2))
    hold.seal(1)
    assert wiring.received() == numbered(0, 2)
    assert hold.statistics().held_items == 1


async def test_hold_twice_is_refused(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    with pytest.raises(HoldError):
        hold.hold(2)


async def test_a_cancelled_release_keeps_the_rest_and_can_be_repeated(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0, 3 * TURN_FRAMES))
    hold.seal(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold.release, 1)
        while not hold.statistics().released_items:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    sent = wiring.received()
    figures = hold.statistics()
    assert sent == numbered(0, len(sent))
    assert figures.sealed_epochs == (1,)
    assert figures.held_items == 3 * TURN_FRAMES - len(sent) > 0
    await hold.release(1)
    assert sent + wiring.received() == numbered(0, 3 * TURN_FRAMES)


async def test_a_release_cancelled_at_once_lets_nothing_out(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0))
    hold.seal(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await hold.release(1)
    assert wiring.received() == []
    assert hold.statistics().sealed_epochs == (1,)


async def test_a_cancelled_open_goes_on_holding(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0))
    hold.seal(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await hold.open()
    assert wiring.received() == []
    assert hold.statistics().state is HoldState.HOLDING


async def test_a_cancelled_run_lets_nothing_pass_even_while_open(wiring: FakeWiring) -> None:
    hold = make(wiring)
    await hold.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        nursery.cancel_scope.cancel()
    wiring.send(*numbered(0))
    await trio.testing.wait_all_tasks_blocked()
    assert wiring.received() == []


async def test_releases_and_opening_take_turns(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    for epoch in (1, 2):
        wiring.send(*numbered(epoch * TURN_FRAMES * 2, TURN_FRAMES * 2))
        hold.seal(epoch)
    wiring.send(*numbered(TURN_FRAMES * 6))
    hold.prepare()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold.release, 1)
        while not hold.statistics().released_items:
            await trio.lowlevel.checkpoint()
        await hold.open()
    assert wiring.received() == numbered(TURN_FRAMES * 2, TURN_FRAMES * 4 + 1)


async def test_discard_stops_a_release_under_way(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0, 3 * TURN_FRAMES))
    hold.seal(1)
    async with trio.open_nursery() as nursery:

        async def release() -> None:
            with pytest.raises(ReleaseError, match="discarded"):
                await hold.release(1)

        nursery.start_soon(release)
        while not hold.statistics().released_items:
            await trio.lowlevel.checkpoint()
        hold.discard()
    assert len(wiring.received()) < 3 * TURN_FRAMES
    with pytest.raises(OpenError):
        await hold.open()


async def test_discarded_drops_and_counts_for_ever(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0, 2))
    hold.seal(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.discard()
        hold.discard()
        wiring.send(*numbered(2, 3))
        with trio.fail_after(5):
            while hold.statistics().dropped_items < 5:
                await trio.lowlevel.checkpoint()
        hold.close()
    assert wiring.received() == []
    assert not wiring.outlet_up


async def test_at_the_limit_reading_stops_and_a_seal_takes_the_rest(wiring: FakeWiring) -> None:
    hold = make(wiring, limit_bytes=10 * FRAME_BYTES)
    levels: list[Pressure] = []
    hold.on_pressure(levels.append)
    hold.hold(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        wiring.send(*numbered(0, 5))
        await wait_until_held(hold, 5)
        assert hold.pressure is Pressure.SOON
        wiring.send(*numbered(5, 25))
        await wait_until_held(hold, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert hold.statistics().held_items == 10
        assert hold.pressure is Pressure.FULL
        assert levels == [Pressure.SOON, Pressure.FULL]
        hold.seal(1)
        assert hold.statistics().held_items == 30
        wiring.send(*numbered(30))
        await hold.release(1)
        assert hold.pressure is Pressure.NONE
        await wait_until_held(hold, 1)
        assert wiring.received() == numbered(0, 30)
        assert hold.statistics().peak_bytes == 30 * FRAME_BYTES
        hold.close()


async def test_prepare_reads_what_waits_beyond_the_limit(wiring: FakeWiring) -> None:
    hold = make(wiring, limit_bytes=FRAME_BYTES)
    hold.hold(1)
    wiring.send(*numbered(0, 4))
    hold.prepare()
    assert hold.statistics().held_items == 4


async def test_reading_yields_to_other_tasks(wiring: FakeWiring) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0, 3 * TURN_FRAMES))
    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        while not seen or seen[-1] < 3 * TURN_FRAMES:
            await trio.lowlevel.checkpoint()
            seen.append(hold.statistics().held_items)
        hold.close()
    steps = [later - earlier for earlier, later in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= 2 * TURN_FRAMES  # trio may run the reader twice between two of our turns


async def test_losses_in_the_kernel_are_shown(wiring: FakeWiring) -> None:
    hold = make(wiring)
    wiring.lost = Undelivered(4, 3)
    assert hold.statistics().dropped_items == 7


async def test_a_refusing_outlet_costs_frames_and_nothing_else(
    wiring: FakeWiring, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = make(wiring)
    hold.hold(1)
    wiring.send(*numbered(0, 3))
    hold.seal(1)
    wiring.lan.close()  # writes now fail with EPIPE
    await hold.release(1)
    figures = hold.statistics()
    assert (figures.dropped_items, figures.released_items, figures.sealed_epochs) == (3, 0, ())
    assert capsys.readouterr().out.count("refused a frame") == 1
    await hold.open()
    wiring.send(*numbered(3))
    hold.hold(2)
    assert hold.statistics().dropped_items == 4


async def test_announcing_goes_out_at_once_once_open(wiring: FakeWiring) -> None:
    hold = make(wiring)
    frame = b"\xff" * 60
    for _ in range(2):
        with pytest.raises(AnnounceError, match="call open first"):
            hold.announce([frame])
        if hold.statistics().state is HoldState.CLOSED:
            hold.hold(1)
    await hold.open()
    hold.announce([frame, frame])
    hold.hold(2)
    hold.announce([frame])
    assert wiring.received() == [bytes(VNET_HEADER_BYTES) + frame] * 3
    with pytest.raises(AnnounceError, match="13 bytes"):
        hold.announce([frame, bytes(13)])
    assert wiring.received() == []
    hold.discard()
    with pytest.raises(AnnounceError, match="discarded"):
        hold.announce([frame])


@pytest.mark.parametrize("state", ["closed", "open"])
async def test_close_ends_run_wherever_it_waits(wiring: FakeWiring, state: str) -> None:
    hold = make(wiring)
    if state == "open":
        await hold.open()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(hold.run)
            await trio.testing.wait_all_tasks_blocked()
            hold.close()
    hold.close()
    assert hold.statistics().state is HoldState.DISCARDED


async def test_a_guest_tap_that_vanishes_ends_run_though_it_hears_nothing_of_it(
    wiring: FakeWiring, autojump_clock: trio.testing.MockClock
) -> None:
    """At the limit, where it doesn't read, as well; what is held may still leave."""

    async def vanish() -> None:
        await trio.sleep(10)
        wiring.guest_is_gone = True

    for limit_bytes in (1 << 20, FRAME_BYTES):
        wiring.guest_is_gone = False
        hold = make(wiring, limit_bytes=limit_bytes)
        hold.hold(1)
        wiring.send(*numbered(0, 2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vanish)
            with pytest.raises(InterfaceVanishedError, match="'rl0g' is gone"):
                await hold.run()
        hold.seal(1)
        await hold.release(1)
        assert wiring.received() == numbered(0, 2)


async def test_a_discarded_hold_may_outlive_its_guest(
    wiring: FakeWiring, autojump_clock: trio.testing.MockClock
) -> None:
    hold = make(wiring)
    async with trio.open_nursery() as nursery:
        await nursery.start(hold.run)
        hold.discard()
        wiring.guest_is_gone = True
        await trio.sleep(10)
        hold.close()


async def test_the_depth_is_the_one_asked_for(wiring: FakeWiring) -> None:
    assert make(wiring, depth=3).depth == 3
