from __future__ import annotations

from diskbuf.arena import SLAB_BYTES_MIN, Arena

MIB = 1 << 20


def address(view: memoryview) -> int:
    return id(view.obj)


def test_slab_is_used_again_when_its_last_view_is_gone() -> None:
    arena = Arena(16 * MIB)
    payload = arena.take(100_000)
    assert (payload.nbytes, arena.slab_bytes) == (100_000, 1 << 17)
    payload[:5] = b"first"
    slab, part = address(payload), payload[2:4]
    del payload
    other = arena.take(100_000)
    assert address(other) != slab
    other[:5] = b"other"
    assert part == b"rs"
    del part
    again = arena.take(1 << 17)
    assert address(again) == slab
    assert arena.slab_bytes == 2 << 17


def test_sizes_do_not_mix() -> None:
    arena = Arena(16 * MIB)
    small = arena.take(SLAB_BYTES_MIN)
    large = arena.take(MIB + 1)
    assert memoryview(small.obj).nbytes == SLAB_BYTES_MIN
    assert memoryview(large.obj).nbytes == 2 * MIB
    del small, large
    assert arena.take(MIB).nbytes == MIB
    assert arena.slab_bytes == SLAB_BYTES_MIN + 2 * MIB + MIB


def test_what_is_beyond_the_limit_is_not_kept() -> None:
    arena = Arena(2 * MIB)
    held = [arena.take(MIB) for _ in range(5)]
    assert arena.slab_bytes == 2 * MIB
    assert len({address(view) for view in held}) == 5
    del held
    arena.take(MIB)
    assert arena.slab_bytes == 2 * MIB


def test_free_slabs_can_be_given_back() -> None:
    arena = Arena(16 * MIB)
    held = [arena.take(MIB) for _ in range(4)]
    kept = held[2][5:6]
    kept[:] = b"k"
    del held
    arena.drop_free()
    assert arena.slab_bytes == MIB
    assert kept == b"k"
    del kept
    arena.drop_free()
    assert arena.slab_bytes == 0
