"""What every Store must do: a property for each sentence of `diskbuf.store.Store`.

A property gets a store of `SIZE` bytes that reads as zeros, to itself. It fails by an assertion.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

from diskbuf.store import Store

SIZE = 4 << 20
STEPS = 120
"""Random changes of a run: enough to meet each kind of edge many times over."""


def read(store: Store, offset: int, length: int) -> bytes:
    target = bytearray(length)
    store.read(offset, memoryview(target))
    return bytes(target)


def image_of(store: Store) -> bytes:
    return read(store, 0, store.size_bytes)


def allocated_bytes(store: Store) -> bytearray:
    """A byte for each of the store's: 1 if it may hold data, 0 if it is a hole; asked range by range."""
    known = bytearray()
    while len(known) < store.size_bytes:
        answer = store.allocation(len(known), store.size_bytes - len(known))
        assert answer, "an answer says something"
        assert all(allocation.length > 0 for allocation in answer)
        assert all((left.hole, left.zero) != (right.hole, right.zero) for left, right in pairwise(answer))
        for allocation in answer:
            known += (b"\0" if allocation.hole else b"\1") * allocation.length
    assert len(known) == store.size_bytes, "no more than what was asked for"
    return known


def it_says_what_it_is(store: Store) -> None:
    assert store.size_bytes == SIZE
    assert not store.read_only
    assert ":" in store.uri


def a_new_one_is_all_zeros(store: Store) -> None:
    assert image_of(store) == bytes(SIZE)


def writes_gather_in_place_exact_to_the_byte(store: Store) -> None:
    store.write(3, [b"ab", memoryview(b"cde"), bytearray(b"f")])
    store.sync()
    assert read(store, 0, 10) == b"\0\0\0abcdef\0"
    store.write(SIZE - 1, [b"z"])
    assert read(store, SIZE - 3, 3) == b"\0\0z"
    assert image_of(store) == b"\0\0\0abcdef" + bytes(SIZE - 10) + b"z"


def more_pieces_than_a_system_call_takes(store: Store) -> None:
    pieces = [bytes([index % 251 + 1]) * 3 for index in range(3000)]
    store.write(4095, pieces)
    assert read(store, 4094, 9002) == b"\0" + b"".join(pieces) + b"\0"


def the_whole_disk_at_once(store: Store) -> None:
    content = random.Random(1).randbytes(SIZE)
    store.write(0, [content[: SIZE // 3], content[SIZE // 3 :]])
    assert image_of(store) == content
    store.zero(0, SIZE, punch_hole=True)
    assert image_of(store) == bytes(SIZE)


def zeros_are_exact_to_the_byte_in_either_manner(store: Store) -> None:
    for punch_hole in (True, False):
        store.write(0, [b"\xaa" * SIZE])
        for start, end in ((4097, 3 << 20), (SIZE - 70_001, SIZE), (0, 1), (8191, 8193), (70_000, 140_000)):
            store.zero(start, end - start, punch_hole=punch_hole)
            assert not any(read(store, start, end - start))
        assert read(store, 0, 4098) == b"\0" + b"\xaa" * 4096 + b"\0"
        assert read(store, (3 << 20) - 1, 2) == b"\0\xaa"
        assert read(store, SIZE - 70_002, 2) == b"\xaa\0"


def repeating_a_change_changes_nothing_more(store: Store) -> None:
    for _ in range(2):
        store.write(1000, [b"again" * 1000])
        store.zero(2000, 100, punch_hole=True)
    content = bytearray(SIZE)
    content[1000:6000] = b"again" * 1000
    content[2000:2100] = bytes(100)
    assert image_of(store) == content


def all_ways_to_read_agree(store: Store) -> None:
    store.write(100, [b"cached"])
    target = bytearray(8)
    if store.read_cached(99, memoryview(target)):
        assert target == b"\0cached\0"
    view = store.read_view(99, 8)
    if view is not None:
        assert view == b"\0cached\0"
        assert view.readonly
        store.write(100, [b"CACHED"])
        assert view == b"\0CACHED\0"


def what_holds_data_is_never_called_a_hole(store: Store) -> None:
    generator = random.Random(2)
    for _ in range(STEPS):
        offset = generator.randrange(SIZE)
        length = min(generator.choice((1, 511, 4096, 65536, 300_000)), SIZE - offset)
        if generator.random() < 0.5:
            store.write(offset, [b"\xff" * length])
        else:
            store.zero(offset, length, punch_hole=generator.random() < 0.7)
    content, allocated = image_of(store), allocated_bytes(store)
    assert not any(byte for byte, known in zip(content, allocated, strict=True) if not known)


def zeros_are_told_only_where_they_are(store: Store) -> None:
    store.write(1 << 20, [b"\xff" * 65536])
    store.zero((1 << 20) + 65536, 65536, punch_hole=False)
    for offset, length in ((0, SIZE), ((1 << 20) - 7, 100), ((1 << 20) + 65530, 70_000), (5, 1)):
        position = offset
        for allocation in store.allocation(offset, length):
            if allocation.zero:
                assert not any(read(store, position, allocation.length))
            position += allocation.length
        assert position <= offset + length


def random_changes_are_those_of_a_plain_image(store: Store) -> None:
    generator = random.Random(3)
    image = bytearray(SIZE)
    for _ in range(STEPS):
        offset = generator.randrange(SIZE)
        length = min(generator.choice((1, 3, 512, 4096, 5000, 65537, 1 << 20)), SIZE - offset)
        match generator.randrange(4):
            case 0 | 1:
                content = generator.randbytes(length)
                cut = generator.randrange(length + 1)
                store.write(offset, [piece for piece in (content[:cut], content[cut:]) if piece])
                image[offset : offset + length] = content
            case 2:
                store.zero(offset, length, punch_hole=generator.random() < 0.5)
                image[offset : offset + length] = bytes(length)
            case _:
                assert read(store, offset, length) == image[offset : offset + length]
    store.sync()
    assert image_of(store) == image


def threads_that_change_different_bytes_do_not_disturb_each_other(store: Store) -> None:
    threads = 4

    def work(thread: int) -> None:
        mine = bytes([thread + 1])
        for round_ in range(40):
            for index in range(thread, 64, threads):  # neighbours within blocks, and chunks
                store.write(index * 100 + round_, [mine])
            offset = (1 << 20) + thread * 200_000
            store.write(offset, [mine * 100_000])
            assert read(store, offset, 100_000) == mine * 100_000
            store.zero(offset + 100_000, 50_000, punch_hole=True)
            if round_ % 10 == 0:
                store.sync()
                store.allocation(0, SIZE)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    expected = bytearray(SIZE)
    for index in range(64):
        expected[index * 100 : index * 100 + 40] = bytes([index % threads + 1]) * 40
    for thread in range(threads):
        start = (1 << 20) + thread * 200_000
        expected[start : start + 100_000] = bytes([thread + 1]) * 100_000
    assert image_of(store) == expected


def closing_twice_is_closing(store: Store) -> None:
    store.close()
    store.close()


Property = Callable[[Store], None]

PROPERTIES: list[Property] = [
    it_says_what_it_is,
    a_new_one_is_all_zeros,
    writes_gather_in_place_exact_to_the_byte,
    more_pieces_than_a_system_call_takes,
    the_whole_disk_at_once,
    zeros_are_exact_to_the_byte_in_either_manner,
    repeating_a_change_changes_nothing_more,
    all_ways_to_read_agree,
    what_holds_data_is_never_called_a_hole,
    zeros_are_told_only_where_they_are,
    random_changes_are_those_of_a_plain_image,
    threads_that_change_different_bytes_do_not_disturb_each_other,
    closing_twice_is_closing,
]
