"""netbuf.ledger: the rules of the contract one by one, then any order of calls against a naive model."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netbuf.errors import AnnounceError, HoldError, LimitError, OpenError, ReleaseError, SealError
from netbuf.ledger import HoldState, Ledger, Pressure


def holding(*, depth: int = 2, limit_bytes: int = 1000, epoch: int = 1) -> Ledger:
    ledger = Ledger(depth=depth, limit_bytes=limit_bytes)
    ledger.hold(epoch)
    return ledger


def leave_all(ledger: Ledger, epoch: int, size_bytes: int) -> None:
    ledger.begin_release(epoch)
    while ledger.oldest_items:
        ledger.left(size_bytes, delivered=True)
    ledger.end_release(released=True)


@pytest.mark.parametrize(("depth", "limit_bytes"), [(0, 1), (-1, 1), (1, 0), (1, -5)])
def test_a_buffer_that_could_hold_nothing_is_refused(depth: int, limit_bytes: int) -> None:
    with pytest.raises(LimitError, match=r"(depth|limit_bytes)=(0|-\d)"):
        Ledger(depth=depth, limit_bytes=limit_bytes)


def test_a_new_ledger_is_closed_and_empty() -> None:
    figures = Ledger(depth=2, limit_bytes=10).statistics()
    assert figures.state is HoldState.CLOSED
    assert figures.open_epoch is None
    assert figures.sealed_epochs == ()
    assert (figures.held_items, figures.held_bytes, figures.limit_bytes) == (0, 0, 10)


def test_sealing_moves_the_open_epoch_on() -> None:
    ledger = holding(epoch=7)
    ledger.admit(100)
    ledger.seal(7)
    figures = ledger.statistics()
    assert (figures.open_epoch, figures.sealed_epochs, figures.held_items) == (8, (7,), 1)


@pytest.mark.parametrize("epoch", [0, 2])
def test_only_the_open_epoch_is_sealed(epoch: int) -> None:
    ledger = holding()
    before = ledger.statistics()
    with pytest.raises(SealError, match=f"seal\\({epoch}\\) while epoch 1 is open"):
        ledger.seal(epoch)
    assert ledger.statistics() == before


@pytest.mark.parametrize("state", ["closed", "open", "discarded"])
def test_only_a_holding_buffer_seals(state: str) -> None:
    ledger = Ledger(depth=1, limit_bytes=1)
    if state == "open":
        ledger.begin_open()
        ledger.end_open(opened=True)
    elif state == "discarded":
        ledger.discard()
    with pytest.raises(SealError, match=f"seal\\(1\\) while {state}"):
        ledger.seal(1)


def test_a_seal_beyond_the_depth_changes_nothing() -> None:
    ledger = holding(depth=2)
    for epoch in (1, 2):
        ledger.admit(10)
        ledger.seal(epoch)
    ledger.admit(10)
    before = ledger.statistics()
    with pytest.raises(SealError, match="depth=2"):
        ledger.seal(3)
    assert ledger.statistics() == before


def test_epochs_are_released_oldest_first() -> None:
    ledger = holding()
    for epoch in (1, 2):
        ledger.admit(10)
        ledger.seal(epoch)
    for epoch in (2, 3, 0):
        with pytest.raises(ReleaseError):
            ledger.begin_release(epoch)
    leave_all(ledger, 1, 10)
    leave_all(ledger, 2, 10)
    figures = ledger.statistics()
    assert (figures.released_items, figures.released_bytes, figures.sealed_epochs) == (2, 20, ())


def test_the_open_epoch_is_never_released() -> None:
    ledger = holding()
    ledger.admit(10)
    with pytest.raises(ReleaseError):
        ledger.begin_release(1)


def test_an_interrupted_release_leaves_the_rest_sealed() -> None:
    ledger = holding()
    ledger.admit(30, items=3)
    ledger.seal(1)
    ledger.begin_release(1)
    ledger.left(10, delivered=True)
    ledger.end_release(released=False)
    assert ledger.statistics().sealed_epochs == (1,)
    assert (ledger.oldest_items, ledger.held_bytes) == (2, 20)


def test_an_interrupted_release_of_an_empty_epoch_leaves_it_sealed() -> None:
    ledger = holding()
    ledger.seal(1)
    ledger.begin_release(1)
    ledger.end_release(released=False)
    assert ledger.statistics().sealed_epochs == (1,)


def test_what_the_outlet_refuses_is_dropped_and_not_released() -> None:
    ledger = holding()
    ledger.admit(10)
    ledger.seal(1)
    ledger.begin_release(1)
    ledger.left(10, delivered=False)
    ledger.end_release(released=True)
    figures = ledger.statistics(dropped_elsewhere_items=5)
    assert (figures.released_items, figures.dropped_items) == (0, 6)


def test_opening_lets_sealed_and_open_epochs_leave_in_order() -> None:
    ledger = holding()
    ledger.admit(10)
    ledger.seal(1)
    ledger.seal(2)
    ledger.admit(20)
    ledger.begin_open()
    with pytest.raises(SealError, match="open\\(\\) is under way"):
        ledger.seal(3)
    ledger.left(10, delivered=True)
    ledger.left(20, delivered=True)
    ledger.end_open(opened=True)
    figures = ledger.statistics()
    assert (figures.state, figures.open_epoch, figures.sealed_epochs) == (HoldState.OPEN, None, ())
    assert figures.released_bytes == 30


def test_an_interrupted_opening_goes_on_holding() -> None:
    ledger = holding()
    ledger.admit(10)
    ledger.seal(1)
    ledger.begin_open()
    ledger.end_open(opened=False)
    assert ledger.state is HoldState.HOLDING
    assert ledger.statistics().sealed_epochs == (1,)
    leave_all(ledger, 1, 10)


@pytest.mark.parametrize("epoch", [0, 1])
def test_hold_wants_an_epoch_that_was_never_sealed(epoch: int) -> None:
    ledger = holding()
    ledger.seal(1)
    ledger.begin_open()
    ledger.end_open(opened=True)
    with pytest.raises(HoldError, match="epochs start at 1 and rise"):
        ledger.hold(epoch)
    ledger.hold(2)


def test_hold_wants_a_closed_or_open_buffer() -> None:
    ledger = holding()
    with pytest.raises(HoldError, match="while holding"):
        ledger.hold(2)
    ledger.discard()
    with pytest.raises(HoldError, match="while discarded"):
        ledger.hold(2)


def test_hold_waits_for_no_opening() -> None:
    ledger = Ledger(depth=1, limit_bytes=1)
    ledger.begin_open()
    with pytest.raises(HoldError, match="under way"):
        ledger.hold(1)


def test_discard_is_for_ever() -> None:
    ledger = holding()
    ledger.admit(10)
    ledger.seal(1)
    ledger.admit(20)
    ledger.discard()
    ledger.discard()
    figures = ledger.statistics()
    assert (figures.state, figures.held_items, figures.held_bytes) == (HoldState.DISCARDED, 0, 0)
    assert (figures.dropped_items, figures.released_items, figures.peak_bytes) == (2, 0, 30)
    with pytest.raises(ReleaseError):
        ledger.begin_release(1)
    with pytest.raises(OpenError):
        ledger.begin_open()


def test_discard_ends_what_is_leaving() -> None:
    ledger = holding()
    ledger.admit(10)
    ledger.seal(1)
    ledger.begin_release(1)
    ledger.discard()
    with pytest.raises(ReleaseError, match="discarded during a release"):
        ledger.check_leaving()
    ledger.end_release(released=False)

    other = holding()
    other.begin_open()
    other.discard()
    with pytest.raises(OpenError, match="discarded during open"):
        other.check_leaving()
    other.end_open(opened=False)
    assert other.state is HoldState.DISCARDED


def test_announcing_needs_an_opening_first() -> None:
    ledger = holding()
    with pytest.raises(AnnounceError, match="while holding and not yet opened"):
        ledger.check_announce()
    ledger.begin_open()
    ledger.end_open(opened=True)
    ledger.check_announce()
    ledger.hold(2)
    ledger.check_announce()
    ledger.discard()
    with pytest.raises(AnnounceError, match="while discarded"):
        ledger.check_announce()


@pytest.mark.parametrize(
    ("size_bytes", "level"),
    [(0, Pressure.NONE), (49, Pressure.NONE), (50, Pressure.SOON), (99, Pressure.SOON), (100, Pressure.FULL)],
)
def test_levels_at_half_and_at_the_limit(size_bytes: int, level: Pressure) -> None:
    ledger = holding(limit_bytes=100)
    ledger.admit(size_bytes)
    assert ledger.pressure is level


def test_a_rise_is_told_once_and_again_after_a_fall() -> None:
    ledger = holding(limit_bytes=100)
    assert ledger.take_rise() is None
    ledger.admit(60)
    assert ledger.take_rise() is Pressure.SOON
    assert ledger.take_rise() is None
    ledger.admit(60)
    assert ledger.take_rise() is Pressure.FULL
    ledger.seal(1)
    ledger.begin_release(1)
    ledger.left(60, delivered=True)
    assert ledger.take_rise() is None
    ledger.left(60, delivered=True)
    ledger.end_release(released=True)
    ledger.admit(60)
    assert ledger.take_rise() is Pressure.SOON


class LedgerModel(RuleBasedStateMachine):
    """Any order of calls; the model is a list of (epoch, [sizes]) that a reader believes at a glance."""

    DEPTH = 2

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(depth=self.DEPTH, limit_bytes=500)
        self.state = HoldState.CLOSED
        self.sealed: list[tuple[int, list[int]]] = []
        self.current: list[int] = []
        self.epoch = 1
        self.sent: list[int] = []
        self.lost = 0

    @rule()
    def hold(self) -> None:
        if self.state in (HoldState.CLOSED, HoldState.OPEN):
            self.ledger.hold(self.epoch)
            self.state = HoldState.HOLDING
        else:
            with pytest.raises(HoldError):
                self.ledger.hold(self.epoch)

    @precondition(lambda self: self.state is HoldState.HOLDING)
    @rule(size_bytes=st.integers(1, 200))
    def emit(self, size_bytes: int) -> None:
        self.ledger.admit(size_bytes)
        self.current.append(size_bytes)

    @rule(offset=st.sampled_from([0, 0, 0, -1, 1]))
    def seal(self, offset: int) -> None:
        if self.state is HoldState.HOLDING and not offset and len(self.sealed) < self.DEPTH:
            self.ledger.seal(self.epoch)
            self.sealed.append((self.epoch, self.current))
            self.current = []
            self.epoch += 1
        else:
            with pytest.raises(SealError):
                self.ledger.seal(self.epoch + offset)

    @rule(offset=st.sampled_from([0, 0, 0, -1, 1]), stop_after=st.integers(0, 6))
    def release(self, offset: int, stop_after: int) -> None:
        epoch = (self.sealed[0][0] if self.sealed else self.epoch) + offset
        if not self.sealed or offset:
            with pytest.raises(ReleaseError):
                self.ledger.begin_release(epoch)
            return
        sizes = self.sealed[0][1]
        self.ledger.begin_release(epoch)
        for _ in range(min(stop_after, len(sizes))):
            self.ledger.left(sizes[0], delivered=True)
            self.sent.append(sizes.pop(0))
        self.ledger.end_release(released=not sizes)
        if not sizes:
            self.sealed.pop(0)

    @rule()
    def open(self) -> None:
        if self.state is HoldState.DISCARDED:
            with pytest.raises(OpenError):
                self.ledger.begin_open()
            return
        self.ledger.begin_open()
        for size_bytes in [*(size for _, sizes in self.sealed for size in sizes), *self.current]:
            self.ledger.left(size_bytes, delivered=True)
            self.sent.append(size_bytes)
        self.ledger.end_open(opened=True)
        self.sealed, self.current, self.state = [], [], HoldState.OPEN

    @precondition(lambda self: self.epoch > 2)
    @rule()
    def discard(self) -> None:
        self.ledger.discard()
        self.lost += len(self.current) + sum(len(sizes) for _, sizes in self.sealed)
        self.sealed, self.current, self.state = [], [], HoldState.DISCARDED

    @invariant()
    def the_figures_agree(self) -> None:
        figures = self.ledger.statistics()
        held = [*(size for _, sizes in self.sealed for size in sizes), *self.current]
        assert figures.state is self.state
        assert figures.sealed_epochs == tuple(epoch for epoch, _ in self.sealed)
        assert figures.open_epoch == (self.epoch if self.state is HoldState.HOLDING else None)
        assert (figures.held_items, figures.held_bytes) == (len(held), sum(held))
        assert (figures.released_items, figures.released_bytes) == (len(self.sent), sum(self.sent))
        assert figures.dropped_items == self.lost
        assert figures.peak_bytes >= figures.held_bytes


TestLedgerModel = LedgerModel.TestCase
