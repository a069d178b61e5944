"""What a secondary keeps of acknowledged epochs until it hears that the primary has released them. Pure.

While the primary lives it alone lets outputs leave, and tells when those of an epoch have. What it has not
told of by its death may have left wholly, in part or not at all: the survivor does it once more, in order.
That is for disks that both hosts share, where writes are absolute, so that doing one twice is doing it once
(P7); and for the frames of a tapped network, which may see a frame twice as any network may.
"""

from __future__ import annotations

from diskbuf import SealedWrites

# More than the depth of any primary, which captures an epoch only when the one that many before it has been
# released: one that owes more is not ours (P6).
RETAINED_EPOCHS_MAX = 16

DiskWrites = list[tuple[int, SealedWrites]]
NicFrames = list[tuple[int, list[bytes]]]


class RetainedOutputs:
    """The outputs of one session, by epoch; see the head of this module."""

    def __init__(self) -> None:
        self._epochs: dict[int, tuple[DiskWrites, NicFrames]] = {}
        self._released = 0

    def __len__(self) -> int:
        return len(self._epochs)

    def keep(self, epoch: int, writes: DiskWrites, frames: NicFrames) -> None:
        """`writes` of `epoch` to shared disks: (disk, its writes); `frames`: (network interface, its frames).
        Epochs come in ascending order; one that was released before it was applied is not kept."""
        if epoch > self._released and (writes or frames):
            self._epochs[epoch] = writes, frames

    def forget(self, epoch: int) -> None:
        """`epoch`, and whatever is older, has left the primary."""
        self._released = max(self._released, epoch)
        for older in [older for older in self._epochs if older <= epoch]:
            del self._epochs[older]

    def writes(self) -> list[tuple[int, int, SealedWrites]]:
        """(epoch, disk, its writes) in the order in which they are to be written."""
        return [
            (epoch, disk, writes) for epoch in sorted(self._epochs) for disk, writes in self._epochs[epoch][0]
        ]

    def frames(self) -> list[tuple[int, int, list[bytes]]]:
        """(epoch, network interface, its frames) in the order in which they are to be sent."""
        return [
            (epoch, nic, frames) for epoch in sorted(self._epochs) for nic, frames in self._epochs[epoch][1]
        ]
