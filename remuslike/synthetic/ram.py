"""The synthetic guest's RAM: what lies where, and whether it is as it must be.

```
page 0          the notes: what was verified, and what the registers counted when RAM was last written
pages 1 to 8    the clients' table
from 1 MiB      the working set
```
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from remuslike.synthetic.errors import RatesError
from remuslike.synthetic.registers import Registers
from remuslike.synthetic.service import CLIENTS_MAX
from remuslike.synthetic.walk import Integers, Words, keys, stride_of, versions

PAGE_BYTES = 4096
_PAGE_WORDS = PAGE_BYTES // 8
_CLIENTS_PAGE = 1
_WORKING_SET_PAGE = 256
_MIB_PAGES = 256

CLIENT = np.dtype([("sequence", "<u8"), ("counter", "<u8"), ("durable", "<u8"), ("check", "<u8")])
"""A client's last counted number, how many were counted, the last number that is on the disk, and the three
of them mixed."""

# The words of the notes. The first ones repeat registers.
_PAGES, _FRAMES, _BLOCKS, _REQUESTS = 0, 1, 2, 3
_PASSES, _CONTRADICTIONS, _DISK_ERRORS = 8, 9, 10
_PAGES_NEXT, _PAGES_END, _BLOCKS_NEXT, _BLOCKS_END, _VERIFYING = 16, 17, 18, 19, 20


class Cursor:
    """How far a pass of verification has come round a walk: positions in it, from the count of writes at
    which the pass began. It lives in the notes, and so survives with them."""

    def __init__(self, notes: Words, next_word: int, end_word: int) -> None:
        self._notes, self._next, self._end = notes, next_word, end_word

    def start(self, position: int, length: int) -> None:
        """A pass over so many positions."""
        self._notes[self._next] = position
        self._notes[self._end] = position + length

    def take(self, count: int) -> tuple[int, int]:
        """The next positions to verify, from and to; none are left when these are equal."""
        first, end = int(self._notes[self._next]), int(self._notes[self._end])
        return first, min(first + count, end)

    def take_until(self, position: int) -> tuple[int, int]:
        """As `take`: all that are left before this one."""
        first, end = int(self._notes[self._next]), int(self._notes[self._end])
        return first, max(first, min(position, end))

    def behind(self, position: int) -> bool:
        """Whether the pass has this position still before it."""
        return int(self._notes[self._next]) <= position < int(self._notes[self._end])

    def advance(self, to: int) -> None:
        """All before are verified."""
        self._notes[self._next] = to

    @property
    def done(self) -> bool:
        return int(self._notes[self._next]) >= int(self._notes[self._end])


class Ram:
    """The whole of it, over a shared mapping. Prerequisite of all but the construction: it runs here."""

    def __init__(self, memory: NDArray[np.uint8], working_set_mib: int, seed: int) -> None:
        self._words = memory.view(np.uint64).reshape(-1, _PAGE_WORDS)
        self.slots = working_set_mib * _MIB_PAGES
        if _WORKING_SET_PAGE + self.slots > len(self._words):
            raise RatesError(
                f"synthetic.working_set_mib = {working_set_mib}: needs a guest.memory_mib of"
                f" {working_set_mib + 1}, not {memory.size >> 20}"
            )
        self._seed = seed
        self._stride = stride_of(self.slots)
        self._set = self._words[_WORKING_SET_PAGE : _WORKING_SET_PAGE + self.slots]
        self._notes = self._words[0]
        table = self._words[_CLIENTS_PAGE:_WORKING_SET_PAGE].reshape(-1)
        self.clients = table[: CLIENTS_MAX * CLIENT.itemsize // 8].view(CLIENT)
        self.pages_cursor = Cursor(self._notes, _PAGES_NEXT, _PAGES_END)
        self.blocks_cursor = Cursor(self._notes, _BLOCKS_NEXT, _BLOCKS_END)

    def _places(self, positions: Integers) -> tuple[Integers, Integers]:
        """Slots, and the pages that these are."""
        slots = positions % self.slots
        return slots, (slots * self._stride) % self.slots

    def write(self, first: int, count: int) -> None:
        """The writes `first` to `first + count` of the working set. Prerequisite: at most a round of them."""
        positions = np.arange(first, first + count)
        _, pages = self._places(positions)
        self._set[pages] = keys(pages, positions // self.slots + 1, self._seed)[:, None]

    def verify(self, first: int, end: int, written: int) -> None:
        """Compare the pages at these positions of the walk with what `written` writes make of them."""
        slots, pages = self._places(np.arange(first, end))
        expected = keys(pages, versions(slots, self.slots, written), self._seed)
        wrong = (self._set[pages] != expected[:, None]).any(axis=1)
        self.contradict(int(wrong.sum()))

    def verify_table(self, registers: Registers) -> None:
        """The table of clients in itself, and what is counted twice against each other."""
        table = self.clients
        wrong = int((table["check"] != _mixed(table)).sum())
        wrong += int(table["counter"].sum()) != registers.requests
        noted = self._notes[[_PAGES, _FRAMES, _BLOCKS, _REQUESTS]].tolist()
        counted = (registers.pages, registers.frames, registers.blocks, registers.requests)
        wrong += sum(a != b for a, b in zip(noted, counted, strict=True))
        self.contradict(wrong)

    def note(self, registers: Registers) -> None:
        """What the registers have counted, for a later comparison."""
        notes = self._notes
        notes[_PAGES] = registers.pages
        notes[_FRAMES] = registers.frames
        notes[_BLOCKS] = registers.blocks
        notes[_REQUESTS] = registers.requests

    def set_client(self, client: int, sequence: int, counter: int, durable: int) -> None:
        row = self.clients[client : client + 1]
        row[0] = (sequence, counter, durable, 0)
        row["check"] = _mixed(row)

    def contradict(self, count: int) -> None:
        """Something is not as it must be."""
        if count:
            self._notes[_CONTRADICTIONS] += np.uint64(count)

    def count_disk_error(self) -> None:
        self._notes[_DISK_ERRORS] += np.uint64(1)

    def begin_pass(self, registers: Registers, disk_slots: int) -> None:
        """Verify everything once; what isn't verified yet is verified before it is written again."""
        self.pages_cursor.start(registers.pages, self.slots)
        self.blocks_cursor.start(registers.blocks, disk_slots)
        self._notes[_VERIFYING] = 1

    def end_pass(self) -> None:
        self._notes[_VERIFYING] = 0
        self._notes[_PASSES] += np.uint64(1)

    @property
    def verifying(self) -> bool:
        return bool(self._notes[_VERIFYING])

    @property
    def passes(self) -> int:
        return int(self._notes[_PASSES])

    @property
    def contradictions(self) -> int:
        return int(self._notes[_CONTRADICTIONS])

    @property
    def disk_errors(self) -> int:
        return int(self._notes[_DISK_ERRORS])


def _mixed(table: NDArray[np.void]) -> Words:
    """Of rows that were never set: 0, as they are."""
    sequence: Words = table["sequence"]
    counter: Words = table["counter"]
    durable: Words = table["durable"]
    return np.asarray(sequence * np.uint64(3) + counter * np.uint64(5) + durable * np.uint64(7), np.uint64)
