"""Holds a guest's disk writes per epoch and releases them: an NBD server in front of a store.

    store.Store            where released writes end up; `filestore` and others are such
    journal.Journal        makes a release atomic, whatever crashes
    buffer.DiskBuffer      the output buffer: states, epochs, the limit
    server.serve_nbd_unix  what a guest, or any NBD client, connects to

`wire`, `negotiation`, `extents`, `sealed`, `overlay`, `chunks` and `journalformat` are pure. Clients are
served by threads of their own (`session`, `connection`, `receiver`, `workers`, `endpoint`), which meet the
engine at the `gate`; of trio know only `buffer`, for the engine, and `server`.
"""

from diskbuf.buffer import DiskBuffer
from diskbuf.chunks import CHUNK_BYTES
from diskbuf.contract import BufferStatistics, Pressure, State
from diskbuf.extents import Extent, Kind
from diskbuf.filestore import FileStore
from diskbuf.journal import Journal
from diskbuf.sealed import SealedWrites, decode_writes_untrusted, encode_writes
from diskbuf.server import serve_nbd_tcp, serve_nbd_unix
from diskbuf.sharedstore import SharedStore
from diskbuf.store import Store
from diskbuf.uri import open_store, store_path

__all__ = [
    "CHUNK_BYTES",
    "BufferStatistics",
    "DiskBuffer",
    "Extent",
    "FileStore",
    "Journal",
    "Kind",
    "Pressure",
    "SealedWrites",
    "SharedStore",
    "State",
    "Store",
    "decode_writes_untrusted",
    "encode_writes",
    "open_store",
    "serve_nbd_tcp",
    "serve_nbd_unix",
    "store_path",
]
