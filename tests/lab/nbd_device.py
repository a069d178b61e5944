"""The kernel's own NBD client: /dev/nbdN on a server's unix socket.

nbd-client does no more than this: it negotiates, and hands the socket to the driver (linux/nbd-netlink.h).
The protocol's numbers are written down here once more rather than taken from `diskbuf.wire`, so that a wrong
one there is found.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.generic import GenericNetlinkSocket

_CONNECT, _DISCONNECT = 1, 2  # NBD_CMD_*

_BLOCK_BYTES = 4096

# The kernel gives a server up that doesn't answer, so that nothing hangs in it for ever.
_TIMEOUT_S = 60

# doc/proto.md of NetworkBlockDevice/nbd, "Newstyle negotiation"
_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_EXPORT = struct.Struct(">QH")  # size, transmission flags
_FIXED_NEWSTYLE_NO_ZEROES = 3
_EXPORT_NAME = 1


class _Request(genlmsg):  # type: ignore[misc]
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
    )

    class sockets(nla):  # type: ignore[misc]  # noqa: N801  as pyroute2 looks for it
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "item"))

        class item(nla):  # type: ignore[misc]  # noqa: N801
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))


@asynccontextmanager
async def attached(number: int, server: Path, export: str) -> AsyncIterator[Path]:
    """Connect /dev/nbd`number` to `export` of the server on a unix socket for as long as the body runs.

    Whoever reads or writes the device waits for the server; if that is served by this trio loop, let it be in
    threads or other processes.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        size_bytes, flags = await trio.to_thread.run_sync(_negotiate, connection, server, export)
        item = {"attrs": [("NBD_SOCK_FD", connection.fileno())]}
        await trio.to_thread.run_sync(
            _tell,
            _CONNECT,
            [
                ("NBD_ATTR_INDEX", number),
                ("NBD_ATTR_SIZE_BYTES", size_bytes),
                ("NBD_ATTR_BLOCK_SIZE_BYTES", _BLOCK_BYTES),
                ("NBD_ATTR_TIMEOUT", _TIMEOUT_S),
                ("NBD_ATTR_SERVER_FLAGS", flags),
                ("NBD_ATTR_SOCKETS", {"attrs": [("NBD_SOCK_ITEM", item)]}),
            ],
        )
        try:
            yield Path(f"/dev/nbd{number}")
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_tell, _DISCONNECT, [("NBD_ATTR_INDEX", number)])
    finally:
        connection.close()


def _tell(command: int, attributes: list[tuple[str, object]]) -> None:
    """Send the driver one command; it has obeyed on return."""
    netlink = GenericNetlinkSocket()
    try:
        netlink.bind("nbd", _Request)
        message = _Request()
        message["cmd"], message["version"] = command, 1
        message["attrs"] = attributes
        for _ in netlink.nlm_request(message, msg_type=netlink.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK):
            pass
    finally:
        netlink.close()


def _negotiate(connection: socket.socket, server: Path, export: str) -> tuple[int, int]:
    """Choose the export in the way of the oldest clients; its size and transmission flags."""
    connection.connect(str(server))
    magic, option_magic, _ = _GREETING.unpack(_received(connection, _GREETING.size))
    assert (magic, option_magic) == (b"NBDMAGIC", b"IHAVEOPT")
    name = export.encode()
    choice = _OPTION.pack(b"IHAVEOPT", _EXPORT_NAME, len(name)) + name
    connection.sendall(struct.pack(">I", _FIXED_NEWSTYLE_NO_ZEROES) + choice)
    size_bytes, flags = _EXPORT.unpack(_received(connection, _EXPORT.size))
    return size_bytes, flags


def _received(connection: socket.socket, length: int) -> bytes:
    data = connection.recv(length, socket.MSG_WAITALL)
    assert len(data) == length, "the server has hung up"
    return data
