"""One life of a journal: recovery, then epochs and all that can happen to them, until it is killed.

What the life does is drawn from its seed; what must be found after a crash at each moment is written down
beside the disk's log, as `marks`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from random import Random

from diskbuf.errors import JournalFullError, StoreError
from diskbuf.extents import Extent, ExtentMap, Kind
from diskbuf.journal import Journal
from diskbuf.journalformat import BLOCK_BYTES, HEADER_BYTES, RING_OFFSET, RecordHeader
from diskbuf.journalformat import decode_record_header_untrusted as decode_header

from .disk import JOURNAL, STORE, Disk, Killed, RecordedJournal, RecordedStore, nothing
from .oracle import Boundary, Change, Knowledge

STORE_BYTES = 24 << 10
STEPS_MAX = 14
_NUMBER_OF_KILLS_MAX = 2


class Life:
    """Runs on construction; then `disk.log` and `marks` are its history."""

    def __init__(
        self, journal_class: type[Journal], journal: bytes, store: bytes, knowledge: Knowledge, random: Random
    ) -> None:
        self.disk = Disk(journal, store, random)
        self.performed: Counter[str] = Counter()
        self._journal_class = journal_class
        self._random = random
        self._epoch = 0
        self._marks = [(0, knowledge)]
        self._record: list[Boundary] = []  # whose records are written next
        self._pieces: list[tuple[int, bytes]] = []
        self._record_bytes_left = 0
        self._passes = True  # others may write to the store
        self.disk.on_journal_write = self._note_journal_write
        self._live()

    def knowledge(self, length: int) -> Knowledge:
        """What may be found after a crash that follows the first `length` entries of the log."""
        return self._marks[bisect_right(self._marks, length, key=lambda mark: mark[0]) - 1][1]

    @property
    def _known(self) -> Knowledge:
        return self._marks[-1][1]

    def _mark(self, knowledge: Knowledge) -> None:
        self._marks.append((len(self.disk.log), knowledge))
        self._record = list(knowledge.trying)
        self._record_bytes_left = 0

    # --- what happens -------------------------------------------------------------------------------

    def _live(self) -> None:
        kills = self._random.randrange(_NUMBER_OF_KILLS_MAX + 1)
        for _ in range(kills + 1):
            self.disk.kill_in = self.disk.kill_in_syncs = None
            if self._random.random() < 0.5:
                self.disk.kill_in = self._random.randrange(60)
            else:
                self.disk.kill_in_syncs = self._random.randrange(12)
            try:
                self._run()
            except Killed:
                self.performed["killed"] += 1
            self.disk.failing_syncs.clear()
            self.disk.failing_writes.clear()
            self.disk.beside = nothing

    def _run(self) -> None:
        """One process: recover, then do things."""
        journal = self._journal_class(RecordedJournal(self.disk), RecordedStore(self.disk))
        if journal.recovered.records:
            self.performed["recovered"] += 1
        self._mark(self._known.recovered(bytes(self.disk.images[JOURNAL])))
        self._passes = True
        steps = [
            *[self._commit] * 8,
            *[self._log] * 4,
            *[self._retire] * 2,
            *[self._quiesce] * 2,
            *[self._pass_through] * 3,
        ]
        for _ in range(self._random.randrange(1, STEPS_MAX)):
            self._random.choice(steps)(journal)
            self.disk.beside = nothing

    def _commit(self, journal: Journal) -> None:
        large = self._random.random() < 0.1
        epoch, changes, extents = self._new_epoch(large=large)
        self._break_something()
        if self._random.random() < 0.2:
            self.disk.beside = lambda: self._retire_beside(journal)
        if large and self._random.random() < 0.5:
            # To grow takes several syncs of the journal: let any of them fail.
            self.disk.failing_syncs[JOURNAL] = self._random.randrange(3)
        before = journal.statistics().capacity_bytes
        if self._step(journal, [(epoch, changes)], lambda: journal.commit(epoch, extents, lambda: False)):
            self.performed["committed"] += 1
        if journal.statistics().capacity_bytes > before:
            self.performed["grown"] += 1

    def _log(self, journal: Journal) -> None:
        count = self._random.randrange(1, 4)
        # Of one size often: a record that was left behind is in sequence again only then.
        alike = self._random.random() < 0.6
        epochs = [self._new_epoch(alike=alike) for _ in range(count)]
        self._break_something()
        logged = self._step(
            journal,
            [(epoch, changes) for epoch, changes, _ in epochs],
            lambda: journal.log_all([(epoch, extents) for epoch, _, extents in epochs]),
        )
        if not logged:
            return
        self.performed["logged"] += 1
        for epoch, _, _ in epochs:
            if self._random.random() < 0.6:
                self._until_it_succeeds(lambda epoch=epoch: journal.apply(epoch))

    def _step(
        self, journal: Journal, epochs: list[tuple[int, list[Change]]], perform: Callable[[], object]
    ) -> bool:
        """Try to make epochs durable; whether they are. Tries again or gives up where it fails."""
        self._passes = False
        while True:
            self._mark(self._known.attempt(epochs))
            try:
                perform()
            except JournalFullError:
                self.performed["full"] += 1
                self._mark(self._known.gave_up())
                return False
            except StoreError:
                if epochs[0][0] in journal.statistics().waiting_epochs:
                    self.performed["failed to apply"] += 1
                    self._until_it_succeeds(perform)
                else:
                    self.performed["failed to log"] += 1
                    self._mark(self._known.gave_up())
                    if self._random.random() < 0.6:
                        return False
                    continue
            self._mark(self._known.succeeded())
            return True

    def _until_it_succeeds(self, perform: Callable[[], object]) -> None:
        while True:
            try:
                perform()
            except StoreError:
                self.performed["repeated"] += 1
                continue
            return

    def _retire(self, journal: Journal) -> None:
        self.disk.failing_syncs.clear()
        chance = self._random.random()
        if chance < 0.3 and not self._passes:
            self.disk.failing_syncs[STORE] = 0
        elif chance < 0.6:
            self.disk.failing_syncs[JOURNAL] = 0
        else:
            self.disk.beside = lambda: self._commit_beside(journal)
        try:
            journal.retire()
            self.performed["retired"] += 1
        except StoreError:
            # As if it were done in the background: the next step has to cope.
            self.performed["failed to retire"] += 1

    def _retire_beside(self, journal: Journal) -> None:
        """The retirer's thread does it amid an epoch's writes, or finds itself too late."""
        if not (journal._retiring.locked() or journal._applied_in_doubt):
            journal.retire()
            self.performed["retired amid writes"] += 1

    def _commit_beside(self, journal: Journal) -> None:
        """Amid the retirer's sync, an epoch that it doesn't cover. It has room, or it would wait for it."""
        now = journal.statistics()
        if journal._applying.locked() or now.capacity_bytes - now.used_bytes < 2 * BLOCK_BYTES:
            return
        epoch, changes, extents = self._new_epoch(alike=True)
        self._step(journal, [(epoch, changes)], lambda: journal.commit(epoch, extents, lambda: False))
        self.performed["committed amid a sync"] += 1

    def _quiesce(self, journal: Journal) -> None:
        self._break_something()
        self._until_it_succeeds(journal.quiesce)
        self._mark(self._known.succeeded())
        self._passes = True
        self.performed["quiesced"] += 1

    def _pass_through(self, journal: Journal) -> None:
        if not self._passes:
            return
        self.disk.failing_syncs.clear()
        self.disk.failing_writes.clear()
        for _ in range(self._random.randrange(1, 3)):
            change = self._change()
            try:
                self.disk.write(STORE, change.offset, change.data)
            finally:
                # A kill may have left a part.
                index = len(self.disk.log) - 1
                self._mark(self._known.let_pass(index, self.disk.log[index]))
        if self._random.random() < 0.3:
            self.disk.sync(STORE)
        self.performed["passed through"] += 1

    def _break_something(self) -> None:
        self.disk.failing_syncs.clear()
        self.disk.failing_writes.clear()
        chance = self._random.random()
        if chance < 0.06:
            self.disk.failing_syncs[JOURNAL] = 0
        elif chance < 0.09:
            self.disk.failing_writes.add(JOURNAL)
        elif chance < 0.13 and not self._passes:
            self.disk.failing_syncs[STORE] = 0
        elif chance < 0.16:
            self.disk.failing_writes.add(STORE)

    # --- epochs -------------------------------------------------------------------------------------

    def _change(self, length_max: int = 3000) -> Change:
        length = self._random.randrange(1, length_max)
        offset = self._random.randrange(STORE_BYTES - length)
        if self._random.random() < 0.3:
            return Change(offset, bytes(length))
        return Change(offset, self._random.randbytes(length))

    def _new_epoch(
        self, *, large: bool = False, alike: bool = False
    ) -> tuple[int, list[Change], tuple[Extent, ...]]:
        """Its number, what it does to the disk, and the same as extents."""
        self._epoch += 1
        if alike:
            changes = [Change(self._random.randrange(4) * 1024, self._random.randbytes(700))]
        else:
            changes = [self._change() for _ in range(self._random.randrange(1, 4))]
        if large:
            changes = [Change(0, self._random.randbytes(STORE_BYTES))]
        held = ExtentMap()
        for change in changes:
            if any(change.data):
                held.put(Extent.of_data(change.offset, change.data))
            else:
                kind = self._random.choice([Kind.ZERO, Kind.HOLE])
                held.put(Extent(change.offset, len(change.data), kind))
        return self._epoch, changes, held.extents

    def _note_journal_write(self, offset: int, data: bytes) -> None:
        """Tell the record of an epoch under way from all else that is written, by its header."""
        if offset < RING_OFFSET or not self._record:
            return
        if self._record_bytes_left == 0:
            header = self._header(data)
            if header is None or header.epoch != self._record[0].epoch:
                return
            # What fills its last block doesn't count.
            self._record_bytes_left = HEADER_BYTES + header.payload_bytes
            self._pieces = []
        self._pieces.append((offset, data[: self._record_bytes_left]))
        self._record_bytes_left -= len(self._pieces[-1][1])
        if self._record_bytes_left == 0:
            self._record.pop(0).pieces = self._pieces

    def _header(self, data: bytes) -> RecordHeader | None:
        journal_id = bytes(self.disk.images[JOURNAL][12:28])
        return decode_header(data[:HEADER_BYTES], journal_id) if len(data) >= HEADER_BYTES else None
