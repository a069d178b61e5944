"""`python -m diskbuf serve` in a process of its own, with real clients, signals and crashes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.certificate import make_certificate
from fakes.nbd_server import nbdkit

nbd = pytest.importorskip("nbd", reason="libnbd's Python binding (python3-libnbd) is not installed")

SIZE = 8 << 20
END_S = 60
"""What the process may take to come up or to end before the test gives up; it needs about a second."""


class Server:
    """`python -m diskbuf serve ARGUMENTS`, once it serves."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "diskbuf", "serve", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.said: list[str] = []
        self.uris: list[str] = []

    def wait_until_serving(self, exports: int = 1) -> None:
        assert self.process.stderr is not None
        while len(self.uris) < exports:
            line = self.process.stderr.readline()
            assert line, f"it ended instead: {self.said}"
            self.said.append(line)
            if line.startswith("diskbuf: serving "):
                self.uris.append(line.split()[-1])

    def report(self) -> dict[str, object]:
        """Ask for statistics while it runs."""
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, dict[str, object] | None, str]:
        """Its exit status, its last statistics, and what it said."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=END_S)
        lines = output.splitlines()
        return self.process.returncode, json.loads(lines[-1]) if lines else None, "".join(self.said) + errors

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=END_S)


@pytest.fixture
def start() -> Iterator[object]:
    servers: list[Server] = []

    def started(*arguments: object, exports: int = 1) -> Server:
        server = Server(*arguments)
        servers.append(server)
        server.wait_until_serving(exports)
        return server

    yield started
    for server in servers:
        server.kill()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def connected(uri: str) -> object:
    client = nbd.NBD()
    client.connect_uri(uri)
    return client


def test_what_was_written_waits_and_is_in_the_store_after_an_orderly_end(
    start, image: Path, tmp_path: Path
) -> None:
    server = start("--store", image, "--socket", tmp_path / "nbd.sock", "--release-every", 1e6)
    client = connected(server.uris[0])
    client.pwrite(b"held", 4095)
    client.flush()
    assert client.pread(6, 4094) == b"\0held\0"
    assert not any(image.read_bytes())
    disk = server.report()["exports"][""]
    assert (disk["held_items"], disk["released_items"], disk["store"]) == (1, 0, f"file:{image}")
    code, report, _ = server.end(signal.SIGINT)
    assert code == 0
    assert report["exports"][""]["held_items"] == 0
    assert image.read_bytes()[4094:4100] == b"\0held\0"
    assert not (tmp_path / "nbd.sock").exists()


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_a_copy_through_the_timer_is_the_same(start, image: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.img"
    source.write_bytes(random.Random(4).randbytes(SIZE))
    server = start(
        "--store", f"file:{image}", "--socket", tmp_path / "nbd.sock", "--release-every", 5, "--limit", "1M",
        "--journal", tmp_path / "journal",
    )  # fmt: skip
    subprocess.run(
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uris[0]],
        check=True,
        timeout=END_S,
    )
    code, report, _ = server.end()
    assert code == 0
    assert report["epochs"] > 1
    assert image.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_leaves_one_instant_of_the_disk(start, image: Path, tmp_path: Path, seed: int) -> None:
    """A client counts up in eight far-apart places, in order; at any instant they differ by one at most."""
    places = [index << 20 for index in range(8)]
    arguments = (
        "--store", image, "--socket", tmp_path / "nbd.sock", "--journal", tmp_path / "journal",
        "--release-every", 1,
    )  # fmt: skip
    server = start(*arguments)
    client = connected(server.uris[0])
    planned = 200 + random.Random(seed).randrange(300)
    for count in itertools.count(1):
        for place in places:
            client.pwrite(count.to_bytes(8, "big"), place)
        # On a busy machine so many writes may have been faster than the timer.
        if count >= planned and server.report()["exports"][""]["released_items"]:
            break
    server.kill()
    recovering = start(*arguments)
    client = connected(recovering.uris[0])
    counts = [int.from_bytes(client.pread(8, place), "big") for place in places]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
    assert counts[0] > 0
    assert recovering.end()[0] == 0


def test_several_exports_read_only_and_at_once(start, image: Path, tmp_path: Path) -> None:
    place = tmp_path / "nbd.sock"
    server = start(
        "--store", image, "--export", "disk", "--store", "memory:4M", "--export", "scratch",
        "--socket", place, "--release-every", 0, exports=2,
    )  # fmt: skip
    disk, scratch = (connected(uri) for uri in server.uris)
    assert (disk.get_size(), scratch.get_size()) == (SIZE, 4 << 20)
    disk.pwrite(b"now", 0)
    disk.flush()
    assert image.read_bytes()[:3] == b"now"
    assert server.end()[0] == 0
    server = start("--store", image, "--socket", place, "--read-only")
    client = connected(server.uris[0])
    assert client.is_read_only()
    assert client.pread(3, 0) == b"now"
    assert server.end()[0] == 0


def test_tls_over_tcp(start, tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    server = start(
        "--store", "memory:1M", "--tcp", "127.0.0.1:0", "--release-every", 10,
        "--tls-certificate", certificate, "--tls-key", key,
    )  # fmt: skip
    assert server.uris[0].startswith("nbds://127.0.0.1:")
    client = nbd.NBD()
    client.set_tls(nbd.TLS_REQUIRE)
    (tmp_path / "client").mkdir()
    shutil.copy(certificate, tmp_path / "client" / "ca-cert.pem")
    client.set_tls_certificates(str(tmp_path / "client"))
    client.connect_uri(server.uris[0])
    assert client.get_tls_negotiated()
    client.pwrite(b"secret", 0)
    assert client.pread(6, 0) == b"secret"
    plain = nbd.NBD()
    with pytest.raises(nbd.Error):
        plain.connect_uri(server.uris[0].replace("nbds:", "nbd:"))
    assert server.end()[0] == 0


def test_mutual_tls_turns_strangers_away(start, tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    server = start(
        "--store", "memory:1M", "--tcp", "127.0.0.1:0", "--release-every", 10,
        "--tls-certificate", certificate, "--tls-key", key, "--tls-ca", certificate,
    )  # fmt: skip
    stranger = nbd.NBD()
    stranger.set_tls(nbd.TLS_REQUIRE)
    stranger.set_tls_verify_peer(False)
    with pytest.raises(nbd.Error):
        stranger.connect_uri(server.uris[0])
        stranger.pread(1, 0)
    assert server.end()[0] == 0


def test_plaintext_where_it_was_asked_for(start) -> None:
    server = start("--store", "memory:1M", "--tcp", "127.0.0.1:0", "--plaintext", "--release-every", 10)
    client = connected(server.uris[0])
    client.pwrite(b"plain", 0)
    assert client.pread(5, 0) == b"plain"
    assert server.end()[0] == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts take root")
def test_a_full_disk_is_waited_for_and_then_told(start, tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", place], check=False).returncode:
        pytest.skip("no tmpfs can be mounted")
    try:
        image, other = place / "disk.img", place / "other"
        with image.open("wb") as file:
            file.truncate(SIZE)
        other.write_bytes(bytes(900 << 10))
        server = start("--store", image, "--socket", tmp_path / "nbd.sock", "--release-every", 10)
        client = connected(server.uris[0])
        client.pwrite(b"x" * (512 << 10), 0)
        line = server.process.stderr.readline()
        assert "is held and tried again every 1 s: " in line
        assert "No space left on device" in line
        other.unlink()
        assert "is released after all" in server.process.stderr.readline()
        assert image.read_bytes()[: 512 << 10] == b"x" * (512 << 10)

        client.pwrite(b"y" * (1 << 20), 1 << 20)
        assert "is held" in server.process.stderr.readline()
        code, report, said = server.end()
        assert code == 1
        assert report["exports"][""]["held_bytes"] == 1 << 20
        assert said.splitlines()[-1].startswith(
            "diskbuf: export '': 1048576 bytes that clients had written are lost: "
        )
        server.kill()
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_store_whose_server_dies_and_comes_back_gets_everything(start, tmp_path: Path) -> None:
    backing = tmp_path / "backing.img"
    backing.write_bytes(bytes(SIZE))
    with closing(nbdkit(tmp_path / "store.sock", "file", str(backing))) as behind:
        server = start(
            "--store", behind.uri, "--journal", tmp_path / "journal", "--socket", tmp_path / "nbd.sock",
            "--release-every", 5,
        )  # fmt: skip
        client = connected(server.uris[0])
        client.pwrite(b"before", 0)
        behind.kill()
        client.pwrite(b"during", 4096)
        client.flush()
        assert client.pread(6, 4096) == b"during"
        behind.start()
        client.pwrite(b"after", 8192)
        assert server.end()[0] == 0
    found = backing.read_bytes()
    assert (found[:6], found[4096:4102], found[8192:8197]) == (b"before", b"during", b"after")


def test_errors_are_one_line(tmp_path: Path) -> None:
    for arguments, status, message in (
        (("journal", "show", tmp_path / "absent"), 1, "absent"),
        (
            ("serve", "--store", "memory:1M", "--release-every", "1", "--socket", tmp_path / "no" / "s"),
            1,
            "socket",
        ),
        (("serve", "--store", "memory:1M"), 2, "--release-every"),
    ):
        command = [sys.executable, "-m", "diskbuf", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=END_S)
        assert done.returncode == status
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert status == 2 or len(done.stderr.splitlines()) == 1
