"""The virtual NIC of the synthetic guest: moves frames between the guest's tap and the tap in its namespace.

    guest's namespace --eth0--> [this process] --guest tap--> hold, bridge

It does what QEMU's virtio-net does, one read and one write a frame. Both taps have a vnet header of the same
length, so a GSO frame of up to 64 KiB passes whole and the guest is the kernel's own TCP. Run as a process of
its own (`python -m remuslike.bench.relay FD FD FRAME_BYTES_MAX`), it ends when its standard input does; it
imports nothing of ours, which would take seconds on an emulated processor.
"""

from __future__ import annotations

import os
import select
import sys

# Of one side before the other gets its turn: as many as virtio-net takes from a queue at once (tx_burst).
_TURN_FRAMES = 256


def relay(one: int, other: int, until: int, frame_bytes_max: int) -> None:
    """Move frames both ways, in order, until `until` has something to read or is closed.

    `one` and `other` are non-blocking descriptors of taps; longer frames than `frame_bytes_max`, vnet header
    included, would be cut short.
    """
    buffers = (memoryview(bytearray(frame_bytes_max)),)
    targets = {one: other, other: one}
    poll = select.epoll()
    for descriptor in (one, other, until):
        poll.register(descriptor, select.EPOLLIN)
    while True:
        for source, _ in poll.poll():
            if source == until:
                return
            _move(source, targets[source], buffers)


def _move(source: int, target: int, buffers: tuple[memoryview]) -> None:
    (buffer,) = buffers
    for _ in range(_TURN_FRAMES):
        try:
            length = os.readv(source, buffers)
        except BlockingIOError:
            return
        try:
            os.write(target, buffer[:length])
        except OSError:
            # As a NIC without a link: the interface is still or again down, the frame is lost.
            continue


if __name__ == "__main__":
    relay(int(sys.argv[1]), int(sys.argv[2]), sys.stdin.fileno(), int(sys.argv[3]))
