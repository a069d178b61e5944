"""The synthetic guest's disk: what lies where, and whether it is as it must be.

```
sectors 0 to 1023   a record of each client's last number that was counted durably
from 1 MiB          a ring of blocks, each filled with one word
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from remuslike.synthetic.errors import RatesError
from remuslike.synthetic.ram import Ram
from remuslike.synthetic.rates import Rates
from remuslike.synthetic.registers import Registers
from remuslike.synthetic.service import CLIENTS_MAX
from remuslike.synthetic.walk import keys, versions

SECTOR_BYTES = 512
BLOCKS_OFFSET = 1 << 20
_BLOCKS_MAX = 1024
_SECTOR_WORDS = SECTOR_BYTES // 8
_RECORD_MAGIC = 0x64726F636572  # "record"
_VERIFY_BYTES = 256 << 10
"""Read at a time: the guest's turn is over in some 0.2 ms."""


class Disk(Protocol):
    """As `disk.NbdDisk`."""

    size_bytes: int

    @property
    def under_way(self) -> int: ...
    def write(
        self, offset: int, data: bytes, completed: Callable[[bool], None], *, durable: bool = False
    ) -> None: ...
    def drain(self) -> None: ...
    def read(self, offset: int, count: int) -> bytes | None: ...


class Storage:
    """Records and blocks on a disk. Raises RatesError if the disk has no room for them."""

    def __init__(self, disk: Disk, rates: Rates, ram: Ram) -> None:
        self.disk = disk
        self._block_bytes = rates.disk_write_bytes
        self._seed = rates.seed
        self._ram = ram
        self.slots = min(_BLOCKS_MAX, (disk.size_bytes - BLOCKS_OFFSET) // self._block_bytes)
        if self.slots < 1:
            raise RatesError(
                f"synthetic.disk_write_bytes = {self._block_bytes}: the disk's {disk.size_bytes} bytes have"
                f" no room for one such write behind the first {BLOCKS_OFFSET}"
            )

    def write_block(self, number: int) -> None:
        """The write `number` of the ring's walk."""
        slot = np.array([number % self.slots])
        word = keys(slot, np.array([number // self.slots + 1]), self._seed)
        data = word.tobytes() * (self._block_bytes // 8)
        self.disk.write(BLOCKS_OFFSET + int(slot[0]) * self._block_bytes, data, self._written)

    def _written(self, done: bool) -> None:
        if not done:
            self._ram.count_disk_error()

    def write_record(
        self, client: int, sequence: int, counter: int, completed: Callable[[bool], None]
    ) -> None:
        """Durable when `completed` is told so."""
        words = np.zeros(_SECTOR_WORDS, np.uint64)
        words[:4] = (_RECORD_MAGIC, client, sequence, counter)
        words[4] = words[:4].sum()
        self.disk.write(client * SECTOR_BYTES, words.tobytes(), completed, durable=True)

    def verify_blocks(self, registers: Registers) -> None:
        """The next of this pass, up to the ring's end. Prerequisite: nothing is under way."""
        first, end = self._ram.blocks_cursor.take(_VERIFY_BYTES // self._block_bytes or 1)
        end = min(end, first + self.slots - first % self.slots)
        slots = np.arange(first, end) % self.slots
        written = versions(slots, self.slots, registers.blocks)
        data = self.disk.read(
            BLOCKS_OFFSET + int(slots[0]) * self._block_bytes, len(slots) * self._block_bytes
        )
        self._ram.blocks_cursor.advance(end)
        if data is None:
            self._ram.count_disk_error()
            return
        found = np.frombuffer(data, np.uint64).reshape(len(slots), -1)
        wrong = (found != keys(slots, written, self._seed)[:, None]).any(axis=1)
        # What was there before this guest's first write is nobody's.
        self._ram.contradict(int((wrong & (written > 0)).sum()))

    def verify_records(self) -> None:
        """All of them, against the clients' table. Prerequisite: nothing is under way."""
        data = self.disk.read(0, CLIENTS_MAX * SECTOR_BYTES)
        if data is None:
            self._ram.count_disk_error()
            return
        found = np.frombuffer(data, np.uint64).reshape(CLIENTS_MAX, _SECTOR_WORDS)
        durable = self._ram.clients["durable"]
        wrong = (found[:, 0] != _RECORD_MAGIC) | (found[:, 2] != durable)
        wrong |= found[:, 4] != found[:, :4].sum(axis=1)
        self._ram.contradict(int((wrong & (durable > 0)).sum()))
