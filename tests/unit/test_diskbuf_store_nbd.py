"""What is special about stores behind NBD servers; the rest is in tests/conformance/test_store.py.

The servers are nbdkit's, killed, restarted, and told to fail.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Queue

import pytest
from fakes.nbd_server import NbdServer, nbdkit

from diskbuf.errors import (
    StoreError,
    StoreFullError,
    StoreIOError,
    StoreOpenError,
    StoreReadOnlyError,
    StoreShortError,
)
from diskbuf.store import Store, losses_of

pytest.importorskip("nbd", reason="libnbd's Python binding (python3-libnbd) is not installed")

from diskbuf.nbdstore import open_nbd_store  # needs libnbd from the import on

SIZE = 4 << 20
THREAD_S = 20
GONE_S = 0.2
"""How long a store looks for a server that won't come back: for tests that wait until it gives up."""

Serve = Callable[..., NbdServer]
Open = Callable[..., Store]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(tmp_path: Path, stack: ExitStack) -> Serve:
    def start(*arguments: str, tcp: bool = False) -> NbdServer:
        server = nbdkit(None if tcp else tmp_path / "nbd.sock", *arguments)
        stack.callback(server.close)
        return server

    return start


@pytest.fixture
def opened(stack: ExitStack) -> Open:
    def open_(server: NbdServer, **options: object) -> Store:
        store = open_nbd_store(server.uri, **options)  # type: ignore[arg-type]
        stack.callback(store.close)
        return store

    return open_


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"\xaa" * SIZE)
    return path


def read(store: Store, offset: int, length: int) -> bytes:
    target = bytearray(length)
    store.read(offset, memoryview(target))
    return bytes(target)


def test_tcp_is_served_as_well(serve: Serve, opened: Open) -> None:
    server = serve("memory", "4M", tcp=True)
    store = opened(server)
    store.write(5, [b"over tcp"])
    store.sync()
    assert (read(store, 4, 10), store.size_bytes, store.uri) == (b"\0over tcp\0", SIZE, server.uri)


def test_a_long_write_is_cut_to_what_the_server_takes(serve: Serve, opened: Open) -> None:
    store = opened(serve("memory", "64M"))
    content = os.urandom(20 << 20)
    store.write(1, [content[:100], content[100 : 15 << 20], content[15 << 20 :]])
    assert read(store, 1, len(content)) == content


def test_holes_are_told_by_the_server(serve: Serve, opened: Open) -> None:
    store = opened(serve("memory", "4M"))
    store.write(1 << 20, [b"\xff" * (1 << 20)])
    described = [(entry.length, entry.hole, entry.zero) for entry in store.allocation(0, SIZE)]
    assert described == [(1 << 20, True, True), (1 << 20, False, False), (2 << 20, True, True)]
    store.zero(1 << 20, 1 << 20, punch_hole=True)
    assert [(entry.length, entry.hole) for entry in store.allocation(0, SIZE)] == [(SIZE, True)]


def test_a_server_that_tells_nothing_is_taken_for_full(serve: Serve, opened: Open) -> None:
    store = opened(serve("--filter=noextents", "memory", "4M"))
    assert [(entry.length, entry.hole, entry.zero) for entry in store.allocation(7, 99)] == [
        (99, False, False)
    ]


def test_commands_of_several_threads_are_under_way_together(
    serve: Serve, opened: Open, tmp_path: Path
) -> None:
    """The read of the first sector ends when a write has got through."""
    flag = tmp_path / "written"
    store = opened(
        serve(
            "eval",
            "thread_model=echo parallel",
            f"get_size=echo {SIZE}",
            f"pread=test $4 -ne 0 || timeout {THREAD_S} sh -c 'until test -e {flag}; do sleep 0.01; done' || "
            "{ echo EIO >&2; exit 1; }; head -c $3 /dev/zero",
            "can_write=exit 0",
            f"pwrite=cat >/dev/null; touch {flag}",
        )
    )
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read, store, 0, 512)
        assert read(store, 4096, 512) == bytes(512)
        assert not reading.done()
        pool.submit(store.write, 8192, [b"x"]).result(THREAD_S)
        assert reading.result(THREAD_S) == bytes(512)


@pytest.mark.parametrize(
    ("code", "error", "advice"),
    [
        ("ENOSPC", StoreFullError, "make room there"),
        ("EPERM", StoreReadOnlyError, "make it writable"),
        ("EIO", StoreIOError, "look into its log"),
        ("EINVAL", StoreIOError, "look into its log"),
    ],
)
def test_refusals_are_named_and_can_be_repeated(
    serve: Serve, opened: Open, tmp_path: Path, code: str, error: type[StoreError], advice: str
) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    store = opened(
        serve("--filter=error", "memory", "4M", f"error={code}", "error-rate=1", f"error-file={broken}")
    )
    what = f"{code} from the server; {advice}"
    with pytest.raises(error, match=rf"write of 3 bytes at 7 failed: {what}"):
        store.write(7, [b"abc"])
    with pytest.raises(error, match=rf"zero of 9 bytes at 8 failed: {what}"):
        store.zero(8, 9, punch_hole=True)
    with pytest.raises(error, match=rf"read of 4 bytes at 0 failed: {what}"):
        read(store, 0, 4)
    with pytest.raises(error, match=rf"allocation of 4 bytes at 0 failed: {what}"):
        store.allocation(0, 4)
    broken.unlink()
    store.write(7, [b"abc"])
    store.sync()
    assert read(store, 6, 5) == b"\0abc\0"


def test_a_server_that_comes_back_is_gone_on_with(serve: Serve, opened: Open, image: Path) -> None:
    server = serve("file", str(image))
    store = opened(server)
    server.kill()
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(read, store, offset, 4) for offset in (0, 100)]
        write = pool.submit(store.write, 4096, [b"after"])
        server.start()
        assert [reading.result(THREAD_S) for reading in reads] == [b"\xaa" * 4] * 2
        write.result(THREAD_S)
    assert read(store, 4095, 7) == b"\xaaafter\xaa"


def test_many_threads_survive_the_loss_of_the_server(serve: Serve, opened: Open, image: Path) -> None:
    server = serve("file", str(image))
    store = opened(server)
    rounds = threading.Semaphore(0)

    def work(thread: int) -> None:
        for round_ in range(300):
            offset = (thread * 300 + round_) * 512
            store.write(offset, [bytes([thread + 1]) * 512])
            assert read(store, offset, 512) == bytes([thread + 1]) * 512
            rounds.release()

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, thread) for thread in range(8)]
        for _ in range(2):  # one operation survives two losses
            for _ in range(400):
                assert rounds.acquire(timeout=THREAD_S)
            server.kill()
            server.start()
        for worker in workers:
            worker.result(THREAD_S)
    expected = b"".join(bytes([thread + 1]) * 512 * 300 for thread in range(8))
    assert read(store, 0, len(expected)) == expected


def test_a_stopped_server_is_told_of_and_waited_for(
    serve: Serve, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("memory", "4M")
    store = opened(server)
    monkeypatch.setattr("diskbuf.nbdconnection.SILENT_S", GONE_S)
    told: Queue[str] = Queue()
    monkeypatch.setattr("diskbuf.nbdconnection._log.warning", lambda text, *_: told.put(text))
    server.stop()
    with ThreadPoolExecutor() as threads:
        writes = [threads.submit(store.write, number * 512, [b"x"]) for number in range(4)]
        try:
            assert "it is waited for" in told.get(timeout=THREAD_S)
        finally:
            server.go_on()
        for write in writes:
            write.result(THREAD_S)
    assert [read(store, number * 512, 1) for number in range(4)] == [b"x"] * 4


def test_what_a_lost_server_may_have_lost_is_told_once(serve: Serve, opened: Open, image: Path) -> None:
    server = serve("file", str(image))
    store = opened(server)
    store.write(0, [b"stable"])
    store.sync()
    server.kill()
    server.start()
    store.sync()  # nothing was written since the last one
    assert losses_of(store) == 0

    store.write(0, [b"vague"])
    server.kill()
    server.start()
    with pytest.raises(
        StoreIOError, match="may have lost what was written since the last sync; write it again"
    ):
        store.sync()
    assert losses_of(store) == 1
    store.write(0, [b"again"])
    store.sync()


def test_a_server_that_stays_away_is_given_up_and_can_be_asked_again(
    serve: Serve, opened: Open, image: Path, tmp_path: Path
) -> None:
    server = serve("file", str(image))
    store = opened(server, reconnect_s=GONE_S)
    server.refuse()
    server.kill()
    for _ in range(2):
        with pytest.raises(
            StoreIOError, match=r"write of 3 bytes at 0 failed: no connection within 0\.2 s: "
        ):
            store.write(0, [b"abc"])
    (tmp_path / "nbd.sock").unlink()
    serve("file", str(image))
    store.write(0, [b"abc"])
    assert image.read_bytes()[:4] == b"abc\xaa"


def test_all_who_wait_share_one_search(serve: Serve, opened: Open, image: Path) -> None:
    server = serve("file", str(image))
    store = opened(server, reconnect_s=GONE_S)
    server.refuse()
    server.kill()
    failed = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait(THREAD_S)
        with pytest.raises(StoreIOError) as caught:
            read(store, 0, 4)
        failed.append(str(caught.value))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THREAD_S)
    assert len(failed) == 8
    assert all("start its server, then repeat" in message for message in failed)


def test_an_operation_that_kills_its_server_ends(serve: Serve, opened: Open) -> None:
    server = serve("eval", f"get_size=echo {SIZE}", "pread=rm -r ${0%/*}; kill -KILL $PPID; exit 1")
    store = opened(server, read_only=True)

    def restart() -> None:
        for _ in range(3):
            server.wait_until_dead()
            server.start()

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        with pytest.raises(StoreIOError, match="the connection was lost 3 times"):
            read(store, 0, 512)
        restarting.result(THREAD_S)


def test_another_disk_at_the_same_place_is_not_written(serve: Serve, opened: Open, image: Path) -> None:
    server = serve("file", str(image))
    store = opened(server)
    for size_bytes, error in ((SIZE - 4096, StoreShortError), (SIZE + 4096, StoreIOError)):
        server.kill()
        os.truncate(image, size_bytes)
        server.start()
        with pytest.raises(error, match=f"it has {size_bytes} bytes now, not its {SIZE}"):
            store.write(0, [b"abc"])
    assert image.read_bytes()[:3] == b"\xaa" * 3


def test_a_read_only_export_is_opened_so_or_not_at_all(serve: Serve, opened: Open) -> None:
    server = serve("--readonly", "memory", "4M")
    with pytest.raises(StoreOpenError, match="the server exports it read-only; open it so"):
        opened(server)
    store = opened(server, read_only=True)
    assert read(store, 0, 2) == b"\0\0"
    store.sync()
    with pytest.raises(StoreReadOnlyError, match="write of 1 bytes at 0, but it was opened read-only"):
        store.write(0, [b"x"])
    with pytest.raises(StoreReadOnlyError):
        store.zero(0, 1, punch_hole=True)


def test_what_cannot_be_opened_is_named(serve: Serve, tmp_path: Path) -> None:
    uri = f"nbd+unix:///?socket={tmp_path}/absent"
    with pytest.raises(StoreOpenError, match=r"absent: .*No such file.*; is its server running\?"):
        open_nbd_store(uri)
    with pytest.raises(StoreOpenError, match="the export has 0 bytes"):
        open_nbd_store(serve("memory", "0").uri)


def test_an_export_that_is_not_there_is_named(serve: Serve) -> None:
    uri = serve("--filter=exportname", "memory", "4M", "exportname-strict=true", "exportname=disk").uri
    with pytest.raises(StoreOpenError, match="other"):
        open_nbd_store(uri.replace(":///?", ":///other?"))
    store = open_nbd_store(uri.replace(":///?", ":///disk?"))
    store.close()
