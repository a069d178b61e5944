"""Boots the guest image on both machine types and talks to what it serves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from remuslike.image import (
    AGENT_PORT,
    READY_LINE,
    SERVICE_PORT,
    STOPPED_LINE,
    GuestImage,
    build_image,
    host_tsc_khz,
    kernel_command_line,
    make_data_disk,
)

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 isn't installed"
    ),
]

BOOT_LIMIT_SECONDS = 60
"""Three seconds are usual; the rest is for a machine that does something else meanwhile."""

GUEST_ADDRESS = "10.0.2.15/24"
"""The address to which QEMU's user network forwards."""

MACHINES = {"q35": "pci", "microvm": "device"}


@dataclass
class Guest:
    """A running guest; its console grows while it runs."""

    process: subprocess.Popen[bytes]
    output: trio.lowlevel.FdStream
    agent_port: int
    service_port: int
    console: bytearray = field(default_factory=bytearray)

    async def wait_for(self, line: str) -> None:
        """Reads the console until it has `line`; the guest's end without it is an error."""
        while line.encode() not in self.console:
            received = await self.output.receive_some()
            assert received, f"QEMU ended without {line!r}: {self.console.decode(errors='replace')}"
            self.console += received

    async def wait_ended(self) -> int:
        """QEMU's exit status, when it has said its last."""
        while received := await self.output.receive_some():
            self.console += received
        return self.process.wait(timeout=BOOT_LIMIT_SECONDS)

    async def ask(self, port: int, request: str) -> str:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(request.encode())
            await stream.send_eof()
            return b"".join([part async for part in stream]).decode()

    async def shell(self, command: str) -> str:
        return await self.ask(self.agent_port, f"{command}\n")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return build_image()


@pytest.fixture
def data_disk(tmp_path: Path) -> Path:
    path = tmp_path / "data.raw"
    make_data_disk(path, 32)
    return path


@asynccontextmanager
async def booted(image: GuestImage, machine: str, data_disk: Path, command_line: str) -> AsyncIterator[Guest]:
    """Runs the guest with two NICs; kills it at the end whatever happens."""
    agent_port, service_port = free_port(), free_port()
    bus = MACHINES[machine]
    ports = {agent_port: AGENT_PORT, service_port: SERVICE_PORT}
    forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{here}-:{there}" for here, there in ports.items())
    command = [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-machine", f"{machine},accel=tcg", "-cpu", "max", "-m", "256"),
        *("-kernel", image.kernel, "-initrd", image.initrd, "-append", command_line),
        *("-drive", f"if=none,id=root,format=raw,readonly=on,file={image.root}"),
        *("-device", f"virtio-blk-{bus},drive=root"),
        *("-drive", f"if=none,id=data,format=raw,file={data_disk}"),
        *("-device", f"virtio-blk-{bus},drive=data"),
        *("-netdev", f"user,id=net0,restrict=on,{forwards}"),
        *("-device", f"virtio-net-{bus},netdev=net0,mac=52:54:00:77:00:01"),
        *("-netdev", "user,id=net1,restrict=on"),
        *("-device", f"virtio-net-{bus},netdev=net1,mac=52:54:00:77:00:02"),
    ]
    # Started in this thread: trio would start it in one of its own, whose end after ten idle seconds the
    # parent-death signal would take for ours.
    process = subprocess.Popen(  # noqa: ASYNC220
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as output:
            with trio.fail_after(BOOT_LIMIT_SECONDS):
                yield Guest(process, output, agent_port, service_port)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("machine", MACHINES)
async def test_the_guest_serves_and_stops_cleanly(image: GuestImage, data_disk: Path, machine: str) -> None:
    line = kernel_command_line(
        addresses=[GUEST_ADDRESS, "10.99.0.2/24"], data_disk="vdb", service="redis", tsc_khz=host_tsc_khz()
    )
    async with booted(image, machine, data_disk, line) as guest:
        await guest.wait_for(READY_LINE)

        assert await guest.shell("false; echo status $?") == "status 1\n"
        assert await guest.shell("cat /sys/class/net/eth0/address") == "52:54:00:77:00:01\n"
        assert "10.99.0.2/24" in await guest.shell("ip -o address show dev eth1")
        assert "/dev/vdb on /data type ext4" in await guest.shell("mount")

        reply = await guest.ask(guest.service_port, "SET key value\r\nCONFIG GET appendfsync\r\nQUIT\r\n")
        assert reply.startswith("+OK")
        assert "always" in reply
        for tool in ("fio --version", "iperf3 --version", "sqlite3 -version", "redis-cli ping"):
            assert await guest.shell(f"{tool} >/dev/null; echo $?") == "0\n", tool

        await guest.shell("stop-guest")
        await guest.wait_for(STOPPED_LINE)
        assert await guest.wait_ended() == 0

    await trio.run_process(["/sbin/e2fsck", "-fn", data_disk], capture_stdout=True, capture_stderr=True)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("command", ["poweroff -f", "reboot -f"])
async def test_power_off_and_reboot_end_the_machine(
    image: GuestImage, data_disk: Path, machine: str, command: str
) -> None:
    line = kernel_command_line(addresses=[GUEST_ADDRESS], tsc_khz=host_tsc_khz())
    async with booted(image, machine, data_disk, line) as guest:
        await guest.wait_for(READY_LINE)
        await guest.shell(command)
        assert await guest.wait_ended() == 0


async def test_a_guest_that_cannot_start_says_why_and_stops(image: GuestImage, data_disk: Path) -> None:
    async with booted(image, "q35", data_disk, kernel_command_line(data_disk="vdz")) as guest:
        await guest.wait_for("remus-guest failed: remus.data=vdz isn't an ext4 disk")
        assert await guest.wait_ended() == 0
