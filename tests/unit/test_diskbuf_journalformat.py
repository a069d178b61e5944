import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskbuf.errors import JournalFormatError, JournalOpenError, JournalVersionError
from diskbuf.extents import Extent, Kind
from diskbuf.journalformat import (
    BLOCK_BYTES,
    HEADER_BYTES,
    RING_OFFSET,
    Superblock,
    decode_record_header_untrusted,
    decode_superblocks_untrusted,
    encode_epoch,
    encode_record,
    encode_superblock,
    ring_spans,
    round_up,
    split_parts,
)

JOURNAL_ID = bytes(range(16))
SUPERBLOCK = Superblock(JOURNAL_ID, 6, "file:/disk.img", 1 << 30, 16 * BLOCK_BYTES, 5 * BLOCK_BYTES, 77)
EXTENTS = (Extent.of_data(0, b"payload"), Extent(512, 4096, Kind.HOLE))


def superblocks(first: Superblock, second: Superblock) -> bytearray:
    return bytearray(encode_superblock(first) + encode_superblock(second))


def test_superblock_round_trip() -> None:
    block = encode_superblock(SUPERBLOCK)
    assert len(block) == BLOCK_BYTES
    assert decode_superblocks_untrusted(block + bytes(BLOCK_BYTES), "j") == SUPERBLOCK


def test_generations_take_turns_and_the_higher_one_counts() -> None:
    newer = replace(SUPERBLOCK, generation=7, tail=6 * BLOCK_BYTES)
    assert {SUPERBLOCK.slot_offset, newer.slot_offset} == {0, BLOCK_BYTES}
    assert decode_superblocks_untrusted(superblocks(SUPERBLOCK, newer), "j") == newer
    assert decode_superblocks_untrusted(superblocks(newer, SUPERBLOCK), "j") == newer


@given(st.integers(0, BLOCK_BYTES - 1), st.integers(1, 255))
def test_a_damaged_superblock_leaves_the_other(place: int, difference: int) -> None:
    newer = replace(SUPERBLOCK, generation=7)
    blocks = superblocks(SUPERBLOCK, newer)
    blocks[BLOCK_BYTES + place] ^= difference
    assert decode_superblocks_untrusted(blocks, "j") == SUPERBLOCK


@given(st.binary(max_size=200).map(lambda head: head.ljust(RING_OFFSET, head[-1:] or b"\0")))
def test_garbage_is_no_journal(blocks: bytes) -> None:
    with pytest.raises(JournalFormatError, match="journal j is not a journal"):
        decode_superblocks_untrusted(blocks, "j")


def test_a_later_version_is_refused_by_both_numbers() -> None:
    block = bytearray(encode_superblock(SUPERBLOCK))
    block[8:12] = (9).to_bytes(4, "little")
    block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
    with pytest.raises(JournalVersionError, match="version 9, this program knows 1"):
        decode_superblocks_untrusted(bytes(block) + encode_superblock(SUPERBLOCK), "j")


def test_a_uri_that_does_not_fit_is_refused() -> None:
    with pytest.raises(JournalOpenError, match="has 5000 bytes"):
        encode_superblock(replace(SUPERBLOCK, store_uri="x" * 5000))


def test_record_is_whole_blocks_and_its_payload_views() -> None:
    payload = bytearray(b"data" * 2000)
    encoded = encode_epoch(3, (Extent.of_data(0, payload),))
    header, parts = encode_record(JOURNAL_ID, 9, 2 * BLOCK_BYTES, encoded)
    assert sum(map(len, parts)) == encoded.record_bytes == header.end - header.position
    assert encoded.record_bytes % BLOCK_BYTES == 0
    assert any(isinstance(part, memoryview) and part.obj is payload for part in parts)
    data = b"".join(parts)
    assert decode_record_header_untrusted(data, JOURNAL_ID) == header
    assert zlib.crc32(data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]) == header.payload_checksum


@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_damaged_record_header_is_none(place: int, difference: int) -> None:
    _, parts = encode_record(JOURNAL_ID, 9, 0, encode_epoch(3, EXTENTS))
    data = bytearray(b"".join(parts))
    data[place] ^= difference
    assert decode_record_header_untrusted(data, JOURNAL_ID) is None


def test_a_record_of_another_journal_is_none() -> None:
    _, parts = encode_record(JOURNAL_ID, 9, 0, encode_epoch(3, EXTENTS))
    assert decode_record_header_untrusted(b"".join(parts), bytes(16)) is None


@given(st.integers(0, 1 << 40), st.integers(4, 64).map(lambda blocks: blocks * BLOCK_BYTES), st.data())
def test_spans_cover_the_ring_once(position: int, capacity: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, capacity))
    places = [
        offset + index - RING_OFFSET
        for offset, count in ring_spans(position, length, capacity)
        for index in (0, count - 1)
    ]
    assert places[0] == position % capacity
    assert places[-1] == (position + length - 1) % capacity
    assert all(0 <= place < capacity for place in places)
    assert sum(count for _, count in ring_spans(position, length, capacity)) == length


@given(st.lists(st.binary(max_size=8), max_size=6), st.integers(0, 60))
def test_split_parts_keeps_every_byte(parts: list[bytes], count: int) -> None:
    before, after = split_parts(parts, count)
    whole = b"".join(parts)
    assert (b"".join(before), b"".join(after)) == (whole[:count], whole[count:])


def test_round_up() -> None:
    assert [round_up(length) for length in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
