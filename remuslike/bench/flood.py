"""A guest that sends as fast as it can: writes one frame into a tap's descriptor until it is killed.

    python -m remuslike.bench.flood FD SECONDS FRAME

FRAME is in hexadecimal, its vnet header included; after SECONDS it ends by itself.
"""

from __future__ import annotations

import os
import sys
import time

_FRAMES_A_LOOK = 1000  # between two looks at the clock: some ms


def flood(descriptor: int, seconds: float, frame: bytes) -> None:
    """Write `frame` to `descriptor` for about `seconds`."""
    write = os.write
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(_FRAMES_A_LOOK):
            write(descriptor, frame)


if __name__ == "__main__":
    flood(int(sys.argv[1]), float(sys.argv[2]), bytes.fromhex(sys.argv[3]))
