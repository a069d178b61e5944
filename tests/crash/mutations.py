"""Deliberately broken journals. The proof must notice every one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from diskbuf.extents import Extent
from diskbuf.journal import Journal
from diskbuf.journalfile import JournalFile
from diskbuf.journalformat import HEADER_BYTES, RecordHeader, Superblock, encode_superblock
from diskbuf.journalformat import decode_record_header_untrusted as decode_header
from diskbuf.journalring import Ring
from diskbuf.recovery import Reader, Recovery
from diskbuf.sealed import SealedWrites, decode_writes_untrusted
from diskbuf.store import apply_extents


class SyncsNoRecord(Ring):
    """Takes a record that was written for a durable one."""

    def _make_durable(self) -> None:
        """Hope."""


class OneSuperblock(Ring):
    """Writes each superblock over the one before."""

    def _write_superblock(self, superblock: Superblock) -> None:
        self.file.write(0, [encode_superblock(superblock)])
        self.file.sync()


class SyncsNoSuperblock(Ring):
    """Uses a record's space again before it is durably given up."""

    def _write_superblock(self, superblock: Superblock) -> None:
        self.file.write(superblock.slot_offset, [encode_superblock(superblock)])


class UsesSequencesAgain(Ring):
    """Goes on after a crash with the number after the last whole record's."""

    def _sequence_after_crash(self) -> int:
        return self.sequence


class LeavesFailedRecords(Ring):
    """Takes a record whose sync failed for one that isn't there."""

    def _settle(self) -> None:
        self._records_in_doubt = []
        super()._settle()


class LeavesFailedSuperblock(Ring):
    """Takes a superblock whose sync failed for one that isn't there."""

    def _settle(self) -> None:
        self._superblock_in_doubt = False
        super()._settle()


class GrowsWhileInUse(Ring):
    """Makes the ring larger beneath the records that are in it."""

    def has_room(self, length: int) -> bool:
        while not super().has_room(length):
            grown = replace(self.superblock, capacity_bytes=2 * self.capacity_bytes)
            self.file.extend(self.superblock.file_bytes, grown.file_bytes)
            self._advance(grown)
        return True


class ChecksNoPayload(Reader):
    """Takes a record for whole if its header is."""

    def payload(self, header: RecordHeader) -> SealedWrites | None:
        data = self._read(header.position + HEADER_BYTES, header.payload_bytes)
        return decode_writes_untrusted(data, self._superblock.store_bytes)


class ChecksNoSequence(Reader):
    """Takes any header of the journal for the next record's."""

    def _header(self, position: int, sequence: int) -> RecordHeader | None:
        if position - self._superblock.tail >= self._superblock.capacity_bytes:
            return None
        header = decode_header(self._read(position, HEADER_BYTES), self._superblock.journal_id)
        return None if header is None else replace(header, position=position, sequence=sequence)


class RecoversOneTooFew(Recovery):
    """Takes the last record for torn, whatever it is."""

    def open_reader(self, superblock: Superblock) -> Reader:
        class ShortSighted(Reader):
            def _header(self, position: int, sequence: int) -> RecordHeader | None:
                header = super()._header(position, sequence)
                if header is not None and super()._header(header.end, sequence + 1) is None:
                    return None
                return header

        return ShortSighted(self.file, superblock)


class RecoversUnsynced(Recovery):
    """Applies records that a killed process has left in the cache only."""

    @staticmethod
    def settle(file: JournalFile) -> None:
        """Hope."""


class BelievesTheCache(Recovery):
    """Takes a sync that succeeds for proof that an earlier one did."""

    @staticmethod
    def settle(file: JournalFile) -> None:
        file.sync()


class RecoversWithoutSync(Recovery):
    """Moves the tail before what it applied is durable."""

    def sync_store(self) -> None:
        """Hope."""


class RetiresUnsynced(Journal):
    """Moves the tail without syncing the store."""

    def _sync_applied(self) -> None:
        """Hope."""


class RetiresWhatCameMeanwhile(Journal):
    """Gives up the records of all that is applied when the sync is done."""

    def retire(self) -> None:
        with self._retiring:
            if self._applied:
                self._sync_applied()
                last = self._applied[-1]
                self._ring.retire(last.end, last.sequence + 1)
                self._applied.clear()


class SyncsAgain(Journal):
    """Asks a store whose sync failed to sync once more, and believes it."""

    def _apply_again(self) -> None:
        """Hope."""


class ForgetsWhoWrote(Journal):
    """Makes an epoch durable on top of writes that are not."""

    def _sync_passed_through(self) -> None:
        self._passed_through = False


class QuiescesInPart(Journal):
    """Applies everything but leaves the records, for a recovery to apply over what others wrote."""

    def quiesce(self) -> None:
        with self._appending:
            self._ring.settle()
            if self._waiting:
                self.apply(self._waiting[-1].header.epoch)


class AppliesFirst(Journal):
    """Writes an epoch to the store, then ahead."""

    def commit(self, epoch: int, extents: Sequence[Extent], stopped: Callable[[], bool]) -> bool:
        if self._waiting:
            self.apply(epoch)
        apply_extents(self._store, extents, stopped)
        return super().commit(epoch, extents, stopped)


class AppliesNewestFirst(Journal):
    """Applies what waits in the wrong order."""

    def apply(self, epoch: int) -> None:
        for waiting in reversed(tuple(self._waiting)):
            apply_extents(self._store, waiting.extents, lambda: False)
            self._applied.append(waiting.header)
        self._waiting.clear()


def _with_ring(ring: type[Ring]) -> type[Journal]:
    return type(ring.__name__, (Journal,), {"ring_on": ring})


def _with_recovery(recovery: type[Recovery]) -> type[Journal]:
    return type(recovery.__name__, (Journal,), {"recovery": recovery})


def _with_reader(reader: type[Reader]) -> type[Journal]:
    class Mutated(Recovery):
        def open_reader(self, superblock: Superblock) -> Reader:
            return reader(self.file, superblock)

    return _with_recovery(Mutated)


MUTATIONS: dict[str, type[Journal]] = {
    "syncs no record": _with_ring(SyncsNoRecord),
    "one superblock": _with_ring(OneSuperblock),
    "syncs no superblock": _with_ring(SyncsNoSuperblock),
    "uses sequences again": _with_ring(UsesSequencesAgain),
    "leaves failed records": _with_ring(LeavesFailedRecords),
    "leaves failed superblock": _with_ring(LeavesFailedSuperblock),
    "grows while in use": _with_ring(GrowsWhileInUse),
    "checks no payload": _with_reader(ChecksNoPayload),
    "checks no sequence": _with_reader(ChecksNoSequence),
    "recovers one too few": _with_recovery(RecoversOneTooFew),
    "recovers unsynced": _with_recovery(RecoversUnsynced),
    "believes the cache": _with_recovery(BelievesTheCache),
    "recovers without sync": _with_recovery(RecoversWithoutSync),
    "retires unsynced": RetiresUnsynced,
    "retires what came meanwhile": RetiresWhatCameMeanwhile,
    "syncs again": SyncsAgain,
    "forgets who wrote": ForgetsWhoWrote,
    "quiesces in part": QuiescesInPart,
    "applies first": AppliesFirst,
    "applies newest first": AppliesNewestFirst,
}
