"""A real guest for benchmarks: the guest image under QEMU, told what to do through its agent."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import trio

from netbuf import GuestTap
from remuslike.bench.errors import MeasurementError
from remuslike.bench.lan import PREFIX_LENGTH, Lan
from remuslike.image import AGENT_PORT, Accelerator, GuestImage, host_tsc_khz, kernel_command_line

_MEMORY_MIB = 128  # the least that the image boots in
_BOOT_LIMIT_S = 90.0  # under TCG some five seconds, on an idle machine
_ATTEMPT_S = 1.0
_RETRY_S = 0.1
_ANSWER_BYTES_MAX = 1 << 20


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
        """Return when the guest has booted. Raises MeasurementError."""
        with trio.move_on_after(_BOOT_LIMIT_S):
            while True:
                try:
                    with trio.fail_after(_ATTEMPT_S):
                        stream = await trio.open_tcp_stream(self.address, AGENT_PORT)
                except (OSError, trio.TooSlowError):
                    await trio.sleep(_RETRY_S)
                    continue
                await stream.aclose()
                return
        raise MeasurementError(f"the guest {self.address} hasn't booted within {_BOOT_LIMIT_S:g} s")

    async def run(self, *arguments: str) -> str:
        """What a command prints in the guest, errors included. Raises MeasurementError."""
        answer = b""
        try:
            async with await trio.open_tcp_stream(self.address, AGENT_PORT) as stream:
                await stream.send_all(shlex.join(arguments).encode() + b"\n")
                await stream.send_eof()
                async for part in stream:
                    answer += part
                    if len(answer) > _ANSWER_BYTES_MAX:
                        raise MeasurementError(f"{arguments[0]} in {self.address} prints without end")
        except (OSError, trio.BrokenResourceError) as error:
            raise MeasurementError(f"the agent of {self.address} is gone: {error}; has QEMU died?") from error
        return answer.decode(errors="replace")


def start_qemu_guest(lan: Lan, image: GuestImage, accelerator: Accelerator) -> QemuGuest:
    """Another guest of `lan`, which begins to boot; its tap is down and in no bridge.

    Raises MeasurementError, `netbuf.NetbufError`.
    """
    place = lan.new_place()
    append = kernel_command_line(addresses=[f"{place.address}/{PREFIX_LENGTH}"], tsc_khz=host_tsc_khz())
    root = str(image.root).replace(",", ",,")  # a comma ends a QEMU option's value unless it is doubled
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-machine", f"q35,accel={accelerator}", "-cpu", "max", "-m", str(_MEMORY_MIB)]
    command += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append]
    command += ["-drive", f"file={root},format=raw,if=virtio,readonly=on"]
    command += ["-netdev", f"tap,id=net0,fd={place.tap.fileno()},vhost=off"]
    command += ["-device", f"virtio-net-pci,netdev=net0,mac={place.mac},romfile="]
    process = lan.start(command, descriptors=(place.tap.fileno(),))
    return QemuGuest(place.tap, process.pid, place.address, place.mac)
