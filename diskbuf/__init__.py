"""Holds a guest's disk writes per epoch and releases them: an NBD server in front of a store.

    store.FileStore        where released writes end up
    buffer.DiskBuffer      the output buffer: states, epochs, the limit
    server.serve_nbd_unix  what a guest, or any NBD client, connects to

`wire`, `extents`, `sealed`, `overlay` and `chunks` are pure; `store` blocks and is called from threads;
`buffer`, `server` and `connection` are the trio drivers.
"""

from diskbuf.buffer import DiskBuffer
from diskbuf.chunks import CHUNK_BYTES
from diskbuf.contract import BufferStatistics, Pressure, State
from diskbuf.extents import Extent, Kind
from diskbuf.sealed import SealedWrites, decode_writes_untrusted, encode_writes
from diskbuf.server import serve_nbd_unix
from diskbuf.store import FileStore, Store

__all__ = [
    "CHUNK_BYTES",
    "BufferStatistics",
    "DiskBuffer",
    "Extent",
    "FileStore",
    "Kind",
    "Pressure",
    "SealedWrites",
    "State",
    "Store",
    "decode_writes_untrusted",
    "encode_writes",
    "serve_nbd_unix",
]
