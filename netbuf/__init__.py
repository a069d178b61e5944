"""Holds what a guest sends to the network until its epoch is safe, and then lets it out in a burst."""

from netbuf.announce import rarp_frame
from netbuf.choice import Choice, Hold, Wish, choose, make_hold
from netbuf.errors import (
    AnnounceError,
    BridgeError,
    BrokenError,
    HoldBrokenError,
    HoldError,
    HostError,
    InterfaceNameError,
    InterfaceVanishedError,
    KernelModuleError,
    KernelRefusedError,
    LimitError,
    MacAddressError,
    NameClashError,
    NetbufError,
    OpenError,
    PrivilegeError,
    ReleaseError,
    SealError,
    SettingError,
    StateError,
    TapError,
    TunDeviceError,
)
from netbuf.ledger import Backend, BufferStatistics, HoldState, Pressure
from netbuf.plughold import PlugHold
from netbuf.sizing import limit_bytes
from netbuf.tap import Guest, GuestTap
from netbuf.taphold import TapHold

__all__ = [
    "AnnounceError",
    "Backend",
    "BridgeError",
    "BrokenError",
    "BufferStatistics",
    "Choice",
    "Guest",
    "GuestTap",
    "Hold",
    "HoldBrokenError",
    "HoldError",
    "HoldState",
    "HostError",
    "InterfaceNameError",
    "InterfaceVanishedError",
    "KernelModuleError",
    "KernelRefusedError",
    "LimitError",
    "MacAddressError",
    "NameClashError",
    "NetbufError",
    "OpenError",
    "PlugHold",
    "Pressure",
    "PrivilegeError",
    "ReleaseError",
    "SealError",
    "SettingError",
    "StateError",
    "TapError",
    "TapHold",
    "TunDeviceError",
    "Wish",
    "choose",
    "limit_bytes",
    "make_hold",
    "rarp_frame",
]
