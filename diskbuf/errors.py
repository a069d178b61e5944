"""Everything that `diskbuf` raises on purpose.

    DiskbufError
    ├── ContractError              the engine: a call that the buffer's state forbids
    │   ├── HoldError
    │   ├── SealError
    │   ├── ReleaseError
    │   ├── OpenError
    │   ├── StateError
    │   ├── UnknownEpochError
    │   ├── ChunkError
    │   └── JournalOrderError
    ├── StoreUriError              the operator: a URI that names no store
    ├── StoreError                 the environment: the store behind the buffer
    │   ├── StoreOpenError
    │   │   └── StoreInUseError
    │   ├── StoreReadOnlyError
    │   ├── StoreShortError
    │   ├── StoreFullError
    │   └── StoreIOError
    ├── JournalError               the environment: the journal in front of the store
    │   ├── JournalOpenError
    │   │   └── JournalInUseError
    │   ├── JournalFormatError
    │   │   └── JournalVersionError
    │   ├── JournalMismatchError
    │   └── JournalFullError
    ├── UnreleasedError            the store, or who didn't wait for it: writes are lost at the service's end
    ├── TlsFileError               the operator: a certificate or a key that can't be used
    ├── SocketError                the environment: the socket to listen on
    │   └── SocketInUseError
    ├── ExportError                the caller: an export that the NBD protocol doesn't allow
    ├── WriteRefusedError          nobody: writes are not accepted in this state
    ├── RequestError               the NBD client: one request is answered with an error
    ├── ProtocolError              the NBD client: its connection is closed
    └── SealedWritesError          the peer: an epoch's writes don't decode

Defects of `diskbuf` itself are outside this tree, so that nobody swallows them by catching it.
"""

from __future__ import annotations


class DiskbufError(Exception):
    """Base of the tree; never raised itself."""


class ContractError(DiskbufError):
    """Base of the calls that the buffer's state forbids; never raised itself. Nothing was changed."""


class HoldError(ContractError):
    """The engine's fault: `hold` on a buffer that holds already or was discarded."""


class SealError(ContractError):
    """The engine's fault: `seal` of the wrong epoch, in the wrong state, or beyond `depth`."""


class ReleaseError(ContractError):
    """The engine's fault: `release` of another epoch than the oldest sealed one. Nothing got out.

    Also ends a release or an opening that `discard` stopped; what hasn't left never will.
    """


class OpenError(ContractError):
    """The engine's fault: `open` of a discarded buffer."""


class StateError(ContractError):
    """The engine's fault: a write to a standby's store while it isn't a standby any more, or not for it."""


class UnknownEpochError(ContractError):
    """The engine's fault: it asked for the writes of an epoch that isn't sealed."""


class ChunkError(ContractError):
    """The engine's fault, or that of the peer it believed: a chunk that the disk hasn't got."""


class JournalOrderError(ContractError):
    """The engine's fault: an epoch given to the journal out of order, or again with other contents."""


class StoreUriError(DiskbufError):
    """The operator's fault: a store's URI is of no known kind, or a part of it is wrong. None is opened."""


class StoreError(DiskbufError):
    """Base of the store's failures; never raised itself. Nobody's call was wrong; what was held is held."""

    failed_flushes = 0
    """Of how many failed flushes of an export it tells its client, which is told once (see `passing`)."""


class StoreOpenError(StoreError):
    """The store can't be opened: it is missing, of the wrong kind, empty, or not permitted."""


class StoreInUseError(StoreOpenError):
    """Another process serves the store. Two would each hide the other's writes."""


class StoreReadOnlyError(StoreError):
    """A write to a store that was opened, or is mounted, read-only."""


class StoreShortError(StoreError):
    """The store ends before its size at opening: somebody truncated it meanwhile."""


class StoreFullError(StoreError):
    """No space left in the store's file system, quota or file size limit."""


class StoreIOError(StoreError):
    """Any other failure of the store's device or file system."""


class JournalError(DiskbufError):
    """Base of what is wrong with a journal as a whole; never raised itself. The store was not touched.

    A journal's device that fails while it is in use is a `StoreError`, as it would be without a journal.
    """


class JournalOpenError(JournalError):
    """The journal can't be opened or created: mend its path, its permissions or the store's name."""


class JournalInUseError(JournalOpenError):
    """Another process writes to the journal."""


class JournalFormatError(JournalError):
    """The file is no journal, was truncated, or is damaged beyond what a crash can do."""


class JournalVersionError(JournalFormatError):
    """A later release wrote the journal: run that one."""


class JournalMismatchError(JournalError):
    """The operator's fault: the journal belongs to another store, or to one of another size."""


class JournalFullError(JournalError):
    """Nobody's fault: epochs that wait to be applied fill the journal. Apply them, then log again."""


class UnreleasedError(DiskbufError):
    """The service had to end before a store had taken all that clients were told is written. It is lost."""


class TlsFileError(DiskbufError):
    """The operator's fault: a certificate, a key or an authority's certificate can't be read or don't fit."""


class SocketError(DiskbufError):
    """The listening socket can't be made at its path: mend the path or the directory."""


class SocketInUseError(SocketError):
    """A living server listens at the path already."""


class ExportError(DiskbufError):
    """The caller's fault: an export's name, size or block sizes are none that NBD allows. Not served."""


class WriteRefusedError(DiskbufError):
    """A write while the buffer is closed, discarded or read-only. It reached neither memory nor store."""


class RequestError(DiskbufError):
    """The client's fault: one request is invalid. It is answered with `code`, the connection goes on."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ProtocolError(DiskbufError):
    """The client's fault: its bytes aren't NBD, or exceed a bound. Its connection is closed."""


class SealedWritesError(DiskbufError):
    """The peer's fault: the encoded writes of an epoch are malformed. Nothing was taken from them."""
