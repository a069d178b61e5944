from __future__ import annotations

from diskbuf_fakes import FakeStore
from hypothesis import given
from hypothesis import strategies as st
from test_diskbuf_extents import DISK_BYTES, extents

from diskbuf.contract import Pressure
from diskbuf.extents import Extent, Kind
from diskbuf.overlay import PIECES_MAX, Overlay
from diskbuf.store import apply_extents


def read(overlay: Overlay, store: FakeStore, offset: int, length: int) -> bytes:
    plan = overlay.plan(offset, length)
    assert plan.length == length, "fewer pieces than one plan takes"
    if (whole := plan.whole()) is not None:
        return bytes(whole)
    target = memoryview(bytearray(length))
    if plan.gaps:
        store.read(*plan.span(target))
    plan.compose(target)
    return bytes(target)


@given(
    st.binary(min_size=DISK_BYTES, max_size=DISK_BYTES),
    st.lists(st.one_of(extents(), st.sampled_from(["seal", "release"])), max_size=40),
    st.integers(0, DISK_BYTES - 1),
    st.integers(1, DISK_BYTES),
)
def test_reads_see_every_write_and_the_store_only_whole_epochs(
    initial: bytes, steps: list[Extent | str], offset: int, length: int
) -> None:
    store = FakeStore(DISK_BYTES)
    store.image[:] = initial
    overlay = Overlay(limit_bytes=1 << 20)
    overlay.begin(1)
    disk = bytearray(initial)
    sealed_images: list[bytes] = []
    stored = initial
    length = min(length, DISK_BYTES - offset)
    for step in steps:
        if isinstance(step, Extent):
            overlay.put((step,), limited=False)
            disk[step.offset : step.end] = step.data if step.kind is Kind.DATA else bytes(step.length)
        elif step == "seal":
            overlay.seal()
            sealed_images.append(bytes(disk))
        elif (oldest := overlay.oldest()) is not None:
            assert apply_extents(store, oldest[1].extents, lambda: False)
            assert read(overlay, store, 0, DISK_BYTES) == disk
            overlay.retire_oldest()
            stored = sealed_images.pop(0)
        assert store.image == stored
        assert read(overlay, store, offset, length) == disk[offset : offset + length]
        assert read(overlay, store, 0, DISK_BYTES) == disk
        assert len(overlay.sealed_epochs) == len(sealed_images)


def test_accounts_for_all_epochs() -> None:
    overlay = Overlay(limit_bytes=4096)
    overlay.begin(7)
    overlay.put((Extent.of_data(0, bytes(1024)),), limited=True)
    assert overlay.pressure is Pressure.NONE
    overlay.seal()
    overlay.put((Extent.of_data(0, bytes(1024)),), limited=True)
    assert (overlay.held_items, overlay.held_bytes, overlay.pressure) == (2, 2048, Pressure.SOON)
    overlay.put((Extent.of_data(8192, bytes(2048)),), limited=True)
    assert overlay.pressure is Pressure.FULL
    overlay.retire_oldest()
    assert (overlay.held_items, overlay.held_bytes, overlay.peak_bytes) == (2, 3072, 4096)
    assert overlay.open_epoch == 8
    assert overlay.clear() == 2
    assert (overlay.held_items, overlay.held_bytes, overlay.sealed_epochs) == (0, 0, ())


def test_whole_held_read_copies_nothing() -> None:
    payload = bytearray(b"abcdefgh")
    overlay = Overlay(limit_bytes=4096)
    overlay.begin(1)
    overlay.put((Extent.of_data(100, payload),), limited=True)
    whole = overlay.plan(102, 4).whole()
    assert whole is not None
    assert whole.obj is payload
    assert bytes(whole) == b"cdef"


def test_plan_survives_release() -> None:
    overlay = Overlay(limit_bytes=4096)
    overlay.begin(1)
    overlay.put((Extent.of_data(0, b"held"),), limited=True)
    plan = overlay.plan(0, 8)
    overlay.seal()
    overlay.retire_oldest()
    target = memoryview(bytearray(8))
    plan.compose(target)
    assert bytes(target) == b"held\0\0\0\0"


def test_one_plan_is_bounded() -> None:
    overlay = Overlay(limit_bytes=1 << 20)
    overlay.begin(1)
    for place in range(200):
        overlay.put((Extent.of_data(place * 10, b"held"),), limited=True)
    overlay.seal()
    overlay.put((Extent.of_data(2, bytes(1000)),), limited=True)
    plan = overlay.plan(5, 5000)
    assert len(plan.pieces) <= 2 * PIECES_MAX
    assert (plan.offset, plan.length) == (5, PIECES_MAX * 10 + 5)
    assert (plan.pieces[0].length, plan.gaps) == (plan.length, ())
    ends = 5
    while ends < 5005:
        ends += overlay.plan(ends, 5005 - ends).length
    assert ends == 5005


def test_nothing_is_put_behind_the_change_that_reaches_the_limit() -> None:
    overlay = Overlay(limit_bytes=4096)
    overlay.begin(1)
    changes = [Extent.of_data(place * 2048, bytes(2048)) for place in range(4)]
    assert overlay.put(changes, limited=True) == 2
    assert (overlay.held_items, overlay.held_bytes, overlay.peak_bytes) == (2, 4096, 4096)
    assert overlay.put(changes, limited=False) == 4
    overlay.seal()
    overlay.retire_oldest()
    assert overlay.put([changes[0]] * 3, limited=True) == 3, "what gives way doesn't count"
    assert (overlay.held_items, overlay.held_bytes) == (1, 2048)
