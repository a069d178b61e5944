"""remuslike.synthetic.disk against nbdkit, a server of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.nbd_server import NbdServer, nbdkit

from remuslike.synthetic import SyntheticDiskError
from remuslike.synthetic.disk import NbdDisk

SIZE_BYTES = 1 << 20


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "nbd.sock"


@pytest.fixture
def server(socket_path: Path) -> Iterator[NbdServer]:
    served = nbdkit(socket_path, "memory", str(SIZE_BYTES))
    yield served
    served.close()


def test_what_was_written_is_read(server: NbdServer, socket_path: Path) -> None:
    disk = NbdDisk(str(socket_path), "")
    assert disk.size_bytes == SIZE_BYTES
    done: list[tuple[int, bool]] = []
    for number in range(200):
        data = bytes([number]) * 4096
        disk.write(number * 4096, data, lambda ok, number=number: done.append((number, ok)))  # type: ignore[misc]
    disk.write(800 << 10, b"durable.", lambda ok: done.append((-1, ok)), durable=True)
    disk.drain()
    assert (disk.under_way, disk.sending) == (0, False)
    assert sorted(done) == [(-1, True), *((number, True) for number in range(200))]
    expected = b"".join(bytes([number]) * 4096 for number in range(200))
    assert disk.read(0, 200 * 4096) == expected
    assert disk.read(800 << 10, 8) == b"durable."
    disk.close()


def test_what_the_server_refuses_is_told(server: NbdServer, socket_path: Path) -> None:
    disk = NbdDisk(str(socket_path), "")
    done: list[bool] = []
    disk.write(SIZE_BYTES, b"beyond", done.append)
    disk.drain()
    assert done == [False]
    assert disk.read(SIZE_BYTES, 1) is None
    assert disk.read(0, 1) == b"\0"
    disk.close()


def test_a_server_that_is_lost_is_named(server: NbdServer, socket_path: Path) -> None:
    disk = NbdDisk(str(socket_path), "")
    server.kill()
    with pytest.raises(SyntheticDiskError, match=r"export '' at .*nbd\.sock: "):
        disk.read(0, 1)
    disk.close()


def test_a_server_that_is_not_there_is_named(socket_path: Path) -> None:
    with pytest.raises(SyntheticDiskError, match=r"export 'data' at .*: \[Errno 2\]"):
        NbdDisk(str(socket_path), "data")
