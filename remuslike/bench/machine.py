"""A real guest for benchmarks: the guest image under QEMU, told what to do through its agent."""

from __future__ import annotations

import shlex
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from netbuf import GuestTap
from remuslike.bench.errors import MeasurementError
from remuslike.bench.lan import PREFIX_LENGTH, Lan
from remuslike.bench.processes import start_process
from remuslike.image import AGENT_PORT, Accelerator, GuestImage, host_tsc_khz, kernel_command_line

_MEMORY_MIB = 128  # the least that the image boots in
_FIO_MEMORY_MIB = 512  # fio's libraries are many, and want to be mapped
_BOOT_LIMIT_S = 90.0  # under TCG some five seconds, on an idle machine
_ATTEMPT_S = 1.0
_RETRY_S = 0.1
_ANSWER_BYTES_MAX = 1 << 20
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Agent:
    """A guest's root shell, as it can be reached from here."""

    address: str
    port: int

    async def ready(self) -> None:
        """Return when the guest has booted. Raises MeasurementError."""
        with trio.move_on_after(_BOOT_LIMIT_S):
            while True:
                try:
                    with trio.fail_after(_ATTEMPT_S):
                        answer = await self._ask("echo", "booted")
                except (OSError, trio.BrokenResourceError, trio.TooSlowError):
                    answer = b""
                if answer:  # QEMU's own network accepts for a guest that doesn't listen yet
                    return
                await trio.sleep(_RETRY_S)
        raise MeasurementError(f"the guest {self.address} hasn't booted within {_BOOT_LIMIT_S:g} s")

    async def run(self, *arguments: str) -> str:
        """What a command prints in the guest, errors included. Raises MeasurementError."""
        try:
            return (await self._ask(*arguments)).decode(errors="replace")
        except (OSError, trio.BrokenResourceError) as error:
            raise MeasurementError(f"the agent of {self.address} is gone: {error}; has QEMU died?") from error

    async def _ask(self, *arguments: str) -> bytes:
        answer = b""
        async with await trio.open_tcp_stream(self.address, self.port) as stream:
            await stream.send_all(shlex.join(arguments).encode() + b"\n")
            await stream.send_eof()
            async for part in stream:
                answer += part
                if len(answer) > _ANSWER_BYTES_MAX:
                    raise MeasurementError(f"{arguments[0]} in {self.address} prints without end")
        return answer


@dataclass(frozen=True, slots=True)
class QemuGuest:
    """A guest with one virtual CPU and one virtio NIC behind `tap`, which QEMU reads and writes itself."""

    tap: GuestTap
    process: int
    address: str
    mac: str
    part: str = "qemu"
    shares_kernel: bool = False

    async def ready(self) -> None:
        """See `Agent.ready`."""
        await Agent(self.address, AGENT_PORT).ready()

    async def run(self, *arguments: str) -> str:
        """See `Agent.run`."""
        return await Agent(self.address, AGENT_PORT).run(*arguments)


def start_qemu_guest(lan: Lan, image: GuestImage, accelerator: Accelerator) -> QemuGuest:
    """Another guest of `lan`, which begins to boot; its tap is down and in no bridge.

    Raises MeasurementError, `netbuf.NetbufError`.
    """
    place = lan.new_place()
    command = _qemu(image, accelerator, f"{place.address}/{PREFIX_LENGTH}", _MEMORY_MIB)
    command += ["-netdev", f"tap,id=net0,fd={place.tap.fileno()},vhost=off"]
    command += ["-device", f"virtio-net-pci,netdev=net0,mac={place.mac},romfile="]
    process = lan.start(command, descriptors=(place.tap.fileno(),))
    return QemuGuest(place.tap, process.pid, place.address, place.mac)


def start_disk_guest(
    stack: ExitStack, image: GuestImage, accelerator: Accelerator, blockdev: str
) -> tuple[Agent, int]:
    """A guest whose /dev/vdb is `blockdev` (QEMU's option, without a node name); it begins to boot.

    Returns its agent and QEMU's process. It needs no privilege: QEMU plays its network.
    """
    with socket.socket() as free:  # QEMU takes no port of its own choice
        free.bind((_LOOPBACK, 0))
        port = free.getsockname()[1]
    command = _qemu(image, accelerator, "10.0.2.15/24", _FIO_MEMORY_MIB)
    command += ["-blockdev", f"{blockdev},node-name=data", "-device", "virtio-blk-pci,drive=data"]
    command += ["-netdev", f"user,id=net0,restrict=on,hostfwd=tcp:{_LOOPBACK}:{port}-:{AGENT_PORT}"]
    command += ["-device", "virtio-net-pci,netdev=net0,romfile="]
    return Agent(_LOOPBACK, port), start_process(stack, command).pid


def _qemu(image: GuestImage, accelerator: Accelerator, address: str, memory_mib: int) -> list[str]:
    """The command line but for the NIC; `address` is for eth0."""
    append = kernel_command_line(addresses=[address], tsc_khz=host_tsc_khz())
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-machine", f"q35,accel={accelerator}", "-cpu", "max", "-m", str(memory_mib)]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append]
    # A device in so many words: one that -drive implies would come after all others, and not be vda.
    command += ["-drive", f"file={quote(image.root)},format=raw,if=none,id=root,readonly=on"]
    return [*command, "-device", "virtio-blk-pci,drive=root"]


def quote(path: Path) -> str:
    """As a value within a QEMU option: a comma ends it unless it is doubled."""
    return str(path).replace(",", ",,")
