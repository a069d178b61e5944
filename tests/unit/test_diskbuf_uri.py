from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from diskbuf.errors import StoreOpenError, StoreUriError
from diskbuf.filestore import FileStore
from diskbuf.memorystore import MemoryStore
from diskbuf.sharedstore import SharedStore
from diskbuf.sizes import format_size, parse_size
from diskbuf.uri import KINDS, open_store, store_path


@pytest.mark.parametrize(
    "form",
    [
        "{0}/disk.img",
        "file:{0}/disk.img",
        "file://{0}/disk.img",
        "file://localhost{0}/disk.img",
        "file:{0}/%64isk.img",
        "FILE:{0}/disk.img",
    ],
)
def test_files_are_named_in_many_ways(tmp_path: Path, form: str) -> None:
    (tmp_path / "disk.img").write_bytes(b"x" * 512)
    store = open_store(form.format(tmp_path))
    assert isinstance(store, FileStore)
    assert store.uri == f"file:{tmp_path}/disk.img"
    store.close()


def test_relative_paths_and_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, uri in (
        ("disk.img", "file:disk.img"),
        ("a:b", "./a:b"),
        ("50%?#", "50%?#"),
        ("ü", "file:%C3%BC"),
    ):
        Path(name).write_bytes(b"x" * 512)
        store = open_store(uri)
        store.close()
        again = open_store(store.uri)
        assert again.uri == store.uri
        again.close()


@pytest.mark.parametrize("name", ["disk.img", "a:b", "50%?#", "ü", "two words", "\udcff", "odd/../disk.img"])
def test_a_file_has_one_uri_shared_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd").mkdir()
    relative = Path(name)
    relative.write_bytes(b"x" * 512)
    with closing(FileStore.open(relative)) as store, closing(SharedStore(relative)) as shared:
        assert store.uri == shared.uri
        assert store_path(store.uri) == relative.resolve()


def test_memory_by_size() -> None:
    store = open_store("memory:3M", read_only=True)
    assert isinstance(store, MemoryStore)
    assert (store.size_bytes, store.read_only, store.uri) == (3 << 20, True, "memory:3M")


WRONG = {
    "": "it is empty",
    "file:": "the path is empty",
    "file:disk.img?sync=1": "a file has no parameters",
    "file:disk#1": "a # as %23",
    "file://server/disk.img": "on host 'server'",
    "file:a%00b": "NUL",
    "memory:": "'' is no size",
    "memory:lots": "'lots' is no size",
    "memory:-1": "'-1' is no size",
    "memory:1.5G": "'1.5G' is no size",
    "memory:0": "the size is 0",
    "qcow2:disk.qcow2": "'qcow2' is no kind of store",
    "a:b": "is written ./PATH or file:PATH",
    "https://example.org/disk": "'https' is no kind",
    "nbd:///disk": "the host is missing; write nbd://HOST:PORT/EXPORT",
    "nbd://host:port/disk": "host or port",
    "nbd://host:99999/disk": "host or port",
    "nbd://[::1/disk": "host or port",
    "nbd://host/disk?socket=/s": "socket= belongs to nbd+unix:",
    "nbds+unix:///disk": "the socket is missing; add ?socket=PATH",
    "nbd+unix:///disk?socket=": "the socket is missing",
    "nbd+unix://host/disk?socket=/s": "'host' is a host",
    "nbd://host/disk#1": "the fragment #1",
}


@pytest.mark.parametrize(("uri", "reason"), WRONG.items(), ids=[uri or "empty" for uri in WRONG])
def test_a_mistake_names_the_uri_the_part_and_what_is_known(uri: str, reason: str) -> None:
    for ask in (open_store, store_path):
        with pytest.raises(StoreUriError) as caught:
            ask(uri)
        message = str(caught.value)
        assert message.startswith(f"store {uri!r}: ")
        assert reason in message
        assert all(kind in message for kind in KINDS)


def test_the_path_of_a_store_if_it_has_one() -> None:
    assert store_path("disk.img") == store_path("file:disk.img") == Path("disk.img")
    assert store_path("memory:1G") is store_path("nbd://host/disk") is None


def test_a_right_name_for_nothing_is_no_mistake_in_the_name(tmp_path: Path) -> None:
    with pytest.raises(StoreOpenError, match="No such file"):
        open_store(f"file:{tmp_path}/absent")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("64K", 65536),
        ("64k", 65536),
        ("1M", 1 << 20),
        ("2GiB", 2 << 30),
        (" 1TB ", 1 << 40),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["", "K", "1X", "1 M", "0x10", "١", "1e9", "1" * 20])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; write a number of bytes"):
        parse_size(text)
