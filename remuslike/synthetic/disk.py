"""A client of the daemon's NBD server, on one socket and in one thread, with writes under way.

Sections named here are those of the NBD specification (NetworkBlockDevice/nbd, doc/proto.md). Only what the
synthetic guest needs is spoken: simple replies, and NBD_CMD_FLAG_FUA for what must be durable at its reply.
"""

from __future__ import annotations

import select
import socket
import struct
from collections import deque
from collections.abc import Callable

from remuslike.synthetic.errors import SyntheticDiskError

# "Newstyle negotiation", "Option types", "Option reply types"
_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT = struct.Struct(">HQH")
_FIXED_NEWSTYLE_NO_ZEROES = 3
_GO, _ACK, _INFO = 7, 1, 3

# "Request message", "Simple reply message", "Request types", "Command flags", "Transmission flags"
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_READ, _WRITE = 0, 1
_FUA = 1
_SEND_FUA = 1 << 3

_RECEIVE_BYTES = 1 << 16

Completion = Callable[[bool], None]
"""Told whether the write was done."""


class NbdDisk:
    """Connected from construction on. Raises SyntheticDiskError."""

    def __init__(self, path: str, export: str) -> None:
        self._what = f"export {export!r} at {path}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._received = bytearray()
        self._sending: deque[memoryview] = deque()
        self._waiting: dict[int, Completion] = {}
        self._cookie = 0
        try:
            self._socket.connect(path)
            self.size_bytes = self._negotiate(export)
        except (OSError, struct.error) as error:
            self._socket.close()
            raise SyntheticDiskError(f"{self._what}: {error}") from error
        self._socket.setblocking(False)

    def _negotiate(self, export: str) -> int:
        magic, options, _ = _GREETING.unpack(self._exactly(_GREETING.size))
        if (magic, options) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise SyntheticDiskError(f"{self._what}: no newstyle NBD server")
        name = export.encode()
        request = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
        option = _OPTION.pack(b"IHAVEOPT", _GO, len(request))
        self._socket.sendall(struct.pack(">I", _FIXED_NEWSTYLE_NO_ZEROES) + option + request)
        size_bytes, flags = 0, 0
        while True:
            _, _, reply, length = _OPTION_REPLY.unpack(self._exactly(_OPTION_REPLY.size))
            body = self._exactly(length)
            if reply == _ACK:
                break
            if reply != _INFO:
                raise SyntheticDiskError(f"{self._what}: refused with {reply:#x} {body!r}")
            if body.startswith(b"\0\0"):
                _, size_bytes, flags = _EXPORT.unpack(body)
        if not flags & _SEND_FUA:
            raise SyntheticDiskError(f"{self._what}: the server has no NBD_CMD_FLAG_FUA")
        return size_bytes

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise SyntheticDiskError(f"{self._what}: the server ended the connection")
            data += part
        return data

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def under_way(self) -> int:
        return len(self._waiting)

    @property
    def sending(self) -> bool:
        """Whether something waits for the socket to take more."""
        return bool(self._sending)

    def write(self, offset: int, data: bytes, completed: Completion, *, durable: bool = False) -> None:
        """Returns at once; `completed` is called within `receive` or `drain`."""
        self._cookie += 1
        self._waiting[self._cookie] = completed
        flags = _FUA if durable else 0
        header = _REQUEST.pack(_REQUEST_MAGIC, flags, _WRITE, self._cookie, offset, len(data))
        self._sending.append(memoryview(header + data))
        self.send()

    def send(self) -> None:
        """As much as the socket takes."""
        try:
            while self._sending:
                count = self._socket.send(self._sending[0])
                self._sending[0] = self._sending[0][count:]
                if not self._sending[0]:
                    self._sending.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            raise SyntheticDiskError(f"{self._what}: {error}") from error

    def receive(self) -> None:
        """Complete what has been answered."""
        self._fill()
        while len(self._received) >= _REPLY.size:
            magic, error, cookie = _REPLY.unpack_from(self._received)
            if magic != _REPLY_MAGIC or cookie not in self._waiting:
                raise SyntheticDiskError(f"{self._what}: the server sent what is no reply")
            del self._received[: _REPLY.size]
            self._waiting.pop(cookie)(error == 0)

    def _fill(self) -> None:
        try:
            part = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise SyntheticDiskError(f"{self._what}: {error}") from error
        if not part:
            raise SyntheticDiskError(f"{self._what}: the server ended the connection")
        self._received += part

    def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._waiting:
            self._wait()
            self.receive()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._sending else 0))
        poll.poll()
        self.send()

    def read(self, offset: int, count: int) -> bytes | None:
        """Waits for it; None if the server refuses. Prerequisite: nothing is under way."""
        assert not self._waiting, "drain comes first"
        self._cookie += 1
        self._sending.append(memoryview(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, self._cookie, offset, count)))
        self.send()
        wanted = _REPLY.size
        while len(self._received) < wanted:
            self._wait()
            self._fill()
            if len(self._received) >= _REPLY.size and _REPLY.unpack_from(self._received)[1] == 0:
                wanted = _REPLY.size + count
        _, error, _ = _REPLY.unpack_from(self._received)
        data = bytes(self._received[_REPLY.size :])
        self._received.clear()
        return None if error else data

    def close(self) -> None:
        self._socket.close()
