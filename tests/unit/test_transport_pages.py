"""The page codec: what goes in comes out, and nothing else is accepted."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import PagesError
from transport.frames import MAX_PAYLOAD_BYTES
from transport.pages import (
    BATCH_PAGES,
    MAX_PAGE_COUNT,
    PAGE_BYTES,
    Indices,
    PageEncoder,
    Pages,
    announced_pages,
    apply_pages,
    decode_pages_untrusted,
)

_repeatable = settings(derandomize=True, deadline=None, max_examples=60)


def _indices(*indices: int) -> Indices:
    return np.array(indices, np.int64)


def _noise(seed: int, count: int) -> Pages:
    return np.random.default_rng(seed).integers(0, 256, (count, PAGE_BYTES), dtype=np.uint8)


def _receive(payloads: Sequence[bytes], ram: Pages) -> None:
    for payload in payloads:
        assert len(payload) <= MAX_PAYLOAD_BYTES
        apply_pages(decode_pages_untrusted(payload, len(ram)), ram)


def _mutate(rng: np.random.Generator, ram: Pages) -> Indices:
    """One epoch of a guest: some pages rewritten, some touched, some zeroed, some dirty but the same."""
    count = int(rng.integers(0, len(ram) + 1))
    indices = np.sort(rng.choice(len(ram), count, replace=False)).astype(np.int64)
    for index in indices:
        match int(rng.integers(4)):
            case 0:
                ram[index] = rng.integers(0, 256, PAGE_BYTES, dtype=np.uint8)
            case 1:
                start = int(rng.integers(PAGE_BYTES))
                ram[index, start : start + 9] ^= np.uint8(rng.integers(256))
            case 2:
                ram[index] = 0
    return indices


@_repeatable
@given(seed=st.integers(0, 2**32 - 1), page_count=st.integers(1, 40), fulls=st.integers(0, 3))
def test_ram_is_reproduced_over_many_epochs(seed: int, page_count: int, fulls: int) -> None:
    rng = np.random.default_rng(seed)
    encoder = PageEncoder(page_count)
    ram = np.zeros((page_count, PAGE_BYTES), np.uint8)
    standby = ram.copy()
    for epoch in range(12):
        indices = _mutate(rng, ram)
        encode = encoder.encode_full if epoch < fulls else encoder.encode_delta
        _receive(encode(indices, ram[indices]), standby)
        assert np.array_equal(standby, ram)


def test_full_replaces_whatever_was_there() -> None:
    encoder = PageEncoder(3)
    pages = _noise(1, 3)
    pages[1] = 0
    standby = _noise(2, 3)
    _receive(encoder.encode_full(np.arange(3), pages), standby)
    assert np.array_equal(standby, pages)
    pages[2, 17] ^= 1
    _receive(encoder.encode_delta(_indices(2), pages[2:]), standby)
    assert np.array_equal(standby, pages)


@pytest.mark.parametrize("count", [BATCH_PAGES - 1, BATCH_PAGES, BATCH_PAGES + 1, 2 * BATCH_PAGES + 5])
def test_large_batches_are_split(count: int) -> None:
    encoder = PageEncoder(count)
    ram = _noise(count, count)
    standby = np.zeros_like(ram)
    payloads = encoder.encode_full(np.arange(count), ram)
    assert len(payloads) == -(-count // BATCH_PAGES)
    _receive(payloads, standby)
    ram[:, 100] += 1
    payloads = encoder.encode_delta(np.arange(count), ram)
    _receive(payloads, standby)
    assert np.array_equal(standby, ram)


@pytest.mark.parametrize("count", [1, 3, BATCH_PAGES])
def test_a_payload_says_how_many_pages_it_has(count: int) -> None:
    pages = np.arange(count * PAGE_BYTES, dtype=np.uint32).view(np.uint8)[: count * PAGE_BYTES]
    pages = pages.reshape(count, PAGE_BYTES).copy()
    pages[0] = 0
    (payload,) = PageEncoder(BATCH_PAGES).encode_full(np.arange(count), pages)
    assert announced_pages(payload) == count
    assert decode_pages_untrusted(payload, BATCH_PAGES).page_count == count


@pytest.mark.parametrize("payload", [b"", bytes(11), b"\xff" * 40])
def test_what_is_no_payload_announces_no_more_pages_than_a_batch(payload: bytes) -> None:
    assert announced_pages(payload) == (BATCH_PAGES if len(payload) > 11 else 0)


def test_nothing_to_say_needs_no_payload() -> None:
    encoder = PageEncoder(8)
    none = np.empty((0, PAGE_BYTES), np.uint8)
    assert encoder.encode_full(_indices(), none) == []
    assert encoder.encode_delta(_indices(), none) == []
    pages = _noise(3, 2)
    assert encoder.encode_delta(_indices(1, 5), pages)
    assert encoder.encode_delta(_indices(1, 5), pages) == []


def test_zero_pages_are_flags_and_unchanged_ones_omitted() -> None:
    encoder = PageEncoder(6)
    pages = _noise(4, 4)
    encoder.encode_full(_indices(0, 1, 2, 3), pages)
    now = pages.copy()
    now[0] = 0
    now[2, 5] ^= 3
    offered = np.concatenate([now, np.zeros((1, PAGE_BYTES), np.uint8)])
    (payload,) = encoder.encode_delta(_indices(0, 1, 2, 3, 4), offered)
    batch = decode_pages_untrusted(payload, 6)
    assert batch.delta_indices.tolist() == [2]
    assert np.flatnonzero(batch.deltas[0]).tolist() == [5]
    assert batch.raw_indices.tolist() == []
    assert batch.zero_indices.tolist() == [0]
    assert len(payload) < 100


@pytest.mark.parametrize(("changed_words", "goes_raw"), [(1, False), (192, False), (193, True), (512, True)])
def test_page_that_changed_much_goes_as_it_is(changed_words: int, goes_raw: bool) -> None:
    encoder = PageEncoder(3)
    pages = _noise(5, 3)
    encoder.encode_full(np.arange(3), pages)
    standby = pages.copy()
    pages[1, : changed_words * 8 : 8] ^= 1
    (payload,) = encoder.encode_delta(_indices(1), pages[1:2])
    batch = decode_pages_untrusted(payload, 3)
    assert batch.raw_indices.tolist() == ([1] if goes_raw else [])
    assert batch.delta_indices.tolist() == ([] if goes_raw else [1])
    _receive([payload], standby)
    assert np.array_equal(standby, pages)


@pytest.mark.parametrize("position", [0, 7, 8, 4095])
def test_page_with_one_byte_set_is_not_zero(position: int) -> None:
    page = np.zeros((1, PAGE_BYTES), np.uint8)
    page[0, position] = 1
    for payloads in (
        PageEncoder(1).encode_full(_indices(0), page),
        PageEncoder(1).encode_delta(_indices(0), page),
    ):
        standby = np.zeros_like(page)
        _receive(payloads, standby)
        assert np.array_equal(standby, page)


def test_input_is_left_alone_and_may_be_strided() -> None:
    pages = _noise(5, 6)
    before = pages.copy()
    standby = np.zeros((3, PAGE_BYTES), np.uint8)
    _receive(PageEncoder(3).encode_delta(np.arange(3), pages[::2]), standby)
    assert np.array_equal(pages, before)
    assert np.array_equal(standby, pages[::2])


def test_statistics_add_up() -> None:
    encoder = PageEncoder(4)
    pages = _noise(6, 4)
    pages[3] = 0
    wire_bytes = sum(map(len, encoder.encode_full(np.arange(4), pages)))
    pages[0, 0] ^= 1
    pages[1] = 0
    wire_bytes += sum(map(len, encoder.encode_delta(np.arange(4), pages)))
    statistics = encoder.statistics()
    assert (statistics.pages, statistics.zero, statistics.unchanged) == (8, 2, 2)
    assert statistics.raw_bytes == 8 * PAGE_BYTES
    assert statistics.wire_bytes == wire_bytes


@pytest.mark.parametrize(
    ("indices", "pages", "message"),
    [
        (_indices(1, 0), _noise(0, 2), "from 1 to 0"),
        (_indices(1, 1), _noise(0, 2), "ascend strictly"),
        (_indices(-1, 1), _noise(0, 2), "from -1"),
        (_indices(1, 4), _noise(0, 2), "within the 4 pages"),
        (np.arange(2, dtype=np.int32), _noise(0, 2), "int32"),
        (np.zeros((2, 1), np.int64), _noise(0, 2), "must be int64"),
        (_indices(0, 1), _noise(0, 3), r"\[3, 4096\]"),
        (_indices(0), np.zeros((1, 512), np.uint64), "uint64"),
    ],
)
def test_wrong_arguments_change_nothing(indices: Any, pages: Any, message: str) -> None:
    encoder = PageEncoder(4)
    for encode in (encoder.encode_full, encoder.encode_delta):
        with pytest.raises(ValueError, match=message):
            encode(indices, pages)
    assert encoder.statistics().pages == 0
    assert encoder.encode_delta(np.arange(4), np.zeros((4, PAGE_BYTES), np.uint8)) == []


@pytest.mark.parametrize(("page_count", "level"), [(0, 1), (MAX_PAGE_COUNT + 1, 1), (1, 0), (1, 20)])
def test_encoder_refuses_impossible_parameters(page_count: int, level: int) -> None:
    with pytest.raises(ValueError, match="is outside"):
        PageEncoder(page_count, level=level)


def _payload(
    *,
    deltas: Sequence[int] = (0,),
    raw: Sequence[int] = (2,),
    zero: Sequence[int] = (),
    counts: tuple[int, int, int] | None = None,
    compressed: bytes | None = None,
) -> bytes:
    """A payload made by hand, so that each part can be wrong alone; its contents are two pages of noise."""
    body = _noise(9, 2).tobytes() + np.array([*deltas, *raw, *zero], "<u4").tobytes()
    header = struct.pack("<III", *(counts or (len(deltas), len(raw), len(zero))))
    return header + (zstandard.compress(body, 1) if compressed is None else compressed)


_BOMB = zstandard.compress(bytes(256 * 1024 * 1024), 1)
_UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(_noise(9, 2).tobytes() + bytes(8))
_SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


def _lying_bomb() -> bytes:
    """256 MiB of zeros behind a header that announces what the counts require."""
    claimed = 2 * PAGE_BYTES + 2 * 4
    blocks = _BOMB[zstandard.frame_header_size(_BOMB) :]
    # Magic, descriptor (single segment, 4-byte content size), size: RFC 8878, section 3.1.1.1.
    return struct.pack("<IBI", 0xFD2FB528, 0b1010_0000, claimed) + blocks


def test_handmade_payload_is_accepted() -> None:
    batch = decode_pages_untrusted(_payload(deltas=(1,), raw=(0,), zero=(2,)), 3)
    assert batch.delta_indices.tolist() == [1]
    assert batch.raw_indices.tolist() == [0]
    assert batch.zero_indices.tolist() == [2]
    assert np.array_equal(batch.deltas, _noise(9, 2)[:1])
    assert np.array_equal(batch.raw, _noise(9, 2)[1:])


_MANY = 2**32 - 1


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "of 0 bytes"),
        (_payload()[:11], "of 11 bytes"),
        (_payload()[:12], "zstd"),
        (_payload(counts=(0, 0, 0)), "of 0 pages"),
        (_payload(counts=(1, 1, BATCH_PAGES - 1)), f"of {BATCH_PAGES + 1} pages"),
        (_payload(counts=(_MANY, _MANY, _MANY)), "of 12884901885 pages"),
        (_payload(counts=(1, 2, 0)), "announces 8200 bytes: its counts require 12300"),
        (_payload(counts=(1, 0, 0)), "announces 8200 bytes: its counts require 4100"),
        (_payload(counts=(1, 0, 1)), "announces 8200 bytes: its counts require 4104"),
        (_payload(deltas=(2, 0), raw=()), "ascend"),
        (_payload(deltas=(2, 2), raw=()), "twice"),
        (_payload(deltas=(), raw=(2, 1)), "ascend"),
        (_payload(zero=(1, 1)), "twice"),
        (_payload(deltas=(1,), raw=(1,)), "twice"),
        (_payload(zero=(2,)), "twice"),
        (_payload(zero=(0,)), "twice"),
        (_payload(raw=(3,)), "index 3: the guest has 3 pages"),
        (_payload(deltas=(_MANY,)), f"index {_MANY}"),
        (_payload(zero=(3,)), "index 3: the guest has 3 pages"),
        (_payload(compressed=_BOMB), "announces 268435456 bytes"),
        (_payload(compressed=_lying_bomb()), "can't decompress"),
        (_payload(compressed=_UNSIZED), "announces -1 bytes"),
        (_payload(compressed=_SKIPPABLE), "zstd"),
        (_payload(compressed=b"not zstd at all"), "can't decompress"),
        (_payload() + b"tail", "can't decompress"),
        (_payload()[:-1], "can't decompress"),
    ],
)
def test_malformed_payloads_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(PagesError, match=message):
        decode_pages_untrusted(payload, 3)


@_repeatable
@given(data=st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    page = np.zeros((1, PAGE_BYTES), np.uint8)
    page[0, :64] = np.arange(64)
    (payload,) = PageEncoder(4).encode_delta(_indices(1), page)
    damaged = bytearray(payload)
    for position in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        damaged[position] ^= data.draw(st.integers(1, 255))
    try:
        batch = decode_pages_untrusted(damaged, 4)
    except PagesError:
        return
    apply_pages(batch, np.zeros((4, PAGE_BYTES), np.uint8))


@_repeatable
@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(PagesError):
        decode_pages_untrusted(garbage, 1 << 20)
    with pytest.raises(PagesError):
        decode_pages_untrusted(_payload(compressed=garbage), 1 << 20)
