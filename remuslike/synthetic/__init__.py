"""A guest that is a process of ours: in QEMU's place it dirties memory, sends frames and writes its disk at
set rates, protected by the same daemons in the same way, and knows at any time what it must consist of.

    guest.qemu = str(program_path())
    guest.append = Rates(dirty_pages_s=2000, address="10.77.0.2/24").append()

This package's top imports neither numpy nor trio, for the guest has to start quickly. `client` asks it, and
judges its answers.
"""

from remuslike.synthetic.errors import (
    DeviceStateError,
    NoAnswerError,
    RatesError,
    SyntheticCommandError,
    SyntheticDiskError,
    SyntheticError,
)
from remuslike.synthetic.rates import Rates, program_path

__all__ = [
    "DeviceStateError",
    "NoAnswerError",
    "Rates",
    "RatesError",
    "SyntheticCommandError",
    "SyntheticDiskError",
    "SyntheticError",
    "program_path",
]
