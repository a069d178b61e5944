from __future__ import annotations

from diskbuf.arena import MISSES_A_SCAN, REGION_BYTES, SLAB_BYTES_MIN, Arena

MIB = 1 << 20


def address(view: memoryview) -> int:
    return id(view.obj)


def taken(arena: Arena, length: int) -> memoryview:
    slab = arena.take(length)
    assert slab is not None
    return slab


def test_slab_is_used_again_when_its_last_view_is_gone() -> None:
    arena = Arena(16 * MIB)
    payload = taken(arena, 100_000)
    assert (payload.nbytes, arena.slab_bytes) == (100_000, 1 << 17)
    payload[:5] = b"first"
    slab, part = address(payload), payload[2:4]
    del payload
    other = taken(arena, 100_000)
    assert address(other) != slab
    other[:5] = b"other"
    assert part == b"rs"
    del part
    again = taken(arena, 1 << 17)
    assert address(again) == slab
    assert arena.slab_bytes == 2 << 17


def test_sizes_do_not_mix() -> None:
    arena = Arena(16 * MIB)
    small = taken(arena, SLAB_BYTES_MIN)
    large = taken(arena, MIB + 1)
    assert memoryview(small.obj).nbytes == SLAB_BYTES_MIN
    assert memoryview(large.obj).nbytes == 2 * MIB
    del small, large
    assert taken(arena, MIB).nbytes == MIB
    assert arena.slab_bytes == SLAB_BYTES_MIN + 2 * MIB + MIB


def test_beyond_the_limit_there_is_nothing_until_something_is_free() -> None:
    arena = Arena(2 * MIB)
    held = [taken(arena, MIB) for _ in range(2)]
    assert arena.take(MIB) is None
    assert len({address(view) for view in held}) == 2
    del held[0]
    assert arena.take(MIB) is not None
    assert arena.slab_bytes == 2 * MIB


def test_at_the_limit_free_regions_of_other_sizes_are_given_back() -> None:
    """Or a burst of one size would take the arena from all others, for ever."""
    arena = Arena(8 * MIB)
    held = [taken(arena, MIB) for _ in range(8)]
    kept = held[2][5:6]
    kept[:] = b"k"
    assert arena.take(SLAB_BYTES_MIN) is None
    del held
    misses = 0
    while arena.take(SLAB_BYTES_MIN) is None:
        misses += 1
    assert misses == MISSES_A_SCAN, "slabs were all in use a moment ago"
    assert arena.slab_bytes == 2 * MIB + SLAB_BYTES_MIN, "the region with the slab in use stays"
    assert kept == b"k"
    again = [taken(arena, MIB) for _ in range(7)]
    assert all(address(view) != address(kept) for view in again[1:])
    assert kept == b"k"


def test_a_size_that_was_given_back_can_be_had_again() -> None:
    arena = Arena(8 * MIB)
    held = [taken(arena, MIB) for _ in range(8)]
    del held
    assert arena.take(SLAB_BYTES_MIN) is not None
    assert taken(arena, MIB).nbytes == MIB


def test_slabs_share_what_is_asked_of_the_kernel_but_no_byte() -> None:
    arena = Arena(64 * MIB)
    held = [
        taken(arena, size) for size in (SLAB_BYTES_MIN, MIB, REGION_BYTES, SLAB_BYTES_MIN, 2 * REGION_BYTES)
    ]
    for number, view in enumerate(held):
        view[:] = bytes([number]) * len(view)
    for number, view in enumerate(held):
        assert view == bytes([number]) * len(view)
