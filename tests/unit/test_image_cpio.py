"""The initramfs archive, read back field by field."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from remuslike.image.cpio import Entry, archive, file, folder, link


def read(data: bytes) -> Iterator[tuple[str, list[int], bytes]]:
    """Records of a newc archive: name, the 13 fields, content."""
    offset = 0
    while offset < len(data):
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        name_end = offset + 110 + fields[11]
        assert data[name_end - 1] == 0
        content = name_end + -name_end % 4
        yield data[offset + 110 : name_end - 1].decode(), fields, data[content : content + fields[6]]
        offset = content + fields[6] + -fields[6] % 4
    assert offset == len(data)


def test_files_folders_and_links() -> None:
    records = list(read(archive([folder("bin"), file("init", b"#!", 0o755), link("bin/sh", "busybox")], 7)))
    assert [(name, content) for name, _, content in records] == [
        ("bin", b""),
        ("init", b"#!"),
        ("bin/sh", b"busybox"),
        ("TRAILER!!!", b""),
    ]
    modes = [fields[1] for _, fields, _ in records[:3]]
    assert modes == [stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFLNK | 0o777]
    assert {fields[5] for _, fields, _ in records[:3]} == {7}
    assert all(fields[2] == fields[3] == 0 for _, fields, _ in records)


@settings(derandomize=True)
@given(st.lists(st.tuples(st.text("abc/ä", min_size=1), st.binary(max_size=9)), max_size=5))
def test_every_length_is_padded(pairs: list[tuple[str, bytes]]) -> None:
    entries = [Entry(name, stat.S_IFREG, content) for name, content in pairs]
    data = archive(entries, 0)
    assert len(data) % 4 == 0
    assert [(name, content) for name, _, content in read(data)][:-1] == pairs
