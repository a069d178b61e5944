"""Guest pages on their way to the secondary: a delta against the last version sent, and zstd.

The payload of a page frame is a header of 12 bytes, little-endian, and one zstd frame (RFC 8878):

    offset  size  field
         0     4  kind           0 RAW: contents replace the page; 1 DELTA: contents are XORed into it
         4     4  page_count     pages in this batch, 1 to BATCH_PAGES
         8     4  content_count  how many of them have contents; the others became zero
        12        zstd frame, with its content size, of
                      contents   content_count × 4096 bytes
                      entries    page_count × 4 bytes: page index, bit 31 set if the page became zero

Entries ascend strictly by index; contents belong, in order, to the entries without the zero bit. Contents
come first so that both lie aligned where they are made.

Both ends start from pages of zeros. Everything here is arithmetic on whole arrays, and numpy and zstd let go
of the interpreter lock meanwhile: call it from worker threads.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import zstandard

from transport.errors import PagesError
from transport.frames import BytesLike

PAGE_BYTES: Final = 4096

# 4 MiB of contents: large enough that the cost of a frame vanishes, and, incompressible, half of the largest
# payload a frame may have.
BATCH_PAGES: Final = 1024

# An index has 31 bits, which is 8 TiB of RAM.
MAX_PAGE_COUNT: Final = 1 << 31

_HEADER: Final = struct.Struct("<III")
_ENTRY: Final = np.dtype("<u4")
_ZERO_BIT: Final = np.uint32(1 << 31)
_INDEX_MASK: Final = np.uint32(_ZERO_BIT - 1)
_WORD_BYTES: Final = 8
_PAGE_WORDS: Final = PAGE_BYTES // _WORD_BYTES

# The window is what a decompressor must allocate. The power of two above the largest batch is the most that a
# compressor can have had a use for.
_MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024

Indices: TypeAlias = npt.NDArray[np.int64]
Pages: TypeAlias = npt.NDArray[np.uint8]
_Words: TypeAlias = npt.NDArray[np.uint64]
_Flags: TypeAlias = npt.NDArray[np.bool_]


class PageKind(IntEnum):
    """How a batch's contents combine with the page that is there. The numbers are the protocol."""

    RAW = 0
    DELTA = 1


@dataclass(frozen=True, slots=True)
class PageStatistics:
    """Totals of one encoder: `pages` offered, of these `unchanged` (omitted) and `zero` (only flagged)."""

    pages: int
    unchanged: int
    zero: int
    raw_bytes: int
    wire_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class PageBatch:
    """A decoded and validated batch: nothing in it can fail when it is applied.

    `indices` int64[n], ascending, with `contents` uint8[n, 4096]; `zero_indices` int64[m], ascending. No
    index is in both, and all are below the page count that the batch was decoded for.
    """

    kind: PageKind
    indices: Indices
    contents: Pages
    zero_indices: Indices


class PageEncoder:
    """Encodes pages against its *shadow*, the last version of each page that it encoded.

    A payload that was encoded must reach the peer before any later one, or the shadow is no longer what the
    peer has: a session that loses one starts over with a new encoder. One call at a time.
    """

    def __init__(self, page_count: int, *, level: int = 1) -> None:
        """`page_count` pages, all zero to begin with; `level` is zstd's, 1 (fast) to 19 (small)."""
        if not 0 < page_count <= MAX_PAGE_COUNT:
            raise ValueError(f"page_count {page_count} is outside 1 to {MAX_PAGE_COUNT}")
        if not 1 <= level <= 19:
            raise ValueError(f"level {level} is outside zstd's 1 to 19")
        self._shadow: _Words = np.zeros((page_count, _PAGE_WORDS), np.uint64)
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
        self._scratch: Pages = np.empty(BATCH_PAGES * (PAGE_BYTES + _ENTRY.itemsize), np.uint8)
        self._pages = 0
        self._unchanged = 0
        self._zero = 0
        self._wire_bytes = 0

    def statistics(self) -> PageStatistics:
        """Totals since construction; to be read between calls."""
        return PageStatistics(
            pages=self._pages,
            unchanged=self._unchanged,
            zero=self._zero,
            raw_bytes=self._pages * PAGE_BYTES,
            wire_bytes=self._wire_bytes,
        )

    def encode_full(self, indices: Indices, pages: Pages) -> list[bytes]:
        """RAW payloads that say what the pages are, whatever the peer had before.

        `indices` int64[n] strictly ascending; `pages` uint8[n, 4096], a copy that nobody writes to meanwhile
        (never the guest's memory itself: the shadow would keep what was not sent). Raises `ValueError`, and
        changes nothing, for anything else. No pages, no payloads.
        """
        words = self._checked(indices, pages)
        return [
            self._encode_raw(indices[start : start + BATCH_PAGES], words[start : start + BATCH_PAGES])
            for start in range(0, len(indices), BATCH_PAGES)
        ]

    def encode_delta(self, indices: Indices, pages: Pages) -> list[bytes]:
        """DELTA payloads that say how the pages differ from the shadow. Arguments as for `encode_full`.

        A page equal to its shadow is omitted; if all are, there are no payloads.
        """
        words = self._checked(indices, pages)
        payloads = (
            self._encode_xor(indices[start : start + BATCH_PAGES], words[start : start + BATCH_PAGES])
            for start in range(0, len(indices), BATCH_PAGES)
        )
        return [payload for payload in payloads if payload is not None]

    def _checked(self, indices: Indices, pages: Pages) -> _Words:
        count = len(indices)
        if indices.dtype != np.int64 or indices.ndim != 1:
            raise ValueError(f"indices are {indices.dtype}{list(indices.shape)}: they must be int64[n]")
        if pages.dtype != np.uint8 or pages.shape != (count, PAGE_BYTES):
            raise ValueError(
                f"pages are {pages.dtype}{list(pages.shape)}: they must be uint8[{count}, {PAGE_BYTES}]"
            )
        if count and (indices[0] < 0 or indices[-1] >= len(self._shadow) or (np.diff(indices) <= 0).any()):
            raise ValueError(
                f"indices from {indices[0]} to {indices[-1]} must ascend strictly "
                f"within the {len(self._shadow)} pages of the guest"
            )
        return np.ascontiguousarray(pages).view(np.uint64)

    def _encode_raw(self, indices: Indices, words: _Words) -> bytes:
        zero = _zero_pages(words)
        kept = np.flatnonzero(~zero)
        np.take(words, kept, axis=0, out=self._scratch_words(len(kept)), mode="clip")
        self._shadow[indices] = words
        self._pages += len(indices)
        return self._payload(PageKind.RAW, indices, zero, len(kept))

    def _encode_xor(self, indices: Indices, words: _Words) -> bytes | None:
        delta = self._scratch_words(len(indices))
        # "clip" spares numpy a copy of the output; the indices have been checked.
        np.take(self._shadow, indices, axis=0, out=delta, mode="clip")
        np.bitwise_xor(delta, words, out=delta)
        changed = np.bitwise_or.reduce(delta, axis=1) != 0
        zero = _zero_pages(words)
        self._pages += len(indices)
        kept = np.flatnonzero(changed & ~zero)
        if len(kept) < len(indices):
            delta[: len(kept)] = delta[kept]
            self._unchanged += len(indices) - int(np.count_nonzero(changed))
            indices, words, zero = indices[changed], words[changed], zero[changed]
        if not len(indices):
            return None
        self._shadow[indices] = words
        return self._payload(PageKind.DELTA, indices, zero, len(kept))

    def _scratch_words(self, count: int) -> _Words:
        return self._scratch[: count * PAGE_BYTES].view(np.uint64).reshape(count, _PAGE_WORDS)

    def _payload(self, kind: PageKind, indices: Indices, zero: _Flags, content_count: int) -> bytes:
        contents_bytes = content_count * PAGE_BYTES
        body = self._scratch[: contents_bytes + len(indices) * _ENTRY.itemsize]
        entries = body[contents_bytes:].view(_ENTRY)
        entries[:] = indices
        entries[zero] |= _ZERO_BIT
        header = _HEADER.pack(kind, len(indices), content_count)
        payload: bytes = header + self._compressor.compress(body.data)
        self._zero += len(indices) - content_count
        self._wire_bytes += len(payload)
        return payload


def decode_pages_untrusted(payload: BytesLike, page_count: int) -> PageBatch:
    """The batch in `payload`, for a guest of `page_count` pages; raises `PagesError` for anything malformed.

    Allocates no more than the largest batch needs, whatever the payload claims.
    """
    if len(payload) < _HEADER.size:
        raise PagesError(f"page batch of {len(payload)} bytes: a header alone has {_HEADER.size}")
    kind_number, entry_count, content_count = _HEADER.unpack_from(payload)
    try:
        kind = PageKind(kind_number)
    except ValueError:
        raise PagesError(f"page batch kind {kind_number}: must be 0 (RAW) or 1 (DELTA)") from None
    if not 1 <= entry_count <= BATCH_PAGES:
        raise PagesError(f"page batch of page_count {entry_count}: must be 1 to {BATCH_PAGES}")
    if content_count > entry_count:
        raise PagesError(f"page batch with content_count {content_count} over its page_count {entry_count}")
    contents_bytes = content_count * PAGE_BYTES
    body_bytes = contents_bytes + entry_count * _ENTRY.itemsize
    body = _decompress_untrusted(memoryview(payload)[_HEADER.size :], body_bytes)
    contents = np.frombuffer(body, np.uint8, contents_bytes).reshape(content_count, PAGE_BYTES)
    entries = np.frombuffer(body, _ENTRY, entry_count, contents_bytes)
    zero = (entries & _ZERO_BIT) != 0
    indices = (entries & _INDEX_MASK).astype(np.int64)
    if (np.diff(indices) <= 0).any():
        raise PagesError("page batch whose indices don't ascend, or name a page twice")
    if indices[-1] >= page_count:
        raise PagesError(f"page batch with index {indices[-1]}: the guest has {page_count} pages")
    zero_count = int(np.count_nonzero(zero))
    if zero_count != entry_count - content_count:
        raise PagesError(
            f"page batch with {zero_count} zero pages: page_count {entry_count} and content_count "
            f"{content_count} leave {entry_count - content_count}"
        )
    return PageBatch(kind, indices[~zero], contents, indices[zero])


def _decompress_untrusted(compressed: memoryview, body_bytes: int) -> bytes:
    """Exactly `body_bytes`. The announced size is compared first, since zstandard allocates what it says."""
    try:
        announced = zstandard.frame_content_size(compressed)
        if announced != body_bytes:
            raise PagesError(
                f"page batch whose zstd frame announces {announced} bytes: its counts require {body_bytes}"
            )
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        body: bytes = decompressor.decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PagesError(f"page batch that zstd can't decompress: {error}") from error
    if len(body) != body_bytes:
        raise PagesError(f"page batch of {len(body)} bytes: its counts require {body_bytes}")
    return body


def apply_pages(batch: PageBatch, ram: Pages) -> None:
    """Bring `ram`, uint8[page_count, 4096] and C-contiguous, from the sender's last version to this one."""
    if batch.kind is PageKind.RAW:
        ram[batch.indices] = batch.contents
    else:
        words = ram.view(np.uint64)
        words[batch.indices] ^= batch.contents.view(np.uint64)
    ram[batch.zero_indices] = 0


def _zero_pages(words: _Words) -> _Flags:
    """Which rows are zero throughout. Few pages even begin with a zero word: only these are read further."""
    zero: _Flags = words[:, 0] == 0
    candidates = np.flatnonzero(zero)
    if len(candidates):
        zero[candidates] = np.bitwise_or.reduce(words[candidates], axis=1) == 0
    return zero
