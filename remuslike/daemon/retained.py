"""What a secondary keeps for disks that both hosts share: acknowledged writes that may not be there. Pure.

While the primary lives it alone writes to a shared store, and tells when an epoch is there durably. What it
has not told of by its death may be there wholly, in part or not at all: the survivor writes it once more, in
order. Writes are absolute, so doing one twice is doing it once (P7).
"""

from __future__ import annotations

from diskbuf import SealedWrites


class RetainedWrites:
    """The writes of one session, by epoch. Bounded by the primary's depth and window: an epoch is captured
    only when the one that many before it has been released."""

    def __init__(self) -> None:
        self._epochs: dict[int, list[tuple[int, SealedWrites]]] = {}

    def __len__(self) -> int:
        return len(self._epochs)

    def keep(self, epoch: int, writes: list[tuple[int, SealedWrites]]) -> None:
        """`writes` of `epoch` to shared disks: (disk, its writes). Epochs come in ascending order."""
        self._epochs[epoch] = writes

    def forget(self, epoch: int) -> None:
        """`epoch`, and whatever is older, is on the shared disks."""
        for older in [older for older in self._epochs if older <= epoch]:
            del self._epochs[older]

    def replay(self) -> list[tuple[int, int, SealedWrites]]:
        """(epoch, disk, its writes) in the order in which they are to be written."""
        return [
            (epoch, disk, writes) for epoch in sorted(self._epochs) for disk, writes in self._epochs[epoch]
        ]
