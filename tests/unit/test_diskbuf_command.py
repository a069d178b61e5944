"""What the command line refuses, and its journal commands; it serves in tests/integration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from diskbuf.__main__ import cli
from diskbuf.errors import (
    DiskbufError,
    JournalMismatchError,
    JournalOpenError,
    StoreOpenError,
    StoreUriError,
    TlsFileError,
)
from diskbuf.extents import Extent
from diskbuf.filestore import FileStore
from diskbuf.journal import Journal

SIZE = 1 << 20


def invoked(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """What a usage error says."""
    result = invoked(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def journal(tmp_path: Path, image: Path) -> Path:
    """With two epochs that were never applied."""
    path = tmp_path / "disk.journal"
    store = FileStore.open(image)
    journal = Journal.open(path, store, capacity_bytes=SIZE)
    journal.log(6, [Extent.of_data(0, b"six")])
    journal.log(7, [Extent.of_data(1, b"seven")])
    journal.close()
    store.close()
    return path


@pytest.mark.parametrize("words", [[], ["serve"], ["journal"], ["journal", "show"], ["journal", "recover"]])
def test_help_is_there(words: list[str]) -> None:
    for option in ("-h", "--help"):
        result = invoked(*words, option)
        assert result.exit_code == 0
        assert "Usage: " in result.output


def test_help_of_serve_tells_a_stranger_what_to_write() -> None:
    text = " ".join(invoked("serve", "--help").output.split())
    for words in ("loses at most what was written since", "a second signal ends it at once", "memory:SIZE"):
        assert words in text


SERVE = ("serve", "--store", "memory:1M", "--release-every", "50")
SOCKET = ("--socket", "/nowhere/nbd.sock")

USAGE = [
    (("serve", "--release-every", "50", *SOCKET), "Missing option '--store'"),
    (("serve", "--store", "memory:1M", *SOCKET), "Missing option '--release-every'; 0 releases at once"),
    (SERVE, "Give one of '--socket' and '--tcp'"),
    ((*SERVE, *SOCKET, "--tcp", "localhost"), "Give one of '--socket' and '--tcp'"),
    ((*SERVE, *SOCKET, "--plaintext"), "are for '--tcp'"),
    ((*SERVE, *SOCKET, "--tls-certificate", "c"), "are for '--tcp'"),
    ((*SERVE, "--tcp", "localhost"), "needs either '--tls-certificate' or '--plaintext'"),
    ((*SERVE, "--tcp", "localhost", "--plaintext", "--tls-certificate", "c"), "needs either"),
    ((*SERVE, "--tcp", "localhost", "--plaintext", "--tls-ca", "c"), "need '--tls-certificate'"),
    ((*SERVE, "--tcp", "localhost:x", "--plaintext"), "'x' is no port"),
    ((*SERVE, "--tcp", "localhost:65536", "--plaintext"), "'65536' is no port"),
    ((*SERVE, "--tcp", ":10809", "--plaintext"), "names no host"),
    (
        (*SERVE, "--tcp", "::1:10809", "--plaintext"),
        "several colons; write an IPv6 address as [ADDRESS]:PORT",
    ),
    ((*SERVE, *SOCKET, "--limit", "much"), "'much' is no size"),
    ((*SERVE, *SOCKET, "--limit", "0"), "0 bytes hold nothing"),
    *(
        ((*SERVE, *SOCKET, "--release-every", text), f"{text} is no time to wait")
        for text in ("-1", "nan", "inf")
    ),
    ((*SERVE, *SOCKET, "--store", "memory:2M"), "Several stores need names"),
    ((*SERVE, *SOCKET, "--store", "memory:2M", "--export", "a"), "2 of '--store' but 1 of '--export'"),
    (
        (*SERVE, *SOCKET, "--store", "memory:2M", "--export", "a", "--export", "a"),
        "'--export' is given twice",
    ),
    ((*SERVE, *SOCKET, "--journal", "j", "--journal", "k"), "1 of '--store' but 2 of '--journal'"),
    ((*SERVE, *SOCKET, "--read-only", "--journal", "j"), "A journal is for writes"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[message for _, message in USAGE])
def test_what_does_not_go_together_is_refused(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("serve", "--store", "tape:1", "--release-every", "1", *SOCKET), StoreUriError, "'tape' is no kind"),
        (("serve", "--store", "/absent", "--release-every", "1", *SOCKET), StoreOpenError, "No such file"),
        (
            (*SERVE, "--tcp", "localhost", "--tls-certificate", "/absent.pem"),
            TlsFileError,
            "--tls-certificate /absent.pem, --tls-key /absent.pem: .*No such file",
        ),
        (("journal", "show", "/absent"), JournalOpenError, "/absent"),
        (("journal", "recover", "/absent", "--store", "memory:1M"), JournalOpenError, "/absent"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: tuple[str, ...], error: type[DiskbufError], message: str
) -> None:
    with pytest.raises(error, match=message):
        cli.main(list(arguments), standalone_mode=False)


def test_a_journal_is_shown(journal: Path, image: Path) -> None:
    lines = invoked("journal", "show", journal).output.splitlines()
    assert lines[0] == f"store     file:{image}, {SIZE} bytes"
    assert lines[2].startswith("used      8192 of ")
    assert lines[3] == "releases  2"
    assert [line.split(",")[0] for line in lines[4:]] == ["  epoch 6: 1 extents", "  epoch 7: 1 extents"]
    found = json.loads(invoked("journal", "show", journal, "--json").output)
    assert [record["epoch"] for record in found["records"]] == [6, 7]
    assert (found["torn"], found["in_use"]) == (False, False)


def test_a_torn_release_is_shown_and_counts_not(journal: Path) -> None:
    content = bytearray(journal.read_bytes())
    content[content.rindex(b"seven")] ^= 1
    journal.write_bytes(content)
    output = invoked("journal", "show", journal).output
    assert "releases  1, and a torn one behind, which counts not" in output


def test_a_store_is_recovered_once(journal: Path, image: Path) -> None:
    again = invoked("journal", "recover", journal, "--store", image)
    assert again.output == "2 releases (8K) recovered, the last of epoch 7\n"
    assert image.read_bytes()[:6] == b"sseven"
    again = invoked("journal", "recover", journal, "--store", f"file:{image}")
    assert again.output == "nothing to recover: the store has it all\n"


def test_a_journal_is_not_recovered_into_another_store(journal: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(SIZE))
    with pytest.raises(JournalMismatchError, match=r"disk\.img, not to file:.*other\.img"):
        cli.main(["journal", "recover", str(journal), "--store", str(other)], standalone_mode=False)
    assert not any(other.read_bytes())


def test_a_long_recovery_says_how_far_it_is(
    journal: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskbuf.__main__._PROGRESS_S", 0)
    result = invoked("journal", "recover", journal, "--store", image)
    assert f"diskbuf: {journal}: 8192 of 8192 bytes recovered" in result.output
