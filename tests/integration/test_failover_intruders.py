"""Strangers at every door of a running, protected pair: each is sent away, and the guest doesn't notice."""

from __future__ import annotations

import copy
import json
import random
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from daemon_harness import COMMAND, WAIT_LIMIT_S, Cluster, Daemon, Node, Shape, cluster, marks
from guest_client import connect, shell

from remuslike.demo import plan
from remuslike.demo.control import ask
from remuslike.demo.errors import DaemonError
from remuslike.demo.messages import Samples
from remuslike.engine.handshake import PROTOCOL_VERSION, Hello, Refusal, parse_untrusted
from transport import Frame, FrameReader, FrameType, encode_frame

pytestmark = marks

FENCED = 3

SEED = 20
GARBAGE = random.Random(SEED).randbytes(1 << 16)

HELLO = b"".join(
    map(
        bytes,
        encode_frame(
            FrameType.HELLO,
            0,
            [Hello(protocol=PROTOCOL_VERSION, name="stranger", generation=9, definition={}).encode()],
        ),
    )
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Cluster, Daemon, Daemon]]:
    """One protected guest for all tests here: none of them may harm it."""
    with cluster(Shape(service="none")) as hosts:
        primary, secondary = trio.run(hosts.protect)
        yield hosts, primary, secondary


async def assert_untouched(hosts: Cluster, primary: Daemon, secondary: Daemon) -> None:
    """The same session as ever still commits what the guest does."""
    before = await primary.statistics()
    assert before is not None
    assert before.protected
    output = await shell(hosts, "echo here >/data/file && sync && cat /data/file")
    assert output == "here\n"
    after = await primary.wait("three epochs on", lambda said: said.epoch > before.epoch + 3)
    assert after.protected
    assert (await secondary.wait_phase("standby")).generation == after.generation == before.generation
    for daemon in (primary, secondary):
        # One session accepted, none ended.
        assert daemon.log.count("session.accepted") == 1
        assert "session.ended" not in daemon.log


async def say(stream: trio.SocketStream, data: bytes) -> None:
    """Send it all, unless the other side hangs up in the midst."""
    with trio.fail_after(WAIT_LIMIT_S), suppress(trio.BrokenResourceError):
        await stream.send_all(data)
        await stream.send_eof()


async def drain(stream: trio.SocketStream) -> bytes:
    """What the other side says until it hangs up, which it must."""
    received = b""
    # Broken: it hung up with bytes of ours unread.
    with trio.fail_after(WAIT_LIMIT_S), suppress(trio.BrokenResourceError):
        async for data in stream:
            received += data
    return received


def frames(received: bytes) -> list[Frame]:
    """What came, which must be whole frames."""
    reader, found = FrameReader(), []
    while received:
        room = reader.buffer()
        count = min(len(room), len(received))
        room[:count] = received[:count]
        found += reader.received(count)
        received = received[count:]
    assert not reader.mid_frame
    return found


def oversized() -> bytes:
    """A header in order but for the four GiB that it announces; transport/frames.py has the layout."""
    fields = HELLO[:8] + b"\xff\xff\xff\xff" + HELLO[12:24]
    return fields + zlib.crc32(fields).to_bytes(4, "little")


@pytest.mark.parametrize(
    "sent",
    [GARBAGE, HELLO[:10], HELLO[:-1], oversized(), HELLO[:-1] + b"\x00", b"GET / HTTP/1.0\r\n\r\n"],
    ids=["garbage", "half a header", "half a frame", "oversized frame", "wrong checksum", "another protocol"],
)
async def test_bytes_that_are_no_frames(pair: tuple[Cluster, Daemon, Daemon], sent: bytes) -> None:
    hosts, primary, secondary = pair
    async with await connect_peer(hosts) as stream:
        await say(stream, sent)
        answers = frames(await drain(stream))
    # A peer that says less than a frame gets no answer but the end of the connection.
    assert {frame.type for frame in answers} <= {FrameType.REFUSE}
    await assert_untouched(hosts, primary, secondary)


async def test_a_peer_that_protects_another_guest(pair: tuple[Cluster, Daemon, Daemon]) -> None:
    hosts, primary, secondary = pair
    async with await connect_peer(hosts) as stream:
        await say(stream, HELLO)
        (answer,) = frames(await drain(stream))
    assert answer.type is FrameType.REFUSE
    assert "stranger has 'nothing'" in parse_untrusted(Refusal, answer.payload).reason
    await assert_untouched(hosts, primary, secondary)


def second_primary(hosts: Cluster, name: str) -> Node:
    """A node on the first host that protects the same guest from a run directory and a disk of its own."""
    second = copy.deepcopy(hosts.primary)
    second.directory = hosts.directory / name
    second.directory.mkdir()
    disk = second.directory / "data0"
    shutil.copyfile(hosts.primary.disks[0], disk)
    second.document |= {"name": name, "run_directory": second.directory / "run"}
    second.document["guest"]["disks"][1]["store"] = disk
    second.document["guest"]["local_arguments"] = []
    return second


async def test_a_second_primary(pair: tuple[Cluster, Daemon, Daemon]) -> None:
    hosts, primary, secondary = pair
    daemon = hosts.start(second_primary(hosts, "second"))
    await daemon.wait_over(FENCED)
    assert "the guest runs there, not here" in daemon.log
    await assert_untouched(hosts, primary, secondary)


async def test_a_second_primary_with_a_witness_of_its_own(pair: tuple[Cluster, Daemon, Daemon]) -> None:
    hosts, primary, secondary = pair
    third = second_primary(hosts, "third")
    witness = third.directory / "witness"
    third.document["witness"]["path"] = witness
    # Its guest must not run: it has the address of the one that does.
    third.document["on_secondary_loss"] = "stall"

    daemon = hosts.start(third)
    try:
        line = await daemon.wait_logged("already has a primary")
        assert "the secondary refused: 'secondary' already has a primary" in line
        generations = [json.loads(path.read_text())["generation"] for path in (witness, hosts.witness)]
        assert generations[0] == generations[1]
        await assert_untouched(hosts, primary, secondary)
    finally:
        daemon.terminate()
    await daemon.wait_over(0)


async def connect_peer(hosts: Cluster) -> trio.SocketStream:
    return await connect(hosts.primary.namespace, plan.PEER_ADDRESSES["secondary"], plan.REPLICATION_PORT)


@pytest.mark.parametrize("role", plan.ROLES)
async def test_garbage_at_the_disk(pair: tuple[Cluster, Daemon, Daemon], role: plan.Role) -> None:
    hosts, primary, secondary = pair
    node = {"primary": hosts.primary, "secondary": hosts.secondary}[role]
    disk = node.control.with_name("disk-data0.sock")
    async with await trio.open_unix_socket(disk) as stream:
        await say(stream, GARBAGE)
        await drain(stream)
    await assert_untouched(hosts, primary, secondary)


CONTROL_REFUSALS = {
    "no JSON": (b"\x00\xff garbage\n", "not JSON"),
    "no object": (b"[1]\n", '"command"'),
    "no command": (b'{"order": "statistics"}\n', '"command"'),
    "unknown command": (b'{"command": "explode"}\n', "'explode'"),
    "endless line": (b"x" * 10_000, "at most 4096 bytes"),
    "deep nesting": (b"[" * 4000 + b"\n", "not JSON"),
}


@pytest.mark.parametrize(("sent", "reason"), CONTROL_REFUSALS.values(), ids=CONTROL_REFUSALS)
@pytest.mark.parametrize("role", plan.ROLES)
async def test_requests_that_cannot_be_followed(
    pair: tuple[Cluster, Daemon, Daemon], role: plan.Role, sent: bytes, reason: str
) -> None:
    hosts, primary, secondary = pair
    node = {"primary": hosts.primary, "secondary": hosts.secondary}[role]
    async with await trio.open_unix_socket(node.control) as stream:
        await say(stream, sent)
        (answer,) = (await drain(stream)).splitlines()
    assert reason in json.loads(answer)["error"]
    await assert_untouched(hosts, primary, secondary)


async def test_a_request_with_a_value_out_of_range(pair: tuple[Cluster, Daemon, Daemon]) -> None:
    hosts, _, _ = pair
    with pytest.raises(DaemonError, match="since = -1: must be"):
        await ask(hosts.primary.control, Samples, "samples", since=-1)


def test_half_a_request(pair: tuple[Cluster, Daemon, Daemon]) -> None:
    hosts, primary, secondary = pair
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(hosts.primary.control))
        client.sendall(b'{"command": "stat')
    trio.run(assert_untouched, hosts, primary, secondary)


def status_command(path: Path) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "status", "--config", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=WAIT_LIMIT_S)


def test_status(pair: tuple[Cluster, Daemon, Daemon]) -> None:
    hosts, _, _ = pair
    for node, phase in ((hosts.primary, "protected"), (hosts.secondary, "standby")):
        done = status_command(node.directory / "remuslike.toml")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["role"], said["phase"]) == (node.role, phase)


def test_status_of_a_daemon_that_does_not_run(pair: tuple[Cluster, Daemon, Daemon], tmp_path: Path) -> None:
    hosts, _, _ = pair
    configuration = (hosts.primary.directory / "remuslike.toml").read_text()
    elsewhere = tmp_path / "remuslike.toml"
    run_directory = hosts.primary.document["run_directory"]
    elsewhere.write_text(configuration.replace(f'"{run_directory}"', '"/nonexistent"', 1))
    done = status_command(elsewhere)
    assert done.returncode == 1
    assert "nobody answers" in done.stderr
    assert len(done.stderr.splitlines()) == 1
